//! What the loads have in common: how the program is run, how long its eBPF programs take.

use std::{fs, path::Path, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};

use super::{
    cpu,
    hooks::{self, Hooks},
    subject::Subject,
};
use crate::process::step;

/// The kernel's switch for run times of eBPF programs.
const STATS: &str = "/proc/sys/kernel/bpf_stats_enabled";
/// The pause between attaching and measuring.
pub(super) const SETTLE: Duration = Duration::from_millis(300);

/// How every load is measured.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    /// The program under measurement.
    pub(super) binary: &'a Path,
    /// More arguments for it.
    pub(super) more: &'a [String],
    pub(super) rounds: u32,
    /// The length of one measurement.
    pub(super) window: Duration,
    /// Whether to sample what the CPUs do.
    pub(super) samples_cpu: bool,
}

impl Plan<'_> {
    /// Starts the program and lets it settle.
    pub(super) fn start(&self, arguments: &[&str], ready: &'static str) -> Result<Subject> {
        let more = self.more.iter().map(String::as_str);
        let arguments: Vec<_> = arguments.iter().copied().chain(more).collect();
        let subject = Subject::start(self.binary, &arguments, ready)?;
        thread::sleep(SETTLE);
        Ok(subject)
    }
}

/// What the program adds to what the CPUs do under a load, if that was asked for; `with_hooks`: and what
/// empty programs do at the hooks that every connection passes.
pub(super) fn cpu_shares(
    plan: &Plan<'_>,
    load: &str,
    with_hooks: bool,
    mut under_load: impl FnMut(&mut dyn FnMut() -> Result<cpu::Shares>) -> Result<cpu::Shares>,
) -> Result<String> {
    if !plan.samples_cpu {
        return Ok(String::new());
    }
    step("what the CPUs do, by sampling");
    let folder = tempfile::tempdir().context("cannot create a temporary folder")?;
    let mut sample = || cpu::sample(plan.window, folder.path());
    let mut columns = vec![("without", under_load(&mut sample)?)];
    if with_hooks {
        let _hooks = Hooks::attach()?;
        thread::sleep(SETTLE);
        columns.push((hooks::NAME, under_load(&mut sample)?));
    }
    let (arguments, ready) = BenchMode::Daemon.command().context("the daemon has a command")?;
    let subject = plan.start(arguments, ready)?;
    columns.push(("daemon", under_load(&mut sample)?));
    subject.stop()?;
    Ok(cpu::table(load, &columns))
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BenchMode {
    Without,
    Daemon,
    Trace,
}

impl BenchMode {
    pub(super) const ALL: [Self; 3] = [Self::Without, Self::Daemon, Self::Trace];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Without => "without",
            Self::Daemon => "daemon",
            Self::Trace => "trace (JSON)",
        }
    }

    /// Its arguments, and what its line on standard error contains when it is ready. Returns `None` without
    /// the program.
    pub(super) const fn command(self) -> Option<(&'static [&'static str], &'static str)> {
        match self {
            Self::Without => None,
            Self::Daemon => Some((&["daemon", "--listen", "127.0.0.1:0"], "listening on")),
            Self::Trace => Some((&["trace", "--output", "json"], "tracing")),
        }
    }
}

/// Kernel time per hit and per thing that `made` counts, in a measurement of its own, since the statistics
/// cost time.
pub(super) fn kernel_time(
    plan: &Plan<'_>,
    thing: &str,
    made: impl FnOnce() -> Result<u64>,
) -> Result<String> {
    let (arguments, ready) = BenchMode::Daemon.command().context("the daemon has a command")?;
    let before = fs::read_to_string(STATS).with_context(|| format!("cannot read {STATS}"))?;
    fs::write(STATS, "1").with_context(|| format!("cannot write {STATS}"))?;
    let measured = (|| {
        let subject = plan.start(arguments, ready)?;
        let first = subject.program_times()?;
        let made = made()?;
        let last = subject.program_times()?;
        // Read last: it takes time, and the load goes on.
        let symbols = fs::read_to_string("/proc/kallsyms").unwrap_or_default();
        subject.stop()?;
        Ok::<_, anyhow::Error>((first, last, made, symbols))
    })();
    fs::write(STATS, before.trim()).with_context(|| format!("cannot restore {STATS}"))?;
    let (first, last, made, symbols) = measured?;
    let mut programs: Vec<_> =
        last.iter().map(|last| last.since(&first)).filter(|time| time.hits > 0).collect();
    programs.sort_by_key(|time| std::cmp::Reverse(time.nanoseconds));
    let (hits, nanoseconds) = programs
        .iter()
        .fold((0, 0), |(hits, nanoseconds), time| (hits + time.hits, nanoseconds + time.nanoseconds));
    ensure!(hits > 0, "the kernel counted no run of any program");
    let line = |name: &str, hits, nanoseconds: u64| {
        let (hits_each, us_each) = (ratio(hits, made), ratio(nanoseconds, made) / 1e3);
        format!("{name:<28} {:>9} {hits_each:>7.1} {us_each:>7.2}\n", nanoseconds / hits)
    };
    let mut text = format!(
        "\nkernel time per {thing}, both ends, including the cost of the statistics\n\
         {:<28} {:>9} {:>7} {:>7}\n",
        "program", "ns a hit", "hits", "µs"
    );
    for time in &programs {
        text += &line(time.name(&symbols), time.hits, time.nanoseconds);
    }
    Ok(text + &line("all", hits, nanoseconds))
}

#[expect(clippy::cast_precision_loss, reason = "shown with two digits")]
fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}
