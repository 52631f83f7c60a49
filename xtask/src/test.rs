//! `cargo xtask test`: everything that must hold before a commit.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{
    build, fuzz, lint, packages, peers, process,
    process::{Root, step},
    repeat, setup,
    workspace::{Profile, Workspace},
};

/// The package whose integration tests may need root.
const PACKAGE: &str = "handshake-user";

/// The integration tests that run as root: those on real networks, the exporter's, callers that die, the search for libraries,
/// and loading under signals. In the order in which they run: those that compare times have the machine to themselves, and the
/// kernel goes on detaching what `hostile_files` has had probed for a minute after its end.
const ROOT: &[&str] =
    &[NETNS, "daemon", "dead_callers", "discover", "full", "hostile_names", "signals", "hostile_files"];
const NETNS: &str = "netns";

/// Run all tests: lints, tests without root, then the tests on real networks as root
///
/// As a user it builds everything as that user, and runs only the finished tests on real networks
/// through sudo. Without a way to root it runs the rest and says what it left out; with CI=true
/// in the environment leaving something out is a failure.
///
/// With a FILTER, lints and hostile bytes (`cargo xtask fuzz`) are skipped, and so is the second pass on real networks, over perf tracepoints.
/// `HANDSHAKE_TEST_THREADS` sets how many tests on real networks run at once (default: one per CPU, at most 3: each
/// has a network of its own and mostly waits). One of them that fails by a comparison of times, and by nothing else, is run
/// again alone; it passes only if it passes twice, and the closing line names it. With CI=true one such test a run is all.
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
    let Split { plain, root } = split(&tests.metadata()?)?;

    step("test: without root");
    if let Err(err) = tests.without_root(&plain) {
        step(format!("{err:#}"));
        failures.push("tests without root".to_owned());
    }

    if args.filter.is_none() {
        step("test: hostile bytes");
        if let Err(err) = fuzz::all(&workspace, &ready) {
            step(format!("{err:#}"));
            failures.push("fuzz".to_owned());
        }
    }

    let left_out = if root.is_empty() {
        None
    } else if args.no_root {
        Some("--no-root")
    } else {
        match Root::for_tests() {
            Root::Impossible => Some("this is not root, and sudo would need a password or is not there"),
            way => {
                step("test: on real networks, as root");
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

    let (line, passed) = verdict(&failures, &repeated, &root, left_out, process::is_ci());
    if !passed {
        bail!("{line}");
    }
    step(line);
    Ok(())
}

/// The closing line, and whether all is well.
fn verdict(
    failures: &[String],
    repeated: &[String],
    root: &[String],
    left_out: Option<&str>,
    ci: bool,
) -> (String, bool) {
    let mut parts = Vec::new();
    if !failures.is_empty() {
        parts.push(format!("test: FAILED: {}", failures.join(", ")));
    }
    if let Some(why) = left_out {
        let advice =
            if ci { "with CI=true that is a failure" } else { "run `cargo xtask test` with sudo at hand" };
        parts.push(format!("test: LEFT OUT what needs root ({}): {why}; {advice}", root.join(", ")));
    }
    let too_many = ci && repeated.len() > repeat::BUDGET;
    let passed = failures.is_empty() && (left_out.is_none() || !ci) && !too_many;
    if parts.is_empty() {
        parts.push("test: all passed".to_owned());
    } else if passed {
        parts.insert(0, "test: the rest passed".to_owned());
    }
    if !repeated.is_empty() {
        let budget = match (ci, too_many) {
            (false, _) => format!("with CI=true {} may", repeat::BUDGET),
            (true, false) => format!("within the budget of {}", repeat::BUDGET),
            (true, true) => format!("FAILED: with CI=true only {} may", repeat::BUDGET),
        };
        let (number, names) = (repeated.len(), repeated.join(", "));
        parts.push(format!("test: {number} passed ONLY WHEN RUN AGAIN, alone ({budget}): {names}"));
    }
    (parts.join("; "), passed)
}

/// One run over the tests with root.
struct Pass {
    /// How the program is to attach; `None` is its own choice.
    attach: Option<&'static str>,
    /// Names of tests, or parts of them; none is all.
    filters: &'static [&'static str],
}

/// The kernel side has a twin on perf tracepoints: one test of each kind of opening and closing runs over it.
const TWIN: Pass = Pass {
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

/// The integration tests, by who must run them.
#[derive(Debug, Default, PartialEq, Eq)]
struct Split {
    plain: Vec<String>,
    root: Vec<String>,
}

/// Reads `cargo metadata`.
fn split(metadata: &str) -> Result<Split> {
    let metadata: Value = serde_json::from_str(metadata).context(
        "`cargo metadata` did not answer in JSON: is a wrapper of cargo writing to standard output?",
    )?;
    let array = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut split = Split::default();
    for package in array(&metadata["packages"]) {
        for target in array(&package["targets"]) {
            if !array(&target["kind"]).iter().any(|kind| kind == "test") {
                continue;
            }
            let name = target["name"].as_str().unwrap_or_default().to_owned();
            let as_root = package["name"] == PACKAGE && needs_root(&name);
            if as_root { split.root.push(name) } else { split.plain.push(name) }
        }
    }
    Ok(split)
}

fn needs_root(test: &str) -> bool {
    ROOT.contains(&test)
}

/// Where in [`ROOT`] the test of this executable stands, whose name is the test's and a hash.
fn place(executable: &Path) -> usize {
    let name = executable.file_name().unwrap_or_default().to_string_lossy();
    let test = name.rsplit_once('-').map_or(&*name, |(test, _)| test);
    ROOT.iter().position(|known| *known == test).unwrap_or(ROOT.len())
}

/// The test executables that `cargo test --no-run --message-format=json` reports.
fn executables(messages: &str) -> Vec<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["reason"] == "compiler-artifact" && message["profile"]["test"] == true)
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .collect()
}

