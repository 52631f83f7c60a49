//! An unnamed network namespace: it ends when the last file that refers to it is closed, so that nothing is
//! left behind however the test process ends.

use std::{
    fs::{self, File},
    net::IpAddr,
    os::{
        fd::AsFd,
        unix::{fs::MetadataExt, process::CommandExt},
    },
    panic,
    process::Command,
    thread,
};

use nix::{
    sched::{self, CloneFlags},
    sys::{prctl, signal::Signal},
};

use super::{link, priority};

pub(crate) struct Namespace {
    file: File,
    tun: File,
}

impl Namespace {
    pub(super) fn new(addresses: &[IpAddr]) -> Self {
        in_a_thread(|| {
            sched::unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace of our own");
            let file = File::open("/proc/thread-self/ns/net").unwrap();
            let tun = link::bring_up(addresses).expect("a TUN device (is /dev/net/tun there?)");
            Self { file, tun }
        })
    }

    /// The other end of the device of this namespace.
    pub(super) fn tun(&self) -> &File {
        &self.tun
    }

    /// The inode number, which identifies the namespace in the records.
    pub(crate) fn inode(&self) -> u64 {
        self.file.metadata().unwrap().ino()
    }

    /// Runs `work` in a new thread in this namespace, so the calling thread need not switch back.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        in_a_thread(|| {
            sched::setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }

    pub(super) fn sysctl(&self, name: &str, value: &str) {
        let path = format!("/proc/sys/net/{name}");
        self.inside(|| fs::write(&path, value)).unwrap_or_else(|error| panic!("{path} = {value}: {error}"));
    }

    /// A command in this namespace. It dies with the thread that started it, so that a killed test run leaves
    /// no process behind.
    pub(super) fn command(&self, program: &str) -> Command {
        let file = self.file.try_clone().unwrap();
        let mut command = Command::new(program);
        // SAFETY: between fork and exec only system calls are made, on a file that the closure owns.
        unsafe {
            command.pre_exec(move || {
                sched::setns(file.as_fd(), CloneFlags::CLONE_NEWNET)?;
                prctl::set_pdeathsig(Signal::SIGKILL)?;
                priority::go_first();
                Ok(())
            });
        }
        command
    }
}

fn in_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let joined = thread::scope(|scope| scope.spawn(work).join());
    joined.unwrap_or_else(|reason| panic::resume_unwind(reason))
}
