//! `cargo xtask soak`: whether anything grows, and every connection is counted, on a busy host
//! (docs/soak.md).

mod judge;
mod load;
mod report;
pub(crate) mod watch;

use std::{
    fmt::Write as _,
    sync::{Arc, atomic::AtomicBool, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use fastrand::Rng;
use rustix::process::Signal;

use self::{
    load::{Load, Made, Supplies},
    report::{Counts, PerGroup, Sample},
    watch::{HostOpens, Objects, Scrape, Usage},
};
use crate::{
    bench::subject::Subject,
    build, process,
    process::step,
    setup,
    workspace::{Profile, Workspace},
};

/// How the label of every network of the load begins.
const OURS: &str = "remote_net=\"198.18.";
/// The time between two scrapes.
const SCRAPE: Duration = Duration::from_secs(2);
/// The time between two stops of the daemon, and how long it stays stopped, in seconds.
const STOP_AFTER: std::ops::Range<f64> = 20.0..60.0;
const STOPPED: std::ops::Range<f64> = 1.0..4.0;
/// How long the daemon may take to count the last connection, to settle, or to disappear from the kernel.
const TIMEOUT: Duration = Duration::from_mins(1);

/// Run the daemon under churn for a long time; fail if it grows, miscounts or leaves something behind
///
/// Connections, TLS handshakes, processes, network namespaces and copies of OpenSSL's libraries come and go;
/// the daemon is scraped, and stopped for some seconds now and then. Its memory, the kernel memory of its
/// maps, and its descriptors, probes, threads and CPU time are sampled. A rise after the warm-up is a
/// failure, and so is a connection that was not counted. Needs root and openssl. What other traffic on the
/// host adds to the totals is reported but not judged.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    sudo -E env PATH=\"$PATH\" cargo xtask soak --minutes 60\n  \
    sudo -E env PATH=\"$PATH\" cargo xtask soak --minutes 5 --seed 7       # the same load again\n  \
    sudo -E env PATH=\"$PATH\" cargo xtask soak --minutes 2 -- --max-connections 8\n\n\
    The first 13 minutes are warm-up, because unused files keep their probes for ten minutes; of a run\n\
    shorter than 26 minutes, the first quarter. More in docs/soak.md")]
pub(crate) struct Args {
    /// How long the load runs
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=10_080))]
    minutes: u64,
    /// The seed of the random numbers [default: a new one each time]
    #[arg(long)]
    seed: Option<u64>,
    /// The time between two samples, in seconds
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    every: u64,
    /// More arguments for the daemon
    #[arg(last = true, value_name = "ARGS")]
    more: Vec<String>,
}

pub(crate) fn main(args: &Args) -> Result<()> {
    ensure!(process::is_root(), "the soak needs root: sudo -E env PATH=\"$PATH\" cargo xtask soak");
    let interrupted = process::interruption()?;
    let workspace = Workspace::locate()?;
    let ready = setup::ensure(&workspace)?;
    let binary = build::both(&workspace, &ready, Profile::Release)?;
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    step(format!("soak: {} minutes, --seed {seed}", args.minutes));

    let supplies = Arc::new(Supplies::new()?);
    let children = watch::children();
    // Networks of others must not fill the table while it runs.
    let mut arguments =
        vec!["daemon", "--listen", "127.0.0.1:0", "--label", "remote_net", "--max-series", "20"];
    arguments.extend(args.more.iter().map(String::as_str));
    // Started by this thread: the kernel ends it together with the thread.
    let daemon = Subject::start(&binary, &arguments, "listening on")?;
    let mut soak = Soak::new(daemon, supplies, interrupted, Rng::with_seed(seed))?;
    let report = soak.run(Duration::from_secs(args.minutes * 60), Duration::from_secs(args.every), seed);
    let left = soak.end(&children)?;
    let (mut text, mut failures) = report?;
    let _ = write!(
        text,
        "\nleft behind: {}\n",
        if left.is_empty() { "nothing".to_owned() } else { left.join("; ") }
    );
    failures.extend(left);
    print!("{text}");
    ensure!(failures.is_empty(), "soak: FAILED: {}", failures.join("; "));
    step("soak: nothing grows, every connection was counted, nothing was left behind");
    Ok(())
}

