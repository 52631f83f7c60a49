//! `cargo xtask test`: everything that must hold before a commit.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    behind::Behind,
    build, fuzz, lint, packages, peers,
    process::{self, Root, step},
    repeat, setup,
    workspace::{Profile, Workspace},
};

/// The package whose integration tests may need root.
const PACKAGE: &str = "handshake-user";

/// The integration tests that run as root, in their order: those that compare times come first, and have the
/// machine to themselves. `hostile_files` is last because the kernel goes on detaching its probes for a
/// minute after its end.
const ROOT: &[&str] = &[
    NETNS,
    DAEMON,
    "dead_callers",
    "discover",
    "full",
    "hostile_names",
    "operator",
    "signals",
    "top",
    "hostile_files",
];
/// Tests on network namespaces: the only ones that compare times.
const NETNS: &str = "netns";
/// Tests of the daemon, one after the other: its counts are of the whole host, and some make crowds of
/// clients under which a scrape has a limit of time.
const DAEMON: &str = "daemon";

/// Run all tests: lints, tests without root, then the tests in network namespaces as root
///
/// As a user it builds everything as that user, and runs only the finished tests that need root through sudo.
/// Without a way to become root it runs the rest and reports what it skipped; with CI=true in the
/// environment, skipping anything is a failure.
///
/// With a FILTER it skips lints, hostile input (`cargo xtask fuzz`), and the second pass over perf
/// tracepoints. `HANDSHAKE_TEST_THREADS` sets how many tests in network namespaces run at once (default: one
/// per CPU, at most 3: each has a network of its own and mostly waits). If the only panics of a test with
/// root are comparisons of times, or the machine's kernel ran no program when something happened, it is
/// repeated alone; it must then pass twice, and the last line names it. With CI=true only ten tests per run
/// may be repeated, and `cargo xtask vm --ci` runs behind the last tests.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    cargo xtask test\n  \
    cargo xtask test half_close    # only tests whose name contains it\n  \
    cargo xtask test --no-root")]
pub(crate) struct Args {
    /// Only tests whose name contains this
    filter: Option<String>,
    /// Leave out the tests that need root
    #[arg(long)]
    no_root: bool,
}

/// Runs those of one integration test that need root, and nothing else.
pub(crate) fn alone(test: &str, filter: &str) -> Result<()> {
    let workspace = Workspace::locate()?;
    let ready = setup::ensure(&workspace)?;
    packages::ensure()?;
    peers::ensure(&workspace)?;
    let object = build::ebpf(&workspace, &ready)?;
    let binary = build::both(&workspace, &ready, Profile::Release)?;
    let tests = Tests { workspace: &workspace, object, binary, filter: Some(filter) };
    tests.as_root(&[test.to_owned()], &Root::for_tests()).map(drop)
}

pub(crate) fn main(args: &Args) -> Result<()> {
    let workspace = Workspace::locate()?;
    let ready = setup::ensure(&workspace)?;
    let mut failures: Vec<String> = Vec::new();
    let mut repeated: Vec<String> = Vec::new();

    if args.filter.is_none() {
        failures.extend(lint::all(&workspace, &ready)?.into_iter().map(str::to_owned));
    }

    let object = build::ebpf(&workspace, &ready)?;
    let binary = build::both(&workspace, &ready, Profile::Release)?;
    let tests = Tests { workspace: &workspace, object, binary, filter: args.filter.as_deref() };
    let (plain, root) = split(&workspace);

    step("test: without root");
    if let Err(err) = tests.without_root(&plain) {
        step(format!("{err:#}"));
        failures.push("tests without root".to_owned());
    }

    if args.filter.is_none() {
        step("test: hostile input");
        if let Err(err) = fuzz::all(&workspace, &ready) {
            step(format!("{err:#}"));
            failures.push("fuzz".to_owned());
        }
    }

    let skipped = if root.is_empty() {
        None
    } else if args.no_root {
        Some("--no-root")
    } else {
        match Root::for_tests() {
            Root::Impossible => Some("this is not root, and sudo is missing or needs a password"),
            way => {
                step("test: in network namespaces, as root");
                let result = packages::ensure()
                    .and_then(|()| peers::ensure(&workspace))
                    .and_then(|()| tests.as_root(&root, &way));
                match result {
                    Ok(names) => repeated = names,
                    Err(err) => {
                        step(format!("{err:#}"));
                        failures.push("tests with root".to_owned());
                    }
                }
                None
            }
        }
    };

    let (line, passed) = summary(&failures, &repeated, &root, skipped, process::is_ci());
    if !passed {
        bail!("{line}");
    }
    step(line);
    Ok(())
}

