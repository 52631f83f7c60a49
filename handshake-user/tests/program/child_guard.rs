//! A process that a test starts, and that ends with it, also when it fails.

use std::{
    ops::{Deref, DerefMut},
    os::unix::process::CommandExt as _,
    process::{Child, Command},
};

use nix::sys::{prctl, signal::Signal};

/// Kills its process when dropped.
pub(crate) struct ChildGuard(Child);

impl ChildGuard {
    /// Starts a process that also dies with the thread that starts it.
    #[track_caller]
    pub(crate) fn start(command: &mut Command) -> Self {
        die_with_the_starter(command);
        Self::of(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    pub(crate) fn of(child: Child) -> Self {
        Self(child)
    }
}

/// Makes the process die with the thread that starts it: a test that is killed drops nothing.
pub(crate) fn die_with_the_starter(command: &mut Command) {
    // SAFETY: between fork and exec only one system call is made.
    unsafe { command.pre_exec(|| Ok(prctl::set_pdeathsig(Signal::SIGKILL)?)) };
}

impl Deref for ChildGuard {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for ChildGuard {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for ChildGuard {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
