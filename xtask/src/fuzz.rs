//! `cargo xtask fuzz`: hostile input for every parser of untrusted bytes (fuzz/).

use std::{
    fmt::Write as _,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    at_once, build, packages,
    process::{self, step},
    setup::{self, Ready},
    tools::{self, Tool},
    workspace::Workspace,
};

const CARGO_FUZZ: Tool = Tool {
    name: "cargo-fuzz",
    version: "0.13.2",
    arguments: &[],
    purpose: "it builds the fuzz targets (a minute, once)",
};

/// An input that takes longer is a finding, in seconds.
const TIMEOUT: u32 = 5;
/// So is one that takes more memory, or allocates more at once, in MiB.
const MAX_MEMORY: u32 = 512;
const MAX_ALLOCATION: u32 = 128;

/// How long each target runs in CI, in seconds.
const IN_CI: u32 = 10;

/// Feed hostile input to every parser of untrusted bytes
///
/// Builds the targets once, with the address sanitizer, and runs each for some seconds. They start from the
/// inputs in fuzz/corpus. New inputs are kept in target/fuzz/corpus, where the next run continues; --merge
/// copies those that reach more code into fuzz/corpus. An input that crashes a target ends it, and this
/// command fails. An input may take 5 s and 512 MiB.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    cargo xtask fuzz                              # every target, 10 s each\n  \
    cargo xtask fuzz elf library --seconds 600\n  \
    cargo xtask fuzz elf --input target/fuzz/artifacts/elf/crash-0123    # only this input\n  \
    cargo xtask fuzz --merge --seconds 60         # then commit fuzz/corpus\n\n\
Add an input that crashed a target to fuzz/corpus/TARGET together with the fix: every later run tries it.")]
pub(crate) struct Args {
    /// Only these targets, the files in `fuzz/fuzz_targets`
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
    /// How long each runs
    #[arg(long, default_value_t = IN_CI, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    seconds: u32,
    /// How many run at once [default: one per CPU, at most 2]
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=64))]
    jobs: Option<u8>,
    /// Afterwards, copy inputs that reach more code into fuzz/corpus
    #[arg(long)]
    merge: bool,
    /// Run only the inputs in this file, once
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seconds", "jobs", "merge"])]
    input: Option<PathBuf>,
}

pub(crate) fn main(args: &Args) -> Result<()> {
    let workspace = Workspace::locate()?;
    let ready = setup::ensure(&workspace)?;
    let known = targets(&workspace)?;
    if let Some(unknown) = args.targets.iter().find(|target| !known.contains(target)) {
        bail!("there is no target {unknown}; there are {}", known.join(", "));
    }
    let wanted = if args.targets.is_empty() { known } else { args.targets.clone() };
    if let Some(input) = &args.input {
        let [target] = &wanted[..] else { bail!("with --input, name the one TARGET that it is for") };
        let fuzzers = Fuzzers::build(&workspace, &ready)?;
        let mut command = fuzzers.command(target);
        command.args(limits()).arg(input);
        return process::run(&mut command, &format!("the target {target} with this input"), "see above");
    }
    let fuzzers = Fuzzers::build(&workspace, &ready)?;
    fuzzers.run(&wanted, args.seconds, jobs(args.jobs))?;
    if args.merge {
        wanted.iter().try_for_each(|target| fuzzers.merge(target))?;
    }
    Ok(())
}

/// Runs every target briefly, as a part of the tests.
pub(crate) fn all(workspace: &Workspace, ready: &Ready) -> Result<()> {
    Fuzzers::build(workspace, ready)?.run(&targets(workspace)?, IN_CI, jobs(None))
}

fn jobs(asked: Option<u8>) -> usize {
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    asked.map_or_else(|| cpus.min(2), usize::from)
}

/// The names of all targets, sorted.
fn targets(workspace: &Workspace) -> Result<Vec<String>> {
    let folder = workspace.root.join("fuzz/fuzz_targets");
    let files = fs::read_dir(&folder)
        .with_context(|| format!("cannot read {}: is the clone complete?", folder.display()))?;
    let mut names: Vec<_> =
        files.flatten().filter_map(|file| Some(file.path().file_stem()?.to_str()?.to_owned())).collect();
    names.sort_unstable();
    Ok(names)
}

fn limits() -> [String; 3] {
    [
        format!("-timeout={TIMEOUT}"),
        format!("-rss_limit_mb={MAX_MEMORY}"),
        format!("-malloc_limit_mb={MAX_ALLOCATION}"),
    ]
}