struct Soak {
    daemon: Subject,
    address: String,
    supplies: Arc<Supplies>,
    made: Arc<Made>,
    interrupted: Arc<AtomicBool>,
    rng: Rng,
    begin: Instant,
    /// Scrapes after the first.
    scrapes: u64,
    stops: u64,
    /// Why scrapes failed.
    unanswered: Vec<String>,
    slowest: Duration,
    objects: Objects,
}

impl Soak {
    fn new(daemon: Subject, supplies: Arc<Supplies>, interrupted: Arc<AtomicBool>, rng: Rng) -> Result<Self> {
        let address = daemon.address()?;
        let begin = Instant::now();
        Ok(Self {
            daemon,
            address,
            supplies,
            made: Arc::default(),
            interrupted,
            rng,
            begin,
            scrapes: 0,
            stops: 0,
            unanswered: Vec::new(),
            slowest: Duration::ZERO,
            objects: Objects::default(),
        })
    }

    /// Returns the report and its failures.
    fn run(&mut self, time: Duration, every: Duration, seed: u64) -> Result<(String, Vec<String>)> {
        let host = HostOpens::read()?;
        let first = Scrape::of(&self.address)?;
        self.begin = Instant::now();
        step("four groups of connections, one after another, to find the cost of one group's library files");
        let usages = (0..4).map(|_| self.after_a_group()).collect::<Result<Vec<_>>>()?;
        let per_group = PerGroup::of(&usages);

        step(format!("under load: {} s, a line every {} s", time.as_secs(), every.as_secs()));
        let samples = self.under_load(time, every, seed)?;

        let (counts, last) = self.counted(&first)?;
        let others = HostOpens::read()?;
        let others = HostOpens {
            // One end of each scrape is the daemon's; the number does not include the first.
            active: (others.active - host.active).saturating_sub(self.scrapes + 1),
            passive: (others.passive - host.passive).saturating_sub(self.scrapes + 1),
        };
        let mut failures = std::mem::take(&mut self.unanswered);
        let mut text = self.summary(time, seed, per_group);
        text += &report::trends(&samples, per_group, time, &mut failures);
        text += &report::counts(&counts, others, &mut failures);
        text += &report::losses(&first, &last, &mut failures);
        Ok((text, failures))
    }

    /// What the daemon uses after one group has come and gone.
    fn after_a_group(&mut self) -> Result<Usage> {
        let mut rng = self.rng.fork();
        load::group(&self.supplies, &self.made, &mut rng, &self.interrupted)?;
        self.settled()
    }

    fn summary(&self, time: Duration, seed: u64, per_group: PerGroup) -> String {
        let made = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
        format!(
            "\n{} s, seed {seed}: {} connections, {} of them with TLS, {} refused, {} processes, \
             {} network namespaces with a set of library files each ({} probes a set), {} scrapes \
             (the slowest took {} ms), \
             {} stops of the daemon\n",
            time.as_secs(),
            made(&self.made.established),
            made(&self.made.tls),
            made(&self.made.refused),
            made(&self.made.processes),
            made(&self.made.groups),
            per_group.probes,
            self.scrapes,
            self.slowest.as_millis(),
            self.stops,
        )
    }

    /// What the daemon uses once that no longer changes.
    fn settled(&mut self) -> Result<Usage> {
        let deadline = Instant::now() + TIMEOUT;
        let mut last = self.usage()?;
        loop {
            self.wait(Duration::from_secs(3))?;
            let usage = self.usage()?;
            let is_same = (usage.probes, usage.descriptors) == (last.probes, last.descriptors);
            if is_same || Instant::now() > deadline {
                return Ok(usage);
            }
            last = usage;
        }
    }

