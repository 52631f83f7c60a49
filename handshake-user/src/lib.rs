//! The user side of `handshake`.
//!
//! The way of a connection: [`probe`] attaches the programs, [`ring`] reads what they send, [`record`] says what
//! it means, and a command ([`trace`]) shows it in one of the shapes of [`sink`].

pub mod assemble;
pub mod btf;
pub mod check;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod explain;
pub mod filter;
#[doc(hidden)]
pub mod fuzzing;
pub mod host;
pub mod model;
pub mod probe;
pub mod record;
pub mod ring;
pub mod sink;
pub mod tls;
pub mod trace;
pub mod whole;

use std::{
    io::{self, IsTerminal as _},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use tracing_subscriber::EnvFilter;

use crate::cli::{Cli, Command};

/// Runs one command to its end.
///
/// # Errors
/// When the command fails; the text says what to do.
pub fn run(cli: Cli) -> Result<ExitCode> {
    log_to_stderr(cli.verbose);
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

/// Logs go to standard error: standard output belongs to the records.
fn log_to_stderr(verbose: u8) {
    let default = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    // Colours are for a terminal whose user has not declined them.
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_target(false);
    log.with_ansi(colours).init();
}
