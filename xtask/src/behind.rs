//! Other commands of xtask behind tests that mostly wait: they get only the CPU time that is left over, and
//! what they write is shown when they have ended.

use std::{
    env,
    fs::{self, File},
    io,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Command, Stdio},
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::{process::step, workspace::Workspace};

/// Commands that run one after the other. They end with xtask.
pub(crate) struct Behind {
    worker: JoinHandle<Vec<Ended>>,
}

/// A command that has ended, or could not be started.
struct Ended {
    command: String,
    log: PathBuf,
    result: Result<()>,
}

impl Behind {
    /// Starts the first of these commands, each a list of arguments for xtask.
    pub(crate) fn start(workspace: &Workspace, commands: Vec<&'static [&'static str]>) -> Self {
        let folder = workspace.target.join("behind");
        let worker = thread::spawn(move || {
            commands
                .into_iter()
                .map(|arguments| {
                    let log = folder.join(format!("{}.log", arguments[0]));
                    let result = fs::create_dir_all(&folder)
                        .map_err(anyhow::Error::from)
                        .and_then(|()| run(arguments, &log));
                    Ended { command: arguments.join(" "), log, result }
                })
                .collect()
        });
        Self { worker }
    }

    /// Waits for all of them, and shows what they wrote. Returns those that failed.
    pub(crate) fn finish(self) -> Vec<String> {
        let Ok(ended) = self.worker.join() else { return vec!["commands behind the tests".to_owned()] };
        let mut failed = Vec::new();
        for Ended { command, log, result } in ended {
            step(format!("test: {command}, which ran behind the tests with root:"));
            eprint!("{}", fs::read_to_string(log).unwrap_or_default());
            if let Err(err) = result {
                step(format!("{command}: {err:#}"));
                failed.push(command);
            }
        }
        failed
    }
}

fn run(arguments: &[&str], log: &PathBuf) -> Result<()> {
    let out = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
    let mut command = Command::new(env::current_exe().context("where is xtask?")?);
    command.args(arguments).stdin(Stdio::null()).stderr(out.try_clone()?).stdout(out);
    // What it starts is in its group, too, and ends with it.
    command.process_group(0);
    // SAFETY: between fork and exec only system calls are made.
    unsafe { command.pre_exec(only_when_idle) };
    let mut child = command.spawn().context("xtask cannot start itself")?;
    let group = Group(Pid::from_child(&child));
    let status = child.wait()?;
    drop(group);
    if !status.success() {
        bail!("failed ({status})");
    }
    Ok(())
}

/// A process group that is killed with this.
struct Group(Pid);

impl Drop for Group {
    fn drop(&mut self) {
        // It has usually ended.
        kill_process_group(self.0, Signal::KILL).ok();
    }
}

/// This process, and those that it will start, run only where nothing else would; they end with the thread
/// that has started this one.
fn only_when_idle() -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // SAFETY: an all-zero `sched_param` is valid: SCHED_IDLE has priority 0 alone.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &std::mem::zeroed()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