/// The last line, and whether everything passed.
fn summary(
    failures: &[String],
    repeated: &[String],
    root: &[String],
    skipped: Option<&str>,
    ci: bool,
) -> (String, bool) {
    let mut parts = Vec::new();
    if !failures.is_empty() {
        parts.push(format!("test: FAILED: {}", failures.join(", ")));
    }
    if let Some(why) = skipped {
        let advice =
            if ci { "with CI=true that is a failure" } else { "run `cargo xtask test` where sudo works" };
        parts.push(format!("test: SKIPPED what needs root ({}): {why}; {advice}", root.join(", ")));
    }
    let too_many = ci && repeated.len() > repeat::BUDGET;
    let passed = failures.is_empty() && (skipped.is_none() || !ci) && !too_many;
    if parts.is_empty() {
        parts.push("test: all passed".to_owned());
    } else if passed {
        parts.insert(0, "test: the rest passed".to_owned());
    }
    if !repeated.is_empty() {
        let budget = match (ci, too_many) {
            (false, _) => format!("with CI=true {} are allowed", repeat::BUDGET),
            (true, false) => format!("within the budget of {}", repeat::BUDGET),
            (true, true) => format!("FAILED: with CI=true only {} are allowed", repeat::BUDGET),
        };
        let (number, names) = (repeated.len(), repeated.join(", "));
        parts.push(format!("test: {number} passed ONLY WHEN REPEATED, alone ({budget}): {names}"));
    }
    (parts.join("; "), passed)
}

/// One run over the tests with root.
struct Pass {
    /// How the program attaches; `None` leaves the choice to it.
    attach: Option<&'static str>,
    /// Tests whose names contain one of these; all if empty.
    filters: &'static [&'static str],
}

/// The kernel side has a variant on perf tracepoints: one test of each kind of open and close runs over it.
const PERF: Pass = Pass {
    attach: Some("tracepoint"),
    filters: &[
        "opens::established::plain",
        "opens::failed::refused",
        "opens::failed::timed_out",
        "opens::fast_open::data_accepted",
        "opens::lost::syn",
        "closes::orderly",
        "closes::reset::by_linger_zero",
        "closes::reset::by_unread_data",
        "closes::traps::fin_behind_unsent_data",
    ],
};

/// The names of the integration tests: those without root, and those with.
fn split(workspace: &Workspace) -> (Vec<String>, Vec<String>) {
    let of_package = |package: &cargo_metadata::Package| {
        let is_ours = package.name.as_str() == PACKAGE;
        let tests = package.targets.iter().filter(|target| target.is_test());
        tests.map(|test| (test.name.clone(), is_ours && ROOT.contains(&&*test.name))).collect::<Vec<_>>()
    };
    let (root, plain): (Vec<_>, Vec<_>) =
        workspace.packages.iter().flat_map(of_package).partition(|(_, needs_root)| *needs_root);
    let names = |tests: Vec<(String, bool)>| tests.into_iter().map(|(name, _)| name).collect();
    (names(plain), names(root))
}

/// The position in [`ROOT`] of the test of this executable, whose name is the test's and a hash.
fn position(executable: &Path) -> usize {
    let name = executable.file_name().unwrap_or_default().to_string_lossy();
    let test = name.rsplit_once('-').map_or(&*name, |(test, _)| test);
    ROOT.iter().position(|known| *known == test).unwrap_or(ROOT.len())
}

