//! The loads without TLS: without the program, with the daemon and with a trace, and with other programs.

use std::{fmt::Write as _, thread};

use anyhow::Result;

use super::{
    hooks::{self, Hooks},
    load::Load,
    measure::{BenchMode, Plan, SETTLE, cpu_shares, kernel_time},
    others::Other,
    ratio::Ratio,
};
use crate::{
    process::step,
    stats::{median, sorted},
};

/// One measurement in one mode.
#[derive(Clone, Debug, Default)]
struct Sample {
    rate: f64,
    connections: u64,
    /// `None` for programs of others.
    user_seconds: Option<f64>,
    lost: Vec<String>,
}

/// Measures each in turn, round after round.
pub(super) fn measure(plan: &Plan<'_>, name: &str, load: &dyn Load, others: &[&Other]) -> Result<String> {
    load.rate_over(plan.window)?;
    let own = BenchMode::ALL.iter().map(|mode| mode.name());
    let names: Vec<_> = own.chain([hooks::NAME]).chain(others.iter().map(|other| other.name)).collect();
    let mut rounds: Vec<Vec<Sample>> = Vec::new();
    for round in 1..=plan.rounds {
        step(format!(
            "{name}, round {round} of {}: {}, {:?} each",
            plan.rounds,
            names.join(", "),
            plan.window
        ));
        let own = BenchMode::ALL.into_iter().map(|mode| sample(load, plan, mode));
        rounds.push(
            own.chain([sample_hooks(load, plan)])
                .chain(others.iter().map(|other| sample_other(load, plan, other)))
                .collect::<Result<_>>()?,
        );
    }
    let shares = cpu_shares(plan, name, true, |sample| sample())?;
    step("kernel time, with the kernel's own statistics on");
    let kernel = kernel_time(plan, "connection", || Ok(load.rate_over(plan.window)?.0))?;
    Ok(format!("{}{shares}{kernel}", table(name, &names, &rounds)))
}

fn sample(load: &dyn Load, plan: &Plan<'_>, mode: BenchMode) -> Result<Sample> {
    let Some((arguments, ready)) = mode.command() else {
        thread::sleep(SETTLE);
        let (connections, rate) = load.rate_over(plan.window)?;
        return Ok(Sample { rate, connections, user_seconds: Some(0.0), lost: Vec::new() });
    };
    let subject = plan.start(arguments, ready)?;
    let before = subject.user_seconds()?;
    let (connections, rate) = load.rate_over(plan.window)?;
    let user_seconds = Some(subject.user_seconds()? - before);
    let lost = subject.stop()?.into_iter().filter(|line| line.contains("lost")).collect();
    Ok(Sample { rate, connections, user_seconds, lost })
}

fn sample_hooks(load: &dyn Load, plan: &Plan<'_>) -> Result<Sample> {
    let attached = Hooks::attach()?;
    thread::sleep(SETTLE);
    let (connections, rate) = load.rate_over(plan.window)?;
    drop(attached);
    Ok(Sample { rate, connections, ..Sample::default() })
}

fn sample_other(load: &dyn Load, plan: &Plan<'_>, other: &Other) -> Result<Sample> {
    let running = other.start()?;
    let (connections, rate) = load.rate_over(plan.window)?;
    running.stop();
    Ok(Sample { rate, connections, ..Sample::default() })
}

fn table(name: &str, names: &[&str], rounds: &[Vec<Sample>]) -> String {
    let mut text = format!(
        "\n{name:<14} {:>9} {:>9} {:>9}  {}  {:>18}  {}\n",
        "conn/s",
        "min",
        "max",
        Ratio::HEAD,
        "user s / 100k conn",
        "lost"
    );
    for (index, mode) in names.iter().enumerate() {
        let rates = sorted(rounds.iter().map(|round| round[index].rate));
        let ratio = Ratio::of(rounds.iter().map(|round| round[index].rate / round[0].rate));
        let connections: u64 = rounds.iter().map(|round| round[index].connections).sum();
        let user: Option<f64> = rounds.iter().map(|round| round[index].user_seconds).sum();
        let lost: Vec<&str> =
            rounds.iter().flat_map(|round| &round[index].lost).map(String::as_str).collect();
        let lost = match user {
            None => "-".to_owned(),
            Some(_) if lost.is_empty() => "none".to_owned(),
            Some(_) => lost.join("; "),
        };
        #[expect(clippy::cast_precision_loss, reason = "a count of connections")]
        let per_100k =
            user.map_or("-".to_owned(), |user| format!("{:.3}", user / (connections as f64) * 1e5));
        let (rate, least, most) = (median(&rates), rates.first(), rates.last());
        let (least, most) = (least.copied().unwrap_or(0.0), most.copied().unwrap_or(0.0));
        let _ = writeln!(
            text,
            "{mode:<14} {rate:>9.0} {least:>9.0} {most:>9.0}  {ratio}  {per_100k:>18}  {lost}"
        );
    }
    text
}
