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
    records::{self, BadLine, Records, complaint},
};
use crate::{
    cli::ReportArgs,
    report::{Collector, Report, html::html, text::text},
    untrusted::{self, Untrusted, say},
};

/// Reports on files, or for a duration. A line that is no record, or that its compressed file ends in, is
/// reported on standard error with its number, and the exit status is 1.
///
/// # Errors
/// When an input cannot be read, the probes cannot be attached or the output cannot be written.
pub async fn run(args: ReportArgs) -> Result<ExitCode> {
    args.filters.notes().iter().for_each(say);
    let report = match args.duration {
        Some(duration) => trace(&args, duration).await?,
        None => read(&args)?,
    };
    write(&args, &report)?;
    Ok(if report.bad_lines + report.cut_off == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn read(args: &ReportArgs) -> Result<Report> {
    let filter = args.filters.filter();
    let mut collector = Collector::default();
    for file in &args.files {
        let (name, mut input) = records::open(file)?;
        let mut records = Records::new(&mut *input);
        while let Some((line, record)) = records.next().with_context(|| format!("cannot read {name}"))? {
            match record {
                Ok(record) if filter.passes(&record) => collector.take(record),
                Ok(_) => {}
                Err(error) => {
                    match error {
                        BadLine::CutOff => collector.cut_off(),
                        BadLine::TooLong | BadLine::NotARecord(_) => collector.bad_line(),
                    }
                    say(complaint(&name, line, &error));
                }
            }
        }
    }
    Ok(collector.finish(0))
}

async fn trace(args: &ReportArgs, duration: Duration) -> Result<Report> {
    let filter = args.filters.filter();
    let mut collector = Collector::default();
    let attached = Attached::new(&args.probes)?;
    let mut turns = Turns::new(Some(duration))?;
    let mut live = attached.follow()?;
    loop {
        let last = turns.next(&live).await;
        live.turn(last, |event| {
            if filter.passes(&event) {
                collector.take(event);
            }
            ControlFlow::Continue(())
        });
        if last {
            break;
        }
    }
    Ok(collector.finish(live.losses()?.records))
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
