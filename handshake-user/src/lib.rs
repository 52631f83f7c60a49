//! The user side of `handshake`.
//!
//! The way of a connection: [`probe`] attaches the programs, [`ring`] reads what they send, [`record`] says what
//! it means, and a command ([`trace`]) shows it in one of the shapes of [`sink`].

pub mod assemble;
pub mod bounded;
pub mod btf;
pub mod check;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod descriptors;
pub mod explain;
pub mod filter;
#[doc(hidden)]
pub mod fuzzing;
pub mod host;
pub mod logging;
pub mod model;
pub mod probe;
pub mod record;
pub mod ring;
pub mod sink;
pub mod tls;
pub mod trace;
pub mod untrusted;
pub mod whole;

use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::cli::{Cli, Command};

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
