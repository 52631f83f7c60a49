//! Work that goes on behind the tests. It is of the scheduler's idle class (sched(7), `SCHED_IDLE`): it gets
//! the CPUs that the tests leave, and gives them back at once.

use std::{
    env,
    fs::{self, File},
    io::{self, Write as _},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    process::{dies_with_its_parent, step},
    workspace::Workspace,
};

/// A command of xtask that runs behind this one. Ended when dropped.
pub(crate) struct Behind {
    what: String,
    child: Child,
    /// What it says.
    log: PathBuf,
}

impl Behind {
    /// Starts `cargo xtask` with these arguments.
    pub(crate) fn start(workspace: &Workspace, arguments: &[&str]) -> Result<Self> {
        let what = format!("cargo xtask {}", arguments.join(" "));
        let log = workspace.target.join(format!("{}.log", arguments.join("")));
        let file = File::create(&log)
            .with_context(|| format!("cannot create {}: is the disk full?", log.display()))?;
        let mut command = Command::new("chrt");
        command.args(["--idle", "0"]).arg(env::current_exe().context("xtask's own file is unknown")?);
        command.args(arguments).stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        dies_with_its_parent(&mut command);
        step(format!("{what}: runs behind the tests; what it says: {}", log.display()));
        let child = command.spawn().context("`chrt` cannot be started: is util-linux installed?")?;
        Ok(Self { what, child, log })
    }

    /// Waits for its end, and tells what it said.
    ///
    /// # Errors
    /// If it failed.
    pub(crate) fn finish(mut self) -> Result<()> {
        if self.child.try_wait()?.is_none() {
            step(format!("waiting for {}: {}", self.what, self.log.display()));
        }
        let status = self.child.wait().with_context(|| format!("waiting for {}", self.what))?;
        let said = fs::read(&self.log).with_context(|| format!("cannot read {}", self.log.display()))?;
        io::stderr().write_all(&said).ok();
        if !status.success() {
            bail!("{} failed ({status}): see above", self.what);
        }
        Ok(())
    }
}

impl Drop for Behind {
    fn drop(&mut self) {
        // It has usually ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