struct Tests<'a> {
    workspace: &'a Workspace,
    object: PathBuf,
    binary: PathBuf,
    filter: Option<&'a str>,
}

impl Tests<'_> {
    fn cargo_test(&self) -> Command {
        let mut cargo = process::cargo(self.workspace);
        cargo.arg("test").env("HANDSHAKE_EBPF_OBJECT", &self.object).env("HANDSHAKE_BIN", &self.binary);
        cargo
    }

    fn without_root(&self, plain: &[String]) -> Result<()> {
        const HINT: &str = "see its output above";
        let workspace = ["--workspace", "--exclude", "handshake-ebpf", "--no-fail-fast"];
        let mut units = self.cargo_test();
        units.args(workspace).args(["--lib", "--bins"]);
        for test in plain {
            units.args(["--test", test]);
        }
        let units = process::run(units.args(self.filter), "cargo test", HINT);
        let examples = process::run(
            self.cargo_test().args(workspace).arg("--doc").args(self.filter),
            "cargo test --doc",
            HINT,
        );
        units.and(examples)
    }

    /// Builds as the calling user, runs as root. Returns the tests that passed only when repeated.
    fn as_root(&self, tests: &[String], way: &Root) -> Result<Vec<String>> {
        // Programs that the tests start.
        process::run(
            process::cargo(self.workspace).args(["build", "--package", PACKAGE, "--examples"]),
            "building the programs that the tests with root start",
            "see the compiler's messages above",
        )?;
        let mut build = self.cargo_test();
        build.args(["--package", PACKAGE, "--no-run"]);
        for test in tests {
            build.args(["--test", test]);
        }
        // Cargo also reports the program itself, which the tests depend on.
        let mut found = process::executables(&mut build, "building the tests with root")?;
        found.retain(|executable| position(executable) < ROOT.len());
        found.sort_by_key(|executable| position(executable));
        ensure!(
            found.len() == tests.len(),
            "cargo built {} of the {} tests with root ({})",
            found.len(),
            tests.len(),
            tests.join(", ")
        );
        let mut machines = None;
        let own = Pass { attach: None, filters: &[] };
        let passes = if self.filter.is_none() { vec![own, PERF] } else { vec![own] };
        let mut failed = Vec::new();
        let mut repeated = Vec::new();
        for (executable, pass) in found.iter().flat_map(|found| passes.iter().map(move |pass| (found, pass)))
        {
            let name = executable.file_name().unwrap_or_default().display().to_string();
            let is = |test: &str| name.starts_with(&format!("{test}-"));
            let is_netns = is(NETNS);
            let threads = if is(DAEMON) { "1".into() } else { threads() };
            // Only these tests set how the program attaches.
            if pass.attach.is_some() && !is_netns {
                continue;
            }
            let over = pass.attach.map_or_else(String::new, |attach| format!(" over {attach}"));
            // Beside tests that compare times, building for them fails one in sixty.
            if machines.is_none() && !is_netns && self.filter.is_none() && process::is_ci() {
                machines = Some(Behind::start(self.workspace, &["vm", "--ci"])?);
            }
            step(format!("running {}{over}", executable.display()));
            match self.run_as_root(executable, pass, way, threads) {
                Ok(names) => repeated.extend(names.into_iter().map(|test| format!("{test}{over}"))),
                Err(err) => {
                    step(format!("{err:#}"));
                    failed.push(format!("{name}{over}: {err:#}"));
                }
            }
        }
        if let Some(machines) = machines
            && let Err(err) = machines.finish()
        {
            failed.push(format!("{err:#}"));
        }
        if !failed.is_empty() {
            bail!("failed as root:\n{}", failed.join("\n"));
        }
        Ok(repeated)
    }

    /// Returns the tests that passed only when repeated.
    fn run_as_root(
        &self,
        executable: &Path,
        pass: &Pass,
        way: &Root,
        threads: OsString,
    ) -> Result<Vec<String>> {
        let passed_on = env::vars_os().filter(|(name, _)| {
            name.to_str().is_some_and(|name| {
                ["CI", "RUST_BACKTRACE", "RUST_LOG"].contains(&name)
                    || (name.starts_with("HANDSHAKE_")
                        && name != "HANDSHAKE_BIN"
                        && name != "HANDSHAKE_EBPF_OBJECT")
            })
        });
        let variables: Vec<(OsString, OsString)> = passed_on
            .chain([("HANDSHAKE_BIN".into(), self.binary.clone().into())])
            .chain(pass.attach.map(|attach| ("HANDSHAKE_TEST_ATTACH".into(), attach.into())))
            .collect();
        let command = || {
            let mut command = way
                .command(executable, &variables, self.workspace)
                .context("there is no way to become root")?;
            // The folder in which cargo would run it.
            command.current_dir(self.workspace.root.join(PACKAGE));
            Ok(command)
        };
        let arguments = self.filter.iter().chain(pass.filters).copied().map(OsString::from);
        let arguments: Vec<_> = arguments.chain(["--test-threads".into(), threads]).collect();
        repeat::run(command, &arguments)
    }
}

