//! Looks at the time-wait minisockets of network namespaces, on a thread of its own: it has to enter them.

mod iterator;
mod namespaces;

use std::{
    os::fd::{AsFd as _, OwnedFd},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
    time::Duration,
};

use aya::{Btf, Ebpf};
use handshake_common::tcp::minisocket::{ITERATOR, PROGRAM};

use self::namespaces::Finder;
use crate::{
    join::time_wait::{Look, Wanted},
    kernel, privileges,
};

/// Iterations at the start, so that the clock of the jiffies is known to a fraction of a tick.
const CALIBRATIONS: u32 = 8;

/// The thread, and the way to and from it. Dropping it ends the thread.
#[derive(Debug)]
pub struct Watcher {
    requests: SyncSender<Vec<Wanted>>,
    looks: Receiver<Look>,
    tick_ns: u64,
}

impl Watcher {
    /// Loads the program of the iterator and starts the thread.
    ///
    /// # Errors
    /// If the kernel cannot iterate over TCP sockets (before 5.9), or no thread can be started.
    pub fn start(ebpf: &mut Ebpf, btf: &Btf) -> anyhow::Result<Self> {
        let program = kernel::iterator::load(ebpf, PROGRAM, ITERATOR, btf)?;
        let tick_ns = tick_ns();
        let (requests, receive) = sync_channel(1);
        let (send, looks) = sync_channel(1);
        thread::Builder::new()
            .name("minisockets".to_owned())
            .spawn(move || work(&program, tick_ns, &receive, &send))?;
        Ok(Self { requests, looks, tick_ns })
    }

    /// Nanoseconds of one tick of the kernel.
    #[must_use]
    pub const fn tick_ns(&self) -> u64 {
        self.tick_ns
    }

    /// Asks for a look. One at a time: the answer must have been taken before the next.
    pub fn ask(&self, wanted: Vec<Wanted>) {
        // It has room for one; the thread ends only with the program.
        let _ = self.requests.try_send(wanted);
    }

    /// The look that was asked for, once it is there.
    #[must_use]
    pub fn take(&self) -> Option<Look> {
        self.looks.try_recv().ok()
    }
}

/// `CLOCK_MONOTONIC_COARSE` advances with the tick.
fn tick_ns() -> u64 {
    let resolution = rustix::time::clock_getres(rustix::time::ClockId::MonotonicCoarse);
    u64::try_from(resolution.tv_nsec).unwrap_or(0)
}

fn work(program: &OwnedFd, tick_ns: u64, requests: &Receiver<Vec<Wanted>>, looks: &SyncSender<Look>) {
    privileges::keep(privileges::MINISOCKETS);
    let mut finder = Finder::default();
    let mut is_calibrated = false;
    while let Ok(wanted) = requests.recv() {
        let mut look = Look::default();
        if !is_calibrated {
            is_calibrated = true;
            for _ in 0..CALIBRATIONS {
                if let Err(error) = iterator::clocks(program.as_fd(), &mut look.clocks) {
                    tracing::warn!(%error, "cannot look at time-wait minisockets");
                }
                thread::sleep(Duration::from_nanos(tick_ns / u64::from(CALIBRATIONS - 1)));
            }
        }
        finder.enter_each(&wanted, |netns| match iterator::look(program.as_fd(), &mut look.clocks) {
            Ok(namespace) => {
                look.namespaces.insert(netns, namespace);
            }
            Err(error) => tracing::debug!(netns, %error, "cannot look at time-wait minisockets"),
        });
        if looks.send(look).is_err() {
            return;
        }
    }
}
