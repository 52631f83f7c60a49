//! `cargo xtask scale`: what the daemon costs a host that is large rather than busy (docs/scale.md).

mod connections;
mod holder;
mod namespaces;
mod processes;

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use crate::{
    bench::subject::Subject,
    build,
    process::{self, step},
    setup,
    soak::watch::{Scrape, Usage},
    workspace::{Profile, Workspace},
};

/// How long the daemon is watched to find what it costs when nothing happens.
const IDLE: Duration = Duration::from_secs(20);
/// Scrapes of which the slowest is reported.
const SCRAPES: u32 = 5;

/// Measure memory, start, scrape and idle cost on a host with very many connections, namespaces or processes
///
/// Makes as many of them as it is told, starts the daemon beside them, and prints a table. Needs root, and
/// memory: the kernel takes some 4 KiB for each end of a connection, 300 KiB for each network namespace, and
/// 1 MiB for each process with 300 mapped files.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    sudo -E env PATH=\"$PATH\" cargo xtask scale connections --count 500000\n  \
    sudo -E env PATH=\"$PATH\" cargo xtask scale namespaces --count 2000\n  \
    sudo -E env PATH=\"$PATH\" cargo xtask scale processes --count 2000 --libraries 300")]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Open connections on loopback: both ends of each are on this host
    Connections {
        /// How many connections; each has two ends
        #[arg(long, default_value_t = 500_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        count: u32,
    },
    /// Network namespaces, with a process in each
    Namespaces {
        /// How many namespaces
        #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=30_000))]
        count: u32,
    },
    /// Processes with mapped libraries
    Processes {
        /// How many processes
        #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=30_000))]
        count: u32,
        /// How many files each of them maps; a copy of libssl is always among them
        #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=900))]
        libraries: u32,
    },
    /// Hold something until standard input ends; used by the others
    #[command(hide = true)]
    Hold {
        #[command(subcommand)]
        what: Held,
    },
}

#[derive(clap::Subcommand)]
enum Held {
    Connections { count: u32 },
    Processes { folder: PathBuf, count: u32, libraries: u32 },
}

pub(crate) fn main(args: &Args) -> Result<()> {
    match &args.what {
        What::Hold { what: Held::Connections { count } } => return connections::hold(*count),
        What::Hold { what: Held::Processes { folder, count, libraries } } => {
            return processes::hold(folder, *count, *libraries);
        }
        _ => {}
    }
    ensure!(process::is_root(), "this needs root: sudo -E env PATH=\"$PATH\" cargo xtask scale");
    let interrupted = process::interruption()?;
    let workspace = Workspace::locate()?;
    let ready = setup::ensure(&workspace)?;
    let binary = build::both(&workspace, &ready, Profile::Release)?;
    let table = match &args.what {
        What::Connections { count } => connections::measure(&binary, *count, &interrupted)?,
        What::Namespaces { count } => namespaces::measure(&binary, *count, &interrupted)?,
        What::Processes { count, libraries } => {
            processes::measure(&binary, *count, *libraries, &interrupted)?
        }
        What::Hold { .. } => unreachable!("returned above"),
    };
    print!("{table}");
    Ok(())
}

/// The daemon, and how long it took to get ready.
struct Daemon {
    subject: Subject,
    address: String,
    ready: Duration,
}

impl Daemon {
    fn start(binary: &Path, more: &[&str]) -> Result<Self> {
        let begin = Instant::now();
        let mut arguments = vec!["daemon", "--listen", "127.0.0.1:0"];
        arguments.extend(more);
        let subject = Subject::start(binary, &arguments, "listening on")?;
        let ready = begin.elapsed();
        let address = subject.address()?;
        Ok(Self { subject, address, ready })
    }

    fn usage(&self) -> Result<Usage> {
        Usage::of(self.subject.id())
    }

    /// The last of a few scrapes, with the time of the slowest.
    fn scrape(&self) -> Result<Scrape> {
        let mut slowest = Duration::ZERO;
        let mut scrape = Scrape::of(&self.address)?;
        for _ in 1..SCRAPES {
            slowest = slowest.max(scrape.took);
            scrape = Scrape::of(&self.address)?;
        }
        scrape.took = slowest.max(scrape.took);
        Ok(scrape)
    }

    /// CPU time per second while nothing happens, ms.
    fn idle_cost(&self, interrupted: &AtomicBool) -> Result<f64> {
        let before = self.usage()?.cpu_seconds;
        pause(IDLE, interrupted)?;
        Ok((self.usage()?.cpu_seconds - before) * 1e3 / IDLE.as_secs_f64())
    }

    /// Waits until CPU time no longer rises, at most so long. Returns how long that took.
    fn settle(&self, limit: Duration, interrupted: &AtomicBool) -> Result<Duration> {
        const STEP: Duration = Duration::from_secs(1);
        let begin = Instant::now();
        let mut before = self.usage()?.cpu_seconds;
        loop {
            pause(STEP, interrupted)?;
            let now = self.usage()?.cpu_seconds;
            if now - before < 0.03 || begin.elapsed() > limit {
                return Ok(begin.elapsed().saturating_sub(STEP));
            }
            before = now;
        }
    }

    /// Returns how long it took to end.
    fn stop(self) -> Result<Duration> {
        let begin = Instant::now();
        self.subject.stop()?;
        Ok(begin.elapsed())
    }
}

/// Rows of a name and a value, aligned.
#[derive(Default)]
struct Table(Vec<(String, String)>);

impl Table {
    fn row(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.0.push((name.into(), value.into()));
    }

    /// What the daemon uses at a moment.
    fn usage(&mut self, when: &str, usage: &Usage, scrape: &Scrape) {
        self.row(format!("{when}: resident memory"), mib(usage.resident_kib));
        self.row(format!("{when}: memory of the maps"), mib(usage.maps_kib));
        self.row(format!("{when}: slowest of {SCRAPES} scrapes"), ms(scrape.took));
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let width = self.0.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        self.0.iter().try_for_each(|(name, value)| writeln!(f, "{name:width$}  {value:>14}"))
    }
}

fn mib(kib: f64) -> String {
    format!("{:.1} MiB", kib / 1024.0)
}

fn ms(time: Duration) -> String {
    format!("{:.0} ms", time.as_secs_f64() * 1e3)
}

/// Sleeps; fails if it is interrupted.
fn pause(time: Duration, interrupted: &AtomicBool) -> Result<()> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        check(interrupted)?;
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn check(interrupted: &AtomicBool) -> Result<()> {
    ensure!(!interrupted.load(Ordering::Relaxed), "interrupted");
    Ok(())
}

/// Reports progress, at most once in some seconds.
struct Progress {
    what: &'static str,
    of: u32,
    last: Instant,
}

impl Progress {
    fn new(what: &'static str, of: u32) -> Self {
        Self { what, of, last: Instant::now() }
    }

    fn at(&mut self, done: usize) {
        if self.last.elapsed() > Duration::from_secs(5) {
            step(format!("{done} of {} {}", self.of, self.what));
            self.last = Instant::now();
        }
    }
}
