//! The TCP load: without the program, with the daemon and with a trace.

use std::{fmt::Write as _, thread};

use anyhow::Result;

use super::{
    load::Load,
    measure::{BenchMode, Plan, SETTLE, kernel_time},
};
use crate::{
    process::step,
    stats::{median, sorted},
};

/// One measurement in one mode.
#[derive(Clone, Debug)]
struct Sample {
    rate: f64,
    connections: u64,
    user_seconds: f64,
    lost: Vec<String>,
}

pub(super) fn measure(plan: &Plan<'_>) -> Result<String> {
    let load = Load::start()?;
    load.rate_over(plan.window)?;
    let mut samples: Vec<[Sample; 3]> = Vec::new();
    for round in 1..=plan.rounds {
        step(format!("round {round} of {}: without, daemon, trace, {:?} each", plan.rounds, plan.window));
        let [without, daemon, trace] = BenchMode::ALL.map(|mode| sample(&load, plan, mode));
        samples.push([without?, daemon?, trace?]);
    }
    step("kernel time, with the kernel's own statistics on");
    let kernel = kernel_time(plan, "connection", || Ok(load.rate_over(plan.window)?.0))?;
    Ok(format!("{}{kernel}", table(&samples)))
}

fn sample(load: &Load, plan: &Plan<'_>, mode: BenchMode) -> Result<Sample> {
    let Some((arguments, ready)) = mode.command() else {
        thread::sleep(SETTLE);
        let (connections, rate) = load.rate_over(plan.window)?;
        return Ok(Sample { rate, connections, user_seconds: 0.0, lost: Vec::new() });
    };
    let subject = plan.start(arguments, ready)?;
    let before = subject.user_seconds()?;
    let (connections, rate) = load.rate_over(plan.window)?;
    let user_seconds = subject.user_seconds()? - before;
    let lost = subject.stop()?.into_iter().filter(|line| line.contains("lost")).collect();
    Ok(Sample { rate, connections, user_seconds, lost })
}

fn table(samples: &[[Sample; 3]]) -> String {
    let mut text = format!(
        "{:<14} {:>9} {:>9} {:>9}  {:>22}  {:>18}  {}\n",
        "", "conn/s", "min", "max", "ratio (median of pairs)", "user s / 100k conn", "lost"
    );
    for (index, mode) in BenchMode::ALL.into_iter().enumerate() {
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
            mode.name(),
            median(&ratios),
        );
    }
    text
}
