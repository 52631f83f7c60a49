//! Which processes have which listening sockets open, by looking at the open files of all of them
//! (`iter/task_file`). A thread of its own looks: processes that start others as fast as they are looked at
//! make a look long.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use aya::{Btf, Ebpf};
use handshake_common::tcp::listener::Holder;

use super::iterator;
use crate::{host, privileges};

/// More processes with a listening socket than are looked at.
const MAX_HOLDERS: usize = 1 << 16;
/// How long the start waits for the first look.
const FIRST: Duration = Duration::from_secs(2);
/// The limit for a look that records wait for.
const AT_ONCE: Duration = Duration::from_millis(200);

/// The processes that have a listening socket open, by the socket.
pub(super) type Holders = HashMap<u64, Vec<Holder>>;

/// What one look showed.
#[derive(Debug)]
pub(super) struct Look {
    /// When it began, nanoseconds of `CLOCK_MONOTONIC`.
    pub(super) began_ns: u64,
    /// The time of a CPU that it took. On a busy host most of the time that passes is the time of others.
    pub(super) took: Duration,
    /// An error if the kernel refused, or did not end it.
    pub(super) holders: io::Result<Holders>,
}

/// The thread that looks, and the way to and from it. Dropping it ends the thread.
#[derive(Debug)]
pub(super) struct OpenFiles {
    program: Arc<OwnedFd>,
    requests: SyncSender<()>,
    looks: Receiver<Look>,
}

impl OpenFiles {
    /// Loads the iterator and starts the thread.
    ///
    /// # Errors
    /// If the kernel cannot run it, or no thread can be started.
    pub(super) fn start(ebpf: &mut Ebpf, btf: &Btf) -> anyhow::Result<Self> {
        let program = Arc::new(iterator::load(ebpf, Holder::PROGRAM, Holder::ITERATOR, btf)?);
        let (requests, receive) = sync_channel(1);
        let (send, looks) = sync_channel(1);
        let of_thread = Arc::clone(&program);
        thread::Builder::new()
            .name("open-files".to_owned())
            .spawn(move || work(&of_thread, &receive, &send))?;
        Ok(Self { program, requests, looks })
    }

    /// Asks for a look. One at a time: its result must have been taken before the next.
    pub(super) fn ask(&self) {
        // It has room for one; the thread ends only with the program.
        let _ = self.requests.try_send(());
    }

    /// The look that was asked for, once it is there.
    pub(super) fn take(&self) -> Option<Look> {
        self.looks.try_recv().ok()
    }

    /// The same, for which the start waits.
    pub(super) fn first(&self) -> Result<Look, RecvTimeoutError> {
        self.looks.recv_timeout(FIRST)
    }

    /// Looks at once, in this thread.
    ///
    /// # Errors
    /// If the kernel refuses, or takes too long.
    pub(super) fn look(&self) -> io::Result<Holders> {
        look(&self.program, AT_ONCE)
    }
}

fn work(program: &OwnedFd, requests: &Receiver<()>, looks: &SyncSender<Look>) {
    privileges::keep(privileges::OPEN_FILES);
    while requests.recv().is_ok() {
        let (began_ns, before) = (host::monotonic_ns(), host::thread_time());
        let holders = look(program, iterator::LIMIT);
        let took = host::thread_time().saturating_sub(before);
        if looks.send(Look { began_ns, took, holders }).is_err() {
            return;
        }
    }
}

fn look(program: &OwnedFd, limit: Duration) -> io::Result<Holders> {
    let mut holders = Holders::new();
    let mut left = MAX_HOLDERS;
    iterator::each(program.as_fd(), 0, Holder::SIZE, limit, |bytes| {
        if let Some(holder) = Holder::from_bytes(bytes).filter(|_| left > 0) {
            left -= 1;
            holders.entry(holder.key).or_default().push(holder);
        }
    })?;
    if left == 0 {
        return Err(io::Error::other("more processes listen than can be remembered"));
    }
    Ok(holders)
}
