//! `cargo xtask bench`: what the program costs a host that makes connections as fast as it can.

mod bulk;
pub(crate) mod load;
pub(crate) mod subject;
mod tls;

use std::{fmt::Write as _, fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};

use self::{load::Load, subject::Subject};
use crate::{
    build, packages, process,
    process::step,
    setup,
    workspace::{Profile, Workspace},
};

/// The kernel's switch for run times of eBPF programs.
const STATS: &str = "/proc/sys/kernel/bpf_stats_enabled";
/// Between attaching and measuring.
const SETTLE: Duration = Duration::from_millis(300);

/// What the host does meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// TCP connections: a request, a response and a close
    Tcp,
    /// TLS handshakes, full and resumed, between nginx and clients
    Tls,
    /// Bulk transfer over one connection
    Bulk,
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BenchMode {
    Without,
    Daemon,
    Trace,
}

impl BenchMode {
    const ALL: [Self; 3] = [Self::Without, Self::Daemon, Self::Trace];

    const fn name(self) -> &'static str {
        match self {
            Self::Without => "without",
            Self::Daemon => "daemon",
            Self::Trace => "trace (JSON)",
        }
    }

    /// Arguments, and what it says on standard error when it is ready.
    const fn command(self) -> Option<(&'static [&'static str], &'static str)> {
        match self {
            Self::Without => None,
            Self::Daemon => Some((&["daemon", "--listen", "127.0.0.1:0"], "listening on")),
            Self::Trace => Some((&["trace", "--output", "json"], "tracing")),
        }
    }
}

/// One window of one way.
#[derive(Clone, Debug)]
struct Sample {
    rate: f64,
    connections: u64,
    user_seconds: f64,
    lost: Vec<String>,
}

/// Measure what handshake costs a host that makes connections, TLS handshakes or transfers as fast as it can
///
/// Runs the load in a network namespace of its own, without the program, with `handshake daemon` and (TCP only) with
/// `handshake trace`, in turn, and compares within each round. Needs root.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  sudo -E cargo xtask bench\n  sudo -E cargo xtask bench --rounds 11 --seconds 5\n  sudo -E cargo xtask bench --load tls\n  sudo -E cargo xtask bench -- --attach tracepoint\n\nQuote the ratio, not the rates: they are of this machine. docs/overhead.md has a measured table."
)]
pub(crate) struct Args {
    /// Only this load instead of all
    #[arg(long, value_enum)]
    load: Option<Kind>,
    /// How many times each way is measured
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Length of one measurement, seconds
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// More arguments for the program under measurement, such as `--tls-wire off`
    #[arg(last = true, value_name = "ARGS")]
    more: Vec<String>,
}

pub(crate) fn main(args: &Args) -> Result<()> {
    ensure!(process::is_root(), "the benchmark needs root: sudo -E env PATH=\"$PATH\" cargo xtask bench");
    let workspace = Workspace::locate()?;
    let ready = setup::ensure(&workspace)?;
    let is_wanted = |kind| args.load.is_none_or(|only| only == kind);
    if is_wanted(Kind::Tls) {
        packages::ensure_for_bench()?;
    }
    let binary = build::both(&workspace, &ready, Profile::Release)?;
    let tcp = if is_wanted(Kind::Tcp) { measure(&binary, args)? } else { String::new() };
    let tls = if is_wanted(Kind::Tls) { tls::measure(&binary, args)? } else { String::new() };
    let bulk = if is_wanted(Kind::Bulk) { bulk::measure(&binary, args)? } else { String::new() };
    print!("{}\n{tcp}{tls}{bulk}", machine());
    Ok(())
}

fn measure(binary: &Path, args: &Args) -> Result<String> {
    let Args { rounds, seconds, more, .. } = args;
    let (rounds, seconds) = (*rounds, *seconds);
    let window = Duration::from_secs(seconds);
    let load = Load::start()?;
    load.rate_over(window)?;
    let mut samples: Vec<[Sample; 3]> = Vec::new();
    for round in 1..=rounds {
        step(format!("round {round} of {rounds}: without, daemon, trace, {seconds} s each"));
        let [without, daemon, trace] = BenchMode::ALL.map(|way| sample(&load, binary, way, window, more));
        samples.push([without?, daemon?, trace?]);
    }
    step("kernel time, with the kernel's own statistics on");
    let kernel = kernel_time(binary, more, "connection", || Ok(load.rate_over(window)?.0))?;
    Ok(format!("{}{kernel}", table(&samples)))
}

