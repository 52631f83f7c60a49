//! The daemons of a fleet as a collector sees them: `otlp-fleet URL FOLDER RATE`.
//!
//! FOLDER has a file of records for each host, as packaging/fleet/simulate.py makes them. Each host exports
//! its connections as its daemon would, by an exporter, a thread and a connection of its own. RATE:
//! connections a second of each host, all hosts at once; or 0: as fast as the collector takes them, a few
//! hosts at a time.

use std::{
    env,
    fs::{self, File},
    io::{BufRead as _, BufReader, Lines},
    path::{Path, PathBuf},
    thread::{self, sleep},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use flate2::bufread::MultiGzDecoder;
use handshake::{
    event::ConnectionEvent,
    otlp::{Counts, Endpoint, Exporters, Sampling, Share, Signal, Targets, TraceExporter},
};

/// Hosts at a time without a rate.
const HOSTS: usize = 4;
/// How often a host with a rate has new connections.
const TICK: Duration = Duration::from_millis(100);
/// How long the collector may take for the rest.
const PATIENCE: Duration = Duration::from_mins(1);

/// A host, and what is left of its records.
struct Host {
    records: Lines<BufReader<MultiGzDecoder<BufReader<File>>>>,
    exporter: TraceExporter,
    is_done: bool,
}

impl Host {
    fn start(path: &Path, collector: &Endpoint) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let records = BufReader::new(MultiGzDecoder::new(BufReader::new(file))).lines();
        let targets = Targets::new(Some(collector), &[Signal::Traces], |_| None)?;
        let exporters = Exporters::start(targets, Sampling { share: Share::ALL, slow: None })?;
        Ok(Self { records, exporter: exporters.traces.context("no traces")?, is_done: false })
    }

    /// Takes so many connections more.
    fn take(&mut self, connections: u64) -> Result<()> {
        let enough = self.exporter.counts().sampled.saturating_add(connections);
        while !self.is_done && self.exporter.counts().sampled < enough {
            match self.records.next() {
                Some(line) => {
                    let record: ConnectionEvent = serde_json::from_str(&line?)?;
                    self.exporter.take(&record);
                }
                None => self.is_done = true,
            }
        }
        self.exporter.turn();
        Ok(())
    }

    /// Whether all its spans have been taken or dropped.
    fn is_settled(&self) -> bool {
        let Counts { spans, exported, dropped, .. } = self.exporter.counts();
        exported + dropped.iter().sum::<u64>() >= spans
    }
}

/// What became of all.
#[derive(Default)]
struct Sum {
    connections: u64,
    spans: u64,
    dropped: u64,
}

impl Sum {
    fn add(&mut self, host: Host) {
        let Counts { sampled, spans, dropped, .. } = host.exporter.counts();
        self.connections += sampled;
        self.spans += spans;
        self.dropped += dropped.iter().sum::<u64>() + host.exporter.finish();
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [url, folder, rate] = &arguments[..] else { bail!("usage: otlp-fleet URL FOLDER RATE") };
    let (collector, rate): (Endpoint, u64) = (url.parse()?, rate.parse()?);
    let files = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let begin = Instant::now();
    let sum = if rate > 0 { at_rate(&files, &collector, rate)? } else { at_most(&files, &collector)? };
    let Sum { connections, spans, dropped } = sum;
    println!(
        "{}",
        serde_json::json!({
            "connections": connections, "spans": spans, "dropped": dropped, "seconds": begin.elapsed().as_secs_f64()
        })
    );
    Ok(())
}

/// All hosts at once, each with so many connections a second.
fn at_rate(files: &[PathBuf], collector: &Endpoint, rate: u64) -> Result<Sum> {
    let mut hosts = files.iter().map(|file| Host::start(file, collector)).collect::<Result<Vec<_>>>()?;
    let begin = Instant::now();
    let per_second = 1000 / TICK.as_millis();
    for tick in 0.. {
        if hosts.iter().all(|host| host.is_done) {
            break;
        }
        for (number, host) in (0..).zip(&mut hosts) {
            // Spread over the ticks, and not the same for all hosts.
            let upto = |tick: u128| (u128::from(rate) * tick + number) / per_second;
            host.take(u64::try_from(upto(tick + 1) - upto(tick))?)?;
        }
        let next = begin + TICK * u32::try_from(tick + 1)?;
        sleep(next.saturating_duration_since(Instant::now()));
    }
    let rest = Instant::now();
    while rest.elapsed() < PATIENCE && !hosts.iter().all(Host::is_settled) {
        hosts.iter_mut().try_for_each(|host| host.take(0))?;
        sleep(TICK);
    }
    let mut sum = Sum::default();
    for host in hosts {
        sum.add(host);
    }
    Ok(sum)
}

/// A few hosts at a time, as fast as the collector takes it.
fn at_most(files: &[PathBuf], collector: &Endpoint) -> Result<Sum> {
    let share = files.len().div_ceil(HOSTS).max(1);
    thread::scope(|scope| {
        let of_each = files.chunks(share).map(|files| {
            scope.spawn(move || -> Result<Sum> {
                let mut sum = Sum::default();
                for file in files {
                    let mut host = Host::start(file, collector)?;
                    host.take(u64::MAX)?;
                    sum.add(host);
                }
                Ok(sum)
            })
        });
        let threads: Vec<_> = of_each.collect();
        threads.into_iter().try_fold(Sum::default(), |all, thread| {
            let Ok(of_it) = thread.join() else { bail!("a thread panicked") };
            let Sum { connections, spans, dropped } = of_it?;
            Ok(Sum {
                connections: all.connections + connections,
                spans: all.spans + spans,
                dropped: all.dropped + dropped,
            })
        })
    })
}