struct Tests<'a> {
    workspace: &'a Workspace,
    object: PathBuf,
    binary: PathBuf,
    filter: Option<&'a str>,
}

impl Tests<'_> {
    fn metadata(&self) -> Result<String> {
        process::read(
            process::cargo(self.workspace).args(["metadata", "--no-deps", "--format-version", "1"]),
            "`cargo metadata`",
            "is a Cargo.toml broken?",
        )
    }

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

    /// Built as the user who calls, run as root. Hands back which tests passed only when they were run again.
    fn as_root(&self, tests: &[String], way: &Root) -> Result<Vec<String>> {
        // Programs that the tests start.
        process::run(
            process::cargo(self.workspace).args(["build", "--package", PACKAGE, "--examples"]),
            "building the programs that the tests with root start",
            "see the compiler's messages above",
        )?;
        let mut build = self.cargo_test();
        build.args(["--package", PACKAGE, "--no-run", "--message-format=json-render-diagnostics"]);
        for test in tests {
            build.args(["--test", test]);
        }
        let output = build
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .context("`cargo test --no-run` cannot be started: is cargo on PATH?")?;
        if !output.status.success() {
            bail!(
                "building the tests with root failed ({}): see the compiler's messages above",
                output.status
            );
        }
        let mut found = executables(&String::from_utf8_lossy(&output.stdout));
        found.sort_by_key(|executable| place(executable));
        if found.len() != tests.len() {
            bail!(
                "cargo built {} of the {} tests with root ({})",
                found.len(),
                tests.len(),
                tests.join(", ")
            );
        }
        let own = Pass { attach: None, filters: &[] };
        let passes = if self.filter.is_none() { vec![own, TWIN] } else { vec![own] };
        let mut failed = Vec::new();
        let mut repeated = Vec::new();
        for (executable, pass) in found.iter().flat_map(|found| passes.iter().map(move |pass| (found, pass)))
        {
            let name = executable.file_name().unwrap_or_default().display().to_string();
            let is_netns = name.starts_with(&format!("{NETNS}-"));
            // What has tests of the network has both ways to attach to it.
            if pass.attach.is_some() && !is_netns {
                continue;
            }
            let over = pass.attach.map_or_else(String::new, |attach| format!(" over {attach}"));
            step(format!("running {}{over}", executable.display()));
            match self.run_as_root(executable, pass, way, is_netns) {
                Ok(names) => repeated.extend(names.into_iter().map(|test| format!("{test}{over}"))),
                Err(err) => {
                    step(format!("{err:#}"));
                    failed.push(format!("{name}{over}"));
                }
            }
        }
        if !failed.is_empty() {
            bail!("failed as root: {}", failed.join(", "));
        }
        Ok(repeated)
    }

    /// Hands back which tests passed only when they were run again, which those of the network alone may.
    fn run_as_root(&self, executable: &Path, pass: &Pass, way: &Root, is_netns: bool) -> Result<Vec<String>> {
        let threads = env::var_os("HANDSHAKE_TEST_THREADS").unwrap_or_else(threads);
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
                .context("there is no way to root from here")?;
            // Where cargo would run it.
            command.current_dir(self.workspace.root.join(PACKAGE));
            Ok(command)
        };
        let arguments = self.filter.iter().chain(pass.filters).copied().map(OsString::from);
        let arguments: Vec<_> = arguments.chain(["--test-threads".into(), threads]).collect();
        if is_netns {
            return repeat::run(command, &arguments);
        }
        process::run(command()?.args(arguments), "the tests with root", "see their output above")?;
        Ok(Vec::new())
    }
}

