//! `handshake report`: the story of records, or of the connections of the next while.

use std::{
    fs,
    io::{self, Write as _},
    ops::ControlFlow,
    path::Path,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::{
    live::{Attached, Turns},
    records::Inputs,
};
use crate::{
    cli::ReportArgs,
    redact::Gate,
    report::{Collector, Missing, Report, html::html, text::text},
    untrusted::{self, Untrusted, say},
};

/// Reports on files, or for a duration. A line that is no record, or from which on a file cannot be read, is
/// reported on standard error with its number, and the exit status is 1.
///
/// # Errors
/// When an input cannot be read, the probes cannot be attached or the output cannot be written.
pub async fn run(args: ReportArgs) -> Result<ExitCode> {
    args.filters.notes().iter().for_each(say);
    let gate = Gate::new(args.filters.filter(), &args.redact)?;
    let report = match args.duration {
        Some(duration) => trace(&args, &gate, duration).await?,
        None => read(&args, &gate)?,
    };
    write(&args, &report)?;
    Ok(if report.bad_lines + report.cut_off == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn read(args: &ReportArgs, gate: &Gate) -> Result<Report> {
    let mut collector = Collector::default();
    let missing = Inputs::find(&args.files)?.read(|record| {
        if let Some(record) = gate.pass(record) {
            collector.take(record);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(collector.finish(Missing { bad_lines: missing.lines, cut_off: missing.cut_off, lost: 0 }))
}

async fn trace(args: &ReportArgs, gate: &Gate, duration: Duration) -> Result<Report> {
    let mut collector = Collector::default();
    let attached = Attached::new(&args.probes)?;
    let mut turns = Turns::new(Some(duration))?;
    let mut live = attached.follow()?;
    loop {
        let last = turns.next(&live).await;
        live.turn(last, |event| {
            if let Some(event) = gate.pass(event) {
                collector.take(event);
            }
            ControlFlow::Continue(())
        });
        if last {
            break;
        }
    }
    Ok(collector.finish(Missing { lost: live.losses()?.records, ..Missing::default() }))
}

fn write(args: &ReportArgs, report: &Report) -> Result<()> {
    let written = match &args.html {
        Some(path) if path.as_os_str() != "-" => {
            return write_file(path, &html(report));
        }
        Some(_) => html(report),
        None if args.json => untrusted::json(serde_json::to_string_pretty(report)?) + "\n",
        None => text(report),
    };
    let mut out = io::stdout().lock();
    match out.write_all(written.as_bytes()).and_then(|()| out.flush()) {
        // The reader, such as `head`, has had enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write to standard output"),
    }
}

fn write_file(path: &Path, page: &str) -> Result<()> {
    fs::write(path, page).with_context(|| format!("cannot write {}", Untrusted::from(path)))
}
