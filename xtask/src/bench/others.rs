//! `--peers`: other programs that follow TCP connections by eBPF, under the same load.

use std::{
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    thread::UnshareFlags,
};

use crate::process::{self, dies_with_its_parent};

/// A program, where it is on Debian, and the package it comes in.
#[derive(Debug)]
pub(super) struct Other {
    pub(super) name: &'static str,
    program: &'static str,
    package: &'static str,
    arguments: &'static [&'static str],
}

/// Each as its manual has it; bpftrace counts changes of state, the least that it can do.
const OTHERS: [Other; 5] = [
    Other { name: "tcpstates", program: "tcpstates", package: "libbpf-tools", arguments: &[] },
    Other { name: "tcplife", program: "tcplife", package: "libbpf-tools", arguments: &[] },
    Other { name: "tcpconnlat", program: "tcpconnlat", package: "libbpf-tools", arguments: &[] },
    Other { name: "tcprtt", program: "tcprtt", package: "libbpf-tools", arguments: &["-i", "1"] },
    Other {
        name: "bpftrace",
        program: "bpftrace",
        package: "bpftrace",
        arguments: &["-e", "tracepoint:sock:inet_sock_set_state { @[args->newstate] = count(); }"],
    },
];

/// How long one takes to attach, or to fail.
const STARTUP: Duration = Duration::from_secs(3);

/// Those that run here; says on standard error why the others do not.
pub(super) fn that_run() -> Vec<&'static Other> {
    let runs = |other: &&Other| match other.start() {
        Ok(running) => {
            running.stop();
            true
        }
        Err(error) => {
            eprintln!("xtask: without {}: {error:#}", other.name);
            false
        }
    };
    OTHERS.iter().filter(runs).collect()
}

/// One that is running. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Running(Child);

impl Other {
    /// Starts it and waits until it has attached.
    pub(super) fn start(&self) -> Result<Running> {
        let program = process::find_program(self.program)
            .with_context(|| format!("it is not installed (Debian: `apt-get install {}`)", self.package))?;
        let mut command = Command::new(program);
        command.args(self.arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        dies_with_its_parent(&mut command);
        sees_tracefs(&mut command);
        let mut child = command.spawn().context("it cannot be started")?;
        let until = Instant::now() + STARTUP;
        while Instant::now() < until {
            if let Some(status) = child.try_wait().context("cannot wait for it")? {
                bail!("it ends at once ({status}): this kernel lacks what it hooks");
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(Running(child))
    }
}

/// They look for tracepoints in tracefs, which not every host has mounted: each gets a mount of its own, in a
/// mount namespace that ends with it.
fn sees_tracefs(command: &mut Command) {
    let mount_it = || {
        // SAFETY: unshare(2) of the mount namespace; the child has a single thread, and no memory changes.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
        mount_change(c"/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
        match mount(c"tracefs", c"/sys/kernel/tracing", c"tracefs", MountFlags::empty(), None) {
            // It is mounted already.
            Err(rustix::io::Errno::BUSY) => Ok(()),
            mounted => Ok(mounted?),
        }
    };
    // SAFETY: between fork and exec only system calls are made, with strings that are there already.
    unsafe { command.pre_exec(mount_it) };
}

impl Running {
    pub(super) fn stop(self) {
        drop(self);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        rustix::process::kill_process(
            rustix::process::Pid::from_child(&self.0),
            rustix::process::Signal::INT,
        )
        .ok();
        let until = Instant::now() + STARTUP;
        while Instant::now() < until && matches!(self.0.try_wait(), Ok(None)) {
            thread::sleep(Duration::from_millis(20));
        }
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
