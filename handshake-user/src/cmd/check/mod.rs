//! `handshake check`: what this kernel and this host offer, tried out where that can be.

mod kernel;
mod libraries;
mod namespaces;
mod privileges;
mod probes;
mod report;
mod sysctls;
mod text;
mod tiers;

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::{Context as _, Result};

pub use report::{Finding, Report, State};

use crate::{cli::CheckArgs, host, kernel::probe, untrusted};

/// Writes the report. The exit status says whether tracing would work.
///
/// # Errors
/// When the report cannot be written.
pub fn run(args: &CheckArgs) -> Result<ExitCode> {
    let report = look();
    let text = if args.json {
        let json = serde_json::to_string_pretty(&report).context("cannot put the report into JSON")?;
        untrusted::json(json + "\n")
    } else {
        text::render(&report)
    };
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // Whoever read us, head for one, has enough; the status still counts.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            return Err(error).context("cannot write the report to standard output");
        }
        _ => {}
    }
    Ok(if report.works { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Looks at everything. What cannot be looked at is part of the report, not an error.
fn look() -> Report {
    let cgroup2 = host::cgroup2();
    let namespaces = namespaces::look(cgroup2.as_ref());
    let kernel = kernel::look(cgroup2.as_ref());
    let known = probe::Kernel::read();
    let (probes, reason) = match &known {
        Ok(known) => probes::look(known, kernel.tracefs.readable),
        Err(error) => (probes::without_a_kernel(&error.to_string()), Some(error.to_string())),
    };
    let (tls_libraries, tls_shortfalls) = match (&known, probes.way) {
        (Ok(known), Some(way)) => libraries::look(known, way).unwrap_or_else(|why| (Vec::new(), vec![why])),
        _ => (Vec::new(), vec!["finding them needs tracing to work".to_owned()]),
    };
    let tiers = tiers::look();
    Report {
        schema: report::SCHEMA,
        version: env!("CARGO_PKG_VERSION"),
        works: reason.is_none(),
        reason,
        kernel,
        privileges: privileges::look(&namespaces),
        namespaces,
        probes,
        tls_libraries,
        tls_shortfalls,
        tiers,
        netns: sysctls::netns(),
        sysctls: sysctls::look(),
    }
}