    fn under_load(&mut self, time: Duration, every: Duration, seed: u64) -> Result<Vec<Sample>> {
        let load = Load::start(&self.supplies, &self.made, seed);
        let begin = Instant::now();
        let mut samples = Vec::new();
        let (mut next_sample, mut next_scrape) = (begin + every, begin);
        let mut next_stop = begin + self.chance(STOP_AFTER);
        let (mut before, mut since) = (self.usage()?, begin);
        println!("{}", report::HEAD);
        while begin.elapsed() < time {
            if load.has_failed() {
                load.stop()?;
                bail!("the load has ended early");
            }
            let now = Instant::now();
            if now >= next_scrape {
                self.scrape()?;
                next_scrape = now + SCRAPE;
            }
            if now >= next_sample {
                let usage = self.usage()?;
                let sample = Sample {
                    seconds: begin.elapsed().as_secs_f64(),
                    cpu_ms: (usage.cpu_seconds - before.cpu_seconds) * 1e3 / since.elapsed().as_secs_f64(),
                    series: self.scrape()?.series(OURS),
                    made: self.made.established.load(Ordering::Relaxed),
                    tls: self.made.tls.load(Ordering::Relaxed),
                    usage,
                };
                println!("{}", report::line(&sample));
                (before, since) = (sample.usage.clone(), Instant::now());
                samples.push(sample);
                next_sample += every;
            }
            if now >= next_stop {
                let part = self.rng.f64();
                self.stop_for(part)?;
                next_stop = Instant::now() + self.chance(STOP_AFTER);
            }
            self.wait(Duration::from_millis(100))?;
        }
        load.stop()?;
        Ok(samples)
    }

    /// Stops the daemon for a while, as on a host without spare CPU time.
    fn stop_for(&mut self, part: f64) -> Result<()> {
        let time = Duration::from_secs_f64(STOPPED.start + part * (STOPPED.end - STOPPED.start));
        self.stops += 1;
        self.daemon.signal(Signal::STOP)?;
        let waited = self.wait(time);
        self.daemon.signal(Signal::CONT)?;
        waited
    }

    fn chance(&mut self, range: std::ops::Range<f64>) -> Duration {
        Duration::from_secs_f64(range.start + self.rng.f64() * (range.end - range.start))
    }

    /// Sleeps; fails if it is interrupted or the daemon ends.
    fn wait(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        loop {
            ensure!(!self.interrupted.load(Ordering::Relaxed), "interrupted");
            if let Some(status) = self.daemon.has_ended()? {
                bail!("the daemon has ended ({status})");
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            thread::sleep(left.min(Duration::from_millis(100)));
        }
    }

    fn usage(&mut self) -> Result<Usage> {
        let usage = Usage::of(self.daemon.id())?;
        self.objects.extend(&usage.objects);
        Ok(usage)
    }

    fn scrape(&mut self) -> Result<Scrape> {
        let scrape = match Scrape::of(&self.address) {
            Ok(scrape) => scrape,
            // A failure, but no reason to stop looking.
            Err(error) => {
                self.unanswered.push(format!("{:.0?}: {error:#}", self.begin.elapsed()));
                Scrape::of(&self.address)?
            }
        };
        self.scrapes += 1;
        self.slowest = self.slowest.max(scrape.took);
        Ok(scrape)
    }

    /// What was counted since the first scrape, once that is everything or it takes too long.
    fn counted(&mut self, first: &Scrape) -> Result<(Counts, Scrape)> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            self.wait(Duration::from_secs(1))?;
            let last = self.scrape()?;
            let counts = Counts::between(first, &last, &self.made, self.scrapes);
            if counts.are_right() || Instant::now() > deadline {
                return Ok((counts, last));
            }
        }
    }

    /// Ends the daemon. Returns what is left behind.
    fn end(mut self, children: &std::collections::BTreeSet<u32>) -> Result<Vec<String>> {
        let mut left = Vec::new();
        let holders = watch::holders(&self.made.namespaces(), self.daemon.id(), self.supplies.folder());
        if !holders.is_empty() {
            left.push(format!("network namespaces held by {}", holders.join(", ")));
        }
        // The last sample may be too old.
        self.usage().ok();
        self.daemon.signal(Signal::CONT).ok();
        let lines = self.daemon.stop()?;
        if !lines.is_empty() {
            step(format!(
                "the daemon wrote {} lines; the last: {}",
                lines.len(),
                lines[lines.len().saturating_sub(5)..].join("\n  ")
            ));
        }
        // The kernel frees them after a grace period of its own.
        let deadline = Instant::now() + TIMEOUT;
        let mut objects = self.objects.left();
        while !objects.is_empty() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(200));
            objects = objects.left();
        }
        if !objects.is_empty() {
            left.push(format!(
                "{} programs and {} links in the kernel",
                objects.programs.len(),
                objects.links.len()
            ));
        }
        let processes: Vec<_> = watch::children().difference(children).map(u32::to_string).collect();
        if !processes.is_empty() {
            left.push(format!("processes {}", processes.join(", ")));
        }
        Ok(left)
    }
}