/// The finished targets.
struct Fuzzers<'w> {
    workspace: &'w Workspace,
    /// The folder of their executables.
    folder: PathBuf,
}

impl<'w> Fuzzers<'w> {
    fn build(workspace: &'w Workspace, ready: &Ready) -> Result<Self> {
        packages::ensure_for_fuzz()?;
        let tool = CARGO_FUZZ.ensure(workspace)?;
        let object = build::ebpf(workspace, ready)?;
        let target = workspace.target.join("fuzz");
        let host = &ready.toolchain.version.host;
        let folder = target.join(host).join("release");
        if !folder.is_dir() {
            step("building the fuzz targets (two to four minutes the first time)");
        }
        process::run(
            process::cargo(workspace)
                .args(["fuzz", "build", "--fuzz-dir", "fuzz", "--target", host, "--target-dir"])
                .arg(&target)
                .env("PATH", tools::path_with(&tool)?)
                .env("HANDSHAKE_EBPF_OBJECT", object)
                // Coverage and the sanitizer on the stable compiler; no nightly is needed.
                .env("RUSTC_BOOTSTRAP", "1"),
            "building the fuzz targets",
            "see the compiler's messages above",
        )?;
        Ok(Self { workspace, folder })
    }

    fn command(&self, target: &str) -> Command {
        let mut command = process::clean(self.folder.join(target), self.workspace);
        // Freed memory that is kept to detect its later use counts towards the limit.
        command.current_dir(&self.workspace.root).env("ASAN_OPTIONS", "quarantine_size_mb=32");
        command
    }

    /// Runs these targets, `jobs` at a time, and prints a table of the outcomes.
    fn run(&self, targets: &[String], seconds: u32, jobs: usize) -> Result<()> {
        let jobs = jobs.min(targets.len());
        let about = targets.len().div_ceil(jobs) * seconds as usize;
        step(format!("fuzz: {} at {seconds} s each, {jobs} at a time: about {about} s", targets.join(", ")));
        let mut done = at_once::work(targets, jobs, |target| self.one(target, seconds))?;
        done.sort_by(|one, other| one.target.cmp(&other.target));
        print!("{}", table(&done));
        let failed: Vec<_> = done.iter().filter_map(Outcome::complaint).collect();
        ensure!(failed.is_empty(), "{}", failed.join("\n"));
        Ok(())
    }

    fn one(&self, target: &str, seconds: u32) -> Result<Outcome> {
        let [committed, found, artifacts] =
            [self.committed(target), self.below("corpus", target), self.below("artifacts", target)];
        for folder in [&committed, &found, &artifacts] {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot create {}: is the disk full?", folder.display()))?;
        }
        let log = self.below("corpus", target).with_extension("log");
        let file = File::create(&log)
            .with_context(|| format!("cannot create {}: is the disk full?", log.display()))?;
        let status = self
            .command(target)
            .args(limits())
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-artifact_prefix={}/", artifacts.display()))
            .arg("-print_final_stats=1")
            .args([&found, &committed])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .status()
            .with_context(|| format!("the target {target} cannot be started"))?;
        let text = fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
        let mut outcome = Outcome::read(target, &String::from_utf8_lossy(&text));
        outcome.corpus = [&committed, &found].map(|folder| count(folder)).iter().sum();
        outcome.failed = (!status.success()).then_some(log);
        Ok(outcome)
    }

    /// Copies inputs that reach more code into the committed ones.
    fn merge(&self, target: &str) -> Result<()> {
        let [committed, found] = [self.committed(target), self.below("corpus", target)];
        let before = count(&committed);
        process::read(
            self.command(target)
                .args(limits())
                // The smallest set that reaches all of it, however often: the committed inputs stay few.
                .args(["-set_cover_merge=1", "-use_counters=0"])
                .args([&committed, &found]),
            &format!("merging the inputs of {target}"),
            "see its output",
        )?;
        step(format!("{target}: {} inputs added to {}", count(&committed) - before, committed.display()));
        Ok(())
    }

    fn committed(&self, target: &str) -> PathBuf {
        self.workspace.root.join("fuzz/corpus").join(target)
    }

    fn below(&self, what: &str, target: &str) -> PathBuf {
        self.workspace.target.join("fuzz").join(what).join(target)
    }
}

fn count(folder: &Path) -> usize {
    fs::read_dir(folder).map_or(0, Iterator::count)
}

/// The outcome of one target.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    target: String,
    executions: u64,
    per_second: u64,
    /// Edges covered, at the start and at the end.
    covered: (u64, u64),
    /// Inputs that are kept.
    corpus: usize,
    /// Inputs that crashed it.
    crashes: Vec<String>,
    /// The log of a target that failed.
    failed: Option<PathBuf>,
}

