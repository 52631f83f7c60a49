//! Very many network namespaces, with a process in each.

use std::{
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::AtomicBool,
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::{Daemon, Progress, Table, check, ms};
use crate::process::{dies_with_its_parent, step};

pub(super) fn measure(binary: &Path, count: u32, interrupted: &AtomicBool) -> Result<Table> {
    let mut table = Table::default();
    table.row("network namespaces, a process in each", count.to_string());
    let processes = Processes::start(count, interrupted)?;
    let daemon = Daemon::start(binary, &[])?;
    table.row("ready after", ms(daemon.ready));
    table.row("settled after another", ms(daemon.settle(Duration::from_mins(2), interrupted)?));
    let scrape = daemon.scrape()?;
    table.usage("then", &daemon.usage()?, &scrape);
    table.row("CPU time a second, idle", format!("{:.1} ms", daemon.idle_cost(interrupted)?));
    table.row("stop", ms(daemon.stop()?));
    drop(processes);
    Ok(table)
}

/// Processes that sleep, each in its own network namespace. They end when dropped.
struct Processes(Vec<Child>);

impl Processes {
    fn start(count: u32, interrupted: &AtomicBool) -> Result<Self> {
        step(format!("making {count} network namespaces"));
        let mut processes = Self(Vec::new());
        let mut progress = Progress::new("network namespaces", count);
        for _ in 0..count {
            check(interrupted)?;
            let mut command = Command::new("sleep");
            command.arg("infinity").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            dies_with_its_parent(&mut command);
            // SAFETY: between fork and exec only one system call is made, in a process with one thread.
            unsafe {
                command.pre_exec(|| Ok(rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET)?))
            };
            processes.0.push(command.spawn().context("cannot make a process in a network namespace")?);
            progress.at(processes.0.len());
        }
        Ok(processes)
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for child in &mut self.0 {
            child.kill().ok();
        }
        for child in &mut self.0 {
            child.wait().ok();
        }
    }
}
