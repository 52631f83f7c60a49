//! The user side of `handshake`.
//!
//! The way of a connection: [`kernel`] attaches the programs and reads what they send, [`join`] puts together what
//! they saw of one connection, [`model`] and [`record`] say what it means, and a command ([`cmd`]) shows it ([`output`],
//! [`exporter`]).

pub mod bounded;
pub mod bounded_map;
pub mod cli;
pub mod cmd;
pub mod config;
pub mod descriptors;
pub mod event;
pub mod exporter;
pub mod filter;
pub mod fuzzing;
pub mod host;
pub mod join;
pub mod kernel;
pub mod logging;
pub mod output;
pub mod tls;
pub mod untrusted;
#[doc(hidden)]
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::{
    cli::{Cli, Command},
    cmd::{check, daemon, explain, trace},
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
        Command::Daemon(args) => runtime.block_on(daemon::run(args)),
        Command::Check(args) => check::run(&args),
        Command::Explain(args) => explain::run(&args),
    }
}
