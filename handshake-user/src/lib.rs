//! The user space side of `handshake`.
//!
//! A connection passes through [`kernel`], which attaches the programs and reads their records, [`join`],
//! which merges what the views saw of it into an [`event`], and a command ([`cmd`]), which shows it
//! ([`output`], [`exporter`]). [`tracer`] holds everything that is attached.
#![warn(clippy::unwrap_used)]

pub mod aggregate;
pub mod bounded;
pub mod bounded_map;
pub mod buckets;
pub mod cgroup;
pub mod cli;
pub mod cmd;
pub mod config;
pub mod cryptography;
pub mod descriptors;
pub mod event;
pub mod exporter;
pub mod filter;
pub mod fuzzing;
pub mod host;
pub mod join;
pub mod kernel;
pub mod logging;
pub mod minisockets;
pub mod otlp;
pub mod output;
pub mod privileges;
pub mod recording;
pub mod redact;
pub mod redaction;
pub mod report;
pub mod settings;
#[cfg(test)]
mod skip_test;
pub mod stderr;
pub mod tls;
pub mod tracer;
mod unit;
pub mod untrusted;

use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::{
    cli::{Cli, Command},
    cmd::{check, daemon, explain, top, trace},
};

/// Runs one command to its end.
///
/// # Errors
/// When the command fails; the text says what to do.
pub fn run(cli: Cli) -> Result<ExitCode> {
    logging::to_stderr(cli.verbose);
    descriptors::raise_limit();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    match cli.command {
        Command::Trace(args) => runtime.block_on(trace::run(args)),
        Command::Top(args) => runtime.block_on(top::run(args)),
        Command::Daemon(args) => runtime.block_on(daemon::run(args)),
        Command::Check(args) => check::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Record(args) => runtime.block_on(cmd::record::run(args)),
        Command::Report(args) => runtime.block_on(cmd::report::run(args)),
    }
}