/// How many tests in network namespaces run at once: they measure milliseconds, and mostly wait.
fn threads() -> OsString {
    let cpus = || std::thread::available_parallelism().map_or(1, usize::from);
    env::var_os("HANDSHAKE_TEST_THREADS").unwrap_or_else(|| cpus().clamp(1, 3).to_string().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_split_by_whether_they_need_root() {
        let (plain, root) = split(&Workspace::locate().unwrap());
        assert!(plain.iter().any(|test| test == "cli"), "{plain:?}");
        let mut expected = ROOT.to_vec();
        expected.sort_unstable();
        let mut root: Vec<_> = root.iter().map(String::as_str).collect();
        root.sort_unstable();
        assert_eq!(root, expected, "what ROOT names is there, and nothing of it runs without root");
    }

    #[test]
    fn tests_that_compare_times_run_first() {
        let mut found = ["/t/hostile_files-1", "/t/daemon-2", "/t/netns-3"].map(PathBuf::from);
        found.sort_by_key(|executable| position(executable));
        assert_eq!(found, ["/t/netns-3", "/t/daemon-2", "/t/hostile_files-1"].map(PathBuf::from));
        assert_eq!(position(Path::new("/t/handshake")), ROOT.len());
    }

    #[test]
    fn skipped_tests_are_reported_and_fail_under_ci() {
        let root = ["netns".to_owned()];
        assert_eq!(summary(&[], &[], &root, None, true), ("test: all passed".to_owned(), true));
        let (line, passed) = summary(&[], &[], &root, Some("no sudo"), false);
        assert!(
            passed && line.contains("the rest passed") && line.contains("SKIPPED") && line.contains("netns"),
            "{line}"
        );
        assert!(!summary(&[], &[], &root, Some("no sudo"), true).1);
        let (line, passed) = summary(&["formatting".to_owned()], &[], &root, None, false);
        assert!(!passed && line.contains("FAILED: formatting"), "{line}");
    }

    #[test]
    fn repeated_tests_are_reported_and_ci_allows_ten() {
        let late = ["tls::late", "tls::later over tracepoint", "a", "b", "c", "d", "e", "f", "g", "h", "i"]
            .map(str::to_owned);
        let (line, passed) = summary(&[], &late[..1], &[], None, true);
        assert!(
            passed
                && line.contains("1 passed ONLY WHEN REPEATED, alone (within the budget of 10): tls::late"),
            "{line}"
        );
        let (line, passed) = summary(&[], &late, &[], None, true);
        assert!(
            !passed
                && line.contains(
                    "11 passed ONLY WHEN REPEATED, alone (FAILED: with CI=true only 10 are allowed)"
                ),
            "{line}"
        );
        let (line, passed) = summary(&[], &late, &[], None, false);
        assert!(
            passed
                && line.contains(
                    "(with CI=true 10 are allowed): tls::late, tls::later over tracepoint, a, b, c, d, e, f, g, h, i"
                ),
            "{line}"
        );
    }
}