impl Outcome {
    /// Reads libFuzzer's log.
    fn read(target: &str, log: &str) -> Self {
        let statistic = |name: &str| {
            let value = log.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
        };
        let covered: Vec<u64> = log
            .lines()
            .filter_map(|line| line.split_once(" cov: ")?.1.split(' ').next()?.parse().ok())
            .collect();
        let begun = log.lines().find(|line| line.contains("INITED"));
        let begun = begun.and_then(|line| line.split_once(" cov: ")?.1.split(' ').next()?.parse().ok());
        let crashes = log.lines().filter_map(|line| line.split_once("Test unit written to "));
        Self {
            target: target.to_owned(),
            executions: statistic("stat::number_of_executed_units"),
            per_second: statistic("stat::average_exec_per_sec"),
            covered: (begun.unwrap_or(0), covered.last().copied().unwrap_or(0)),
            corpus: 0,
            crashes: crashes.map(|(_, path)| path.trim().to_owned()).collect(),
            failed: None,
        }
    }

    /// What failed, and how to reproduce it. Returns `None` if nothing did.
    fn complaint(&self) -> Option<String> {
        let log = self.failed.as_ref()?;
        let target = &self.target;
        let mut text = format!("fuzz: {target} failed, see {}", log.display());
        for path in &self.crashes {
            let _ = write!(text, "\n  reproduce: cargo xtask fuzz {target} --input {path}");
        }
        Some(text)
    }
}

fn table(outcomes: &[Outcome]) -> String {
    let mut text = format!(
        "{:<10} {:>12} {:>8} {:>7} {:>9} {:>7} {:>7}\n",
        "target", "executions", "a second", "covered", "(before)", "inputs", "crashes"
    );
    for Outcome { target, executions, per_second, covered, corpus, crashes, failed } in outcomes {
        let crashes = if failed.is_some() { crashes.len().max(1) } else { 0 };
        let (before, covered) = (format!("({})", covered.0), covered.1);
        let _ = writeln!(
            text,
            "{target:<10} {executions:>12} {per_second:>8} {covered:>7} {before:>9} {corpus:>7} {crashes:>7}"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "INFO: Seed: 1\n\
        #9\tINITED cov: 3377 ft: 5470 corp: 8/1270b exec/s: 0 rss: 95Mb\n\
        #8811\tNEW    cov: 3380 ft: 5480 corp: 9/1280b lim: 8 exec/s: 2937 rss: 295Mb L: 8/8 MS: 1 CMP-\n\
        #8831\tDONE   cov: 3381 ft: 5481 corp: 9/1280b lim: 8 exec/s: 2207 rss: 295Mb\n\
        stat::number_of_executed_units: 8831\n\
        stat::average_exec_per_sec:     2207\n";

    #[test]
    fn log_of_libfuzzer_is_read() {
        let outcome = Outcome::read("elf", LOG);
        assert_eq!((outcome.executions, outcome.per_second, outcome.covered), (8831, 2207, (3377, 3381)));
        assert_eq!(outcome.complaint(), None);
        assert!(table(&[outcome]).contains("elf "));
    }

    #[test]
    fn complaint_says_how_to_reproduce_a_crash() {
        let log = format!("{LOG}artifact_prefix='/a/'; Test unit written to /a/crash-1\nBase64: AA==\n");
        let outcome = Outcome { failed: Some("/l/elf.log".into()), ..Outcome::read("elf", &log) };
        let complaint = outcome.complaint().unwrap();
        assert!(complaint.contains("/l/elf.log"), "{complaint}");
        assert!(complaint.contains("cargo xtask fuzz elf --input /a/crash-1"), "{complaint}");
        assert!(table(&[outcome]).trim_end().ends_with(" 1"));
    }

    #[test]
    fn targets_are_in_the_manifest_and_have_inputs() {
        let workspace = Workspace::locate().unwrap();
        let manifest = fs::read_to_string(workspace.root.join("fuzz/Cargo.toml")).unwrap();
        let targets = targets(&workspace).unwrap();
        assert_eq!(manifest.matches("[[bin]]").count(), targets.len());
        for target in targets {
            assert!(manifest.contains(&format!("path = \"fuzz_targets/{target}.rs\"")), "{target}");
            assert!(count(&workspace.root.join("fuzz/corpus").join(&target)) > 0, "{target} has no inputs");
        }
    }
}