/// How many tests of the network run at a time: they measure milliseconds, and wait most of the time.
fn threads() -> OsString {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    cpus.clamp(1, 3).to_string().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn netns_tests_need_root_and_others_do_not() {
        assert!(needs_root("netns"));
        assert!(needs_root("daemon") && needs_root("discover") && needs_root("signals"));
        assert!(!needs_root("netnsish"));
        assert!(!needs_root("cli"));
    }

    #[test]
    fn metadata_is_split_by_who_must_run_it() {
        let metadata = r#"{"packages":[
            {"name":"handshake-common","targets":[{"kind":["test"],"name":"any_order"}]},
            {"name":"handshake-user","targets":[
                {"kind":["lib"],"name":"handshake"},{"kind":["test"],"name":"netns"},{"kind":["test"],"name":"cli"}]}]}"#;
        assert_eq!(
            split(metadata).unwrap(),
            Split { plain: vec!["any_order".into(), "cli".into()], root: vec!["netns".into()] }
        );
        assert_eq!(split("{}").unwrap(), Split::default());
        assert!(split("warning: oops").is_err());
    }

    #[test]
    fn tests_that_compare_times_run_first() {
        let mut found = ["/t/hostile_files-1", "/t/daemon-2", "/t/netns-3"].map(PathBuf::from);
        found.sort_by_key(|executable| place(executable));
        assert_eq!(found, ["/t/netns-3", "/t/daemon-2", "/t/hostile_files-1"].map(PathBuf::from));
    }

    #[test]
    fn only_test_executables_are_run() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","profile":{"test":true},"executable":"/t/netns-1"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","profile":{"test":false},"executable":"/t/handshake"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","profile":{"test":true},"executable":null}"#,
            "\nnot json\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        assert_eq!(executables(messages), [PathBuf::from("/t/netns-1")]);
    }

    #[test]
    fn leaving_out_is_said_and_under_ci_a_failure() {
        let root = ["netns".to_owned()];
        assert_eq!(verdict(&[], &[], &root, None, true), ("test: all passed".to_owned(), true));
        let (line, passed) = verdict(&[], &[], &root, Some("no sudo"), false);
        assert!(
            passed && line.contains("the rest passed") && line.contains("LEFT OUT") && line.contains("netns"),
            "{line}"
        );
        assert!(!verdict(&[], &[], &root, Some("no sudo"), true).1);
        let (line, passed) = verdict(&["formatting".to_owned()], &[], &root, None, false);
        assert!(!passed && line.contains("FAILED: formatting"), "{line}");
    }

    #[test]
    fn what_was_run_again_is_said_and_under_ci_one_is_all() {
        let late = ["tls::late".to_owned(), "tls::later over tracepoint".to_owned()];
        let (line, passed) = verdict(&[], &late[..1], &[], None, true);
        assert!(
            passed
                && line.contains("1 passed ONLY WHEN RUN AGAIN, alone (within the budget of 1): tls::late"),
            "{line}"
        );
        let (line, passed) = verdict(&[], &late, &[], None, true);
        assert!(
            !passed && line.contains("2 passed ONLY WHEN RUN AGAIN, alone (FAILED: with CI=true only 1 may)"),
            "{line}"
        );
        let (line, passed) = verdict(&[], &late, &[], None, false);
        assert!(
            passed && line.contains("(with CI=true 1 may): tls::late, tls::later over tracepoint"),
            "{line}"
        );
    }
}
