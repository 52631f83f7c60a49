//! A process of xtask that holds something until it is told to end.

use std::{
    ffi::OsStr,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::process::dies_with_its_parent;

/// Ends, and with it what it holds, when dropped.
pub(super) struct Holder(Child);

impl Holder {
    /// Starts `xtask scale hold` and waits until it holds what these arguments ask for.
    pub(super) fn start(arguments: &[&OsStr]) -> Result<Self> {
        let xtask = std::env::current_exe().context("cannot find xtask itself")?;
        let mut command = Command::new(xtask);
        command.args(["scale", "hold"]).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        dies_with_its_parent(&mut command);
        let mut holder = Self(command.spawn().context("cannot start xtask again")?);
        let stdout = holder.0.stdout.take().context("no standard output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(line.trim() == READY, "`xtask scale hold` failed: see the message above");
        Ok(holder)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().ok();
    }
}

const READY: &str = "ready";

/// In the process that holds: reports that everything is there, and returns when it is to end.
pub(super) fn ready() -> Result<()> {
    println!("{READY}");
    io::stdout().flush()?;
    io::stdin().read_to_end(&mut Vec::new()).context("cannot wait on standard input")?;
    Ok(())
}