/// What the figures were measured on.
fn machine() -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("", |(_, name)| name.trim());
    let cpus = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let load = read("/proc/loadavg");
    format!(
        "Linux {}, {cpus} CPUs, {model}; load average at the end {}",
        read("/proc/sys/kernel/osrelease").trim(),
        load.split_whitespace().next().unwrap_or("?")
    )
}

fn sample(load: &Load, binary: &Path, way: BenchMode, window: Duration, more: &[String]) -> Result<Sample> {
    let Some((arguments, ready)) = way.command() else {
        std::thread::sleep(SETTLE);
        let (connections, rate) = load.rate_over(window)?;
        return Ok(Sample { rate, connections, user_seconds: 0.0, lost: Vec::new() });
    };
    let subject = Subject::start(binary, &with(arguments, more), ready)?;
    std::thread::sleep(SETTLE);
    let before = subject.user_seconds()?;
    let (connections, rate) = load.rate_over(window)?;
    let user_seconds = subject.user_seconds()? - before;
    let lost = subject.stop()?.into_iter().filter(|line| line.contains("lost")).collect();
    Ok(Sample { rate, connections, user_seconds, lost })
}

fn with<'a>(arguments: &[&'a str], more: &'a [String]) -> Vec<&'a str> {
    arguments.iter().copied().chain(more.iter().map(String::as_str)).collect()
}

/// Kernel time per hit and per thing that `made` counts, in one window of its own: keeping the statistics costs time, too.
fn kernel_time(
    binary: &Path,
    more: &[String],
    thing: &str,
    made: impl FnOnce() -> Result<u64>,
) -> Result<String> {
    let (arguments, ready) = BenchMode::Daemon.command().context("the daemon has a command")?;
    let before = fs::read_to_string(STATS).with_context(|| format!("cannot read {STATS}"))?;
    fs::write(STATS, "1").with_context(|| format!("cannot write {STATS}"))?;
    let measured = (|| {
        let subject = Subject::start(binary, &with(arguments, more), ready)?;
        std::thread::sleep(SETTLE);
        let first = subject.program_times()?;
        let made = made()?;
        let last = subject.program_times()?;
        // Reading them takes its time, in which the load goes on.
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
        "\nkernel time per {thing}, both ends, statistics' own cost included\n{:<28} {:>9} {:>7} {:>7}\n",
        "program", "ns a hit", "hits", "µs"
    );
    for time in &programs {
        text += &line(time.name(&symbols), time.hits, time.nanoseconds);
    }
    Ok(text + &line("all", hits, nanoseconds))
}

fn table(samples: &[[Sample; 3]]) -> String {
    let mut text = format!(
        "{:<14} {:>9} {:>9} {:>9}  {:>22}  {:>18}  {}\n",
        "", "conn/s", "min", "max", "ratio (median of pairs)", "user s / 100k conn", "lost"
    );
    for (index, way) in BenchMode::ALL.into_iter().enumerate() {
        let rates = sorted(samples.iter().map(|round| round[index].rate));
        let ratios = sorted(samples.iter().map(|round| round[index].rate / round[0].rate));
        let (user, connections) = samples.iter().fold((0.0, 0), |(user, connections), round| {
            (user + round[index].user_seconds, connections + round[index].connections)
        });
        let lost: Vec<&str> =
            samples.iter().flat_map(|round| &round[index].lost).map(String::as_str).collect();
        let lost = if lost.is_empty() { "none".to_owned() } else { lost.join("; ") };
        #[expect(clippy::cast_precision_loss, reason = "a count of connections")]
        let per_100k = user / (connections as f64) * 1e5;
        let (rate, least, most) = (median(&rates), rates.first(), rates.last());
        let (least, most) = (least.copied().unwrap_or(0.0), most.copied().unwrap_or(0.0));
        let _ = writeln!(
            text,
            "{:<14} {rate:>9.0} {least:>9.0} {most:>9.0}  {:>22.3}  {per_100k:>18.3}  {lost}",
            way.name(),
            median(&ratios),
        );
    }
    text
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

fn median(sorted: &[f64]) -> f64 {
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown with two digits")]
fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert!((median(&[1.0, 2.0, 9.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[1.0, 3.0]) - 2.0).abs() < 1e-9);
        assert!(median(&[]).abs() < 1e-9);
    }
}
