//! `handshake check`: what this kernel and this host offer, tried out where possible.

mod functions;
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
        // The reader has had enough (head, for example); the status still counts.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            return Err(error).context("cannot write the report to standard output");
        }
        _ => {}
    }
    Ok(if report.works { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Examines everything. What cannot be examined is part of the report, not an error.
fn look() -> Report {
    let cgroup2 = host::cgroup2();
    let namespaces = namespaces::look(cgroup2.as_ref());
    let known = probe::Kernel::read();
    let kernel = kernel::look(&known, cgroup2.as_ref());
    let loadable = known.as_ref().map_err(ToString::to_string);
    let loadable =
        loadable.and_then(|known| known.layout().map(|_| known).map_err(|error| error.to_string()));
    let (probes, reason) = match &loadable {
        Ok(known) => probes::look(known, kernel.tracefs.readable),
        Err(reason) => (probes::not_loadable(reason), Some(reason.clone())),
    };
    let (tls_libraries, tls_shortfalls) = match (loadable, probes.mode) {
        (Ok(known), Some(mode)) => {
            libraries::look(known, mode).unwrap_or_else(|why| (Vec::new(), vec![format!("{why:#}")]))
        }
        _ => (Vec::new(), vec!["finding them needs tracing to work".to_owned()]),
    };
    let tiers = tiers::look(&known);
    let functions = functions::look(&known);
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
        functions,
        netns: sysctls::netns(),
        sysctls: sysctls::look(),
    }
}
