//! Bulk transfer on loopback, over one connection and as fast as the machine can: what the program costs
//! packets outside of handshakes.

use std::{
    fmt::Write as _,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    load::make_namespace,
    measure::{BenchMode, Plan, SETTLE, kernel_time},
    ratio::Ratio,
};
use crate::{
    process::step,
    stats::{median, sorted},
};

const BUFFER: usize = 1 << 20;

/// What is compared, and the arguments of the daemon for it.
const MODES: [(&str, Option<&[&str]>); 3] =
    [("without", None), ("daemon, no wire", Some(&["--tls-wire", "off"])), ("daemon", Some(&[]))];

/// The transfer, in a network namespace of its own. Ends when dropped.
struct Transfer {
    stop: Arc<AtomicBool>,
    bytes: Arc<AtomicU64>,
    worker: Option<JoinHandle<Result<()>>>,
}

impl Transfer {
    fn start() -> Result<Self> {
        let (stop, bytes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ready, started) = mpsc::channel();
        let worker = thread::spawn({
            let (stop, bytes) = (stop.clone(), bytes.clone());
            move || {
                let connected = make_namespace().and_then(|()| {
                    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
                    let sender = TcpStream::connect(listener.local_addr()?)?;
                    Ok((sender, listener.accept()?.0))
                });
                let (mut sender, receiver) = match connected {
                    Ok(pair) => pair,
                    Err(error) => {
                        ready.send(Err(error)).ok();
                        return Ok(());
                    }
                };
                let receiving = thread::spawn(move || receive(receiver, &bytes));
                ready.send(Ok(())).ok();
                let buffer = vec![0; BUFFER];
                while !stop.load(Ordering::Relaxed) {
                    sender.write_all(&buffer)?;
                }
                drop(sender);
                receiving.join().unwrap_or_else(|_| bail!("the receiver panicked"))
            }
        });
        started.recv().context("the transfer's thread died")??;
        Ok(Self { stop, bytes, worker: Some(worker) })
    }

    /// Lets it run for `time`; returns bytes, and bytes per second.
    #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
    fn rate_over(&self, time: Duration) -> Result<(u64, f64)> {
        let (before, begin) = (self.bytes.load(Ordering::Relaxed), Instant::now());
        thread::sleep(time);
        let moved = self.bytes.load(Ordering::Relaxed) - before;
        ensure!(moved > 0, "nothing was transferred in {time:?}");
        Ok((moved, moved as f64 / begin.elapsed().as_secs_f64()))
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(Ok(Err(error))) = self.worker.take().map(JoinHandle::join) {
            eprintln!("xtask: the transfer failed: {error:#}");
        }
    }
}

fn receive(mut receiver: TcpStream, bytes: &AtomicU64) -> Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match receiver.read(&mut buffer)? {
            0 => return Ok(()),
            read => bytes.fetch_add(read as u64, Ordering::Relaxed),
        };
    }
}

/// Measures all modes in turn, round after round, then the kernel time of the last.
pub(super) fn measure(plan: &Plan<'_>) -> Result<String> {
    let transfer = Transfer::start()?;
    transfer.rate_over(plan.window)?;
    let mut rounds: Vec<[f64; MODES.len()]> = Vec::new();
    for round in 1..=plan.rounds {
        step(format!("bulk, round {round} of {}: {:?} in each mode", plan.rounds, plan.window));
        let mut rates = [0.0; MODES.len()];
        for (rate, (_, arguments)) in rates.iter_mut().zip(MODES) {
            *rate = sample(&transfer, plan, arguments)?;
        }
        rounds.push(rates);
    }
    step("kernel time, with the kernel's own statistics on");
    let kernel = kernel_time(plan, "MB", || Ok(transfer.rate_over(plan.window)?.0 / 1_000_000))?;
    Ok(format!("{}{kernel}", table(&rounds)))
}

fn sample(transfer: &Transfer, plan: &Plan<'_>, arguments: Option<&[&str]>) -> Result<f64> {
    let Some(arguments) = arguments else {
        thread::sleep(SETTLE);
        return Ok(transfer.rate_over(plan.window)?.1);
    };
    let (daemon, ready) = BenchMode::Daemon.command().context("the daemon has a command")?;
    let arguments = [daemon, arguments].concat();
    let subject = plan.start(&arguments, ready)?;
    let rate = transfer.rate_over(plan.window)?.1;
    subject.stop()?;
    Ok(rate)
}

fn table(rounds: &[[f64; MODES.len()]]) -> String {
    let mut text = format!("\n{:<16} {:>8} {:>8} {:>8}  {}\n", "bulk", "GB/s", "min", "max", Ratio::HEAD);
    for (index, (name, _)) in MODES.into_iter().enumerate() {
        let rates = sorted(rounds.iter().map(|round| round[index] / 1e9));
        let ratio = Ratio::of(rounds.iter().map(|round| round[index] / round[0]));
        let _ = writeln!(
            text,
            "{name:<16} {:>8.2} {:>8.2} {:>8.2}  {ratio}",
            median(&rates),
            rates.first().unwrap_or(&0.0),
            rates.last().unwrap_or(&0.0),
        );
    }
    text
}
