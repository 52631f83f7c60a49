//! The TLS loads: nginx and its clients on one loopback, full and resumed handshakes, without and with the
//! daemon. Both ends use the system's OpenSSL, so each handshake is seen twice.

mod client;

use std::{fmt::Write as _, thread, time::Duration};

use anyhow::{Context as _, Result, bail};

use self::client::{Done, Kind};
use super::{
    cpu::Shares,
    load,
    measure::{BenchMode, Plan, SETTLE, cpu_shares, kernel_time},
    nginx::Server,
    ratio::Ratio,
};
use crate::{
    process::step,
    stats::{median, sorted},
};

/// One measurement.
#[derive(Clone, Debug)]
struct Sample {
    done: Done,
    /// Of the server and the clients, in seconds: the cost of the probes falls there.
    cpu_seconds: f64,
    /// Of the daemon.
    user_seconds: f64,
    lost: Vec<String>,
}

impl Sample {
    fn rate(&self) -> f64 {
        self.per_handshake(self.done.seconds).recip()
    }

    fn cpu_per_handshake(&self) -> f64 {
        self.per_handshake(self.cpu_seconds)
    }

    #[expect(clippy::cast_precision_loss, reason = "a count of seconds' worth of handshakes")]
    fn per_handshake(&self, seconds: f64) -> f64 {
        seconds / self.done.handshakes as f64
    }
}

/// One round: without and with the daemon.
type Pair = [Sample; 2];

/// Measures both kinds of handshakes, in a thread that is alone in a network namespace with its children.
pub(super) fn measure(plan: &Plan<'_>) -> Result<String> {
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            load::make_namespace()?;
            let server = Server::start()?;
            Kind::ALL.into_iter().map(|kind| one_kind(&server, kind, plan)).collect()
        });
        worker.join().unwrap_or_else(|_| bail!("the thread of the TLS load panicked"))
    })
}

fn one_kind(server: &Server, kind: Kind, plan: &Plan<'_>) -> Result<String> {
    kind.run(Duration::from_secs(1))?;
    let mut pairs: Vec<Pair> = Vec::new();
    for round in 1..=plan.rounds {
        let what = kind.name();
        step(format!(
            "TLS {what}, round {round} of {}: without, daemon, {:?} each",
            plan.rounds, plan.window
        ));
        let [without, daemon] =
            [BenchMode::Without, BenchMode::Daemon].map(|mode| sample(server, kind, plan, mode));
        pairs.push([without?, daemon?]);
    }
    let shares =
        cpu_shares(plan, &format!("TLS {}", kind.name()), false, |sample| under(kind, plan, sample))?;
    step("kernel time, with the kernel's own statistics on");
    let kernel = kernel_time(plan, "handshake", || Ok(kind.run(plan.window)?.handshakes))?;
    Ok(format!("{}{shares}{kernel}", table(kind, &pairs)))
}

/// Samples while the clients run.
fn under(kind: Kind, plan: &Plan<'_>, sample: &mut dyn FnMut() -> Result<Shares>) -> Result<Shares> {
    thread::scope(|scope| {
        // It outlives the sampling, which takes a while to begin.
        let load = scope.spawn(|| kind.run(plan.window + Duration::from_secs(1)));
        let shares = sample();
        load.join().unwrap_or_else(|_| bail!("the thread of the TLS load panicked"))?;
        shares
    })
}

fn sample(server: &Server, kind: Kind, plan: &Plan<'_>, mode: BenchMode) -> Result<Sample> {
    let measured = || {
        let before = server.cpu_seconds()?;
        let done = kind.run(plan.window)?;
        let cpu_seconds = server.cpu_seconds()? - before + done.cpu_seconds;
        Ok::<_, anyhow::Error>(Sample { done, cpu_seconds, user_seconds: 0.0, lost: Vec::new() })
    };
    let Some((arguments, ready)) = mode.command() else {
        thread::sleep(SETTLE);
        return measured();
    };
    let subject = plan.start(arguments, ready)?;
    let before = subject.user_seconds()?;
    let sample = measured().context("while the daemon was running")?;
    let user_seconds = subject.user_seconds()? - before;
    let lost = subject.stop()?.into_iter().filter(|line| line.contains("lost")).collect();
    Ok(Sample { user_seconds, lost, ..sample })
}

fn table(kind: Kind, pairs: &[Pair]) -> String {
    let mut text = format!(
        "\n{:<14} {:>11} {:>7} {:>7}  {}  {:>15} {}  {:>18}  {:>16}  {}\n",
        format!("TLS {}", kind.name()),
        "handshake/s",
        "min",
        "max",
        Ratio::HEAD,
        "CPU µs/handsh.",
        Ratio::HEAD,
        "daemon's user µs",
        "p50, p99 ms",
        "lost"
    );
    for (index, mode) in [BenchMode::Without, BenchMode::Daemon].into_iter().enumerate() {
        let of = |value: fn(&Sample) -> f64| sorted(pairs.iter().map(|pair| value(&pair[index])));
        let ratio = |value: fn(&Sample) -> f64| {
            Ratio::of(pairs.iter().map(|pair| value(&pair[index]) / value(&pair[0])))
        };
        let rates = of(Sample::rate);
        let latency =
            pairs.iter().map(|pair| pair[index].done.latency).collect::<Option<Vec<_>>>().map_or_else(
                || "-".to_owned(),
                |all| {
                    let of = |value: fn(&(f64, f64)) -> f64| median(&sorted(all.iter().map(value))) * 1e3;
                    format!("{:.2}, {:.2}", of(|it| it.0), of(|it| it.1))
                },
            );
        let lost: Vec<_> = pairs.iter().flat_map(|pair| &pair[index].lost).map(String::as_str).collect();
        let _ = writeln!(
            text,
            "{:<14} {:>11.0} {:>7.0} {:>7.0}  {}  {:>15.1} {}  {:>18.2}  {latency:>16}  {}",
            mode.name(),
            median(&rates),
            rates.first().unwrap_or(&0.0),
            rates.last().unwrap_or(&0.0),
            ratio(Sample::rate),
            median(&of(Sample::cpu_per_handshake)) * 1e6,
            ratio(Sample::cpu_per_handshake),
            median(&of(|sample| sample.per_handshake(sample.user_seconds))) * 1e6,
            if lost.is_empty() { "none".to_owned() } else { lost.join("; ") },
        );
    }
    text
}
