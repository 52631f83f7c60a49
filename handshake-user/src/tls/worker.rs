//! One thread that follows the TLS libraries: it reads files, attaches probes and lets go of them, one after the other. Each
//! of these can take the kernel a tenth of a second or more, for which records and scrapes do not wait.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, Thread},
    time::Duration,
};

use aya::Ebpf;

use super::{
    libraries::{Census, Libraries},
    skipped::Skipped,
};

/// The thread. Dropping it tells the thread to end, and does not wait: what it leaves attached, the kernel detaches when the
/// program ends.
#[derive(Debug)]
pub struct Worker {
    shared: Arc<Shared>,
    thread: Thread,
}

#[derive(Debug, Default)]
struct Shared {
    is_over: AtomicBool,
    /// What has changed and was not asked for yet.
    news: Mutex<Option<(Census, Skipped)>>,
}

impl Worker {
    /// Begins; looks for what is new in intervals of `pace`. The object's programs stay attached as long as it works.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn start(mut libraries: Libraries, mut ebpf: Ebpf, pace: Duration) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let its = Arc::clone(&shared);
        let work = move || {
            while !its.is_over.load(Ordering::Acquire) {
                let more = libraries.turn(&mut ebpf);
                if let Some(census) = libraries.census() {
                    *its.news.lock().unwrap_or_else(PoisonError::into_inner) = Some(census);
                }
                if !more {
                    thread::park_timeout(pace);
                }
            }
            // The tracepoints first: they run for every connection.
            drop(ebpf);
        };
        let handle = thread::Builder::new().name("libraries".to_owned()).spawn(work)?;
        Ok(Self { shared, thread: handle.thread().clone() })
    }

    /// How many files there are and what was skipped, if that has changed since it was asked for last.
    #[must_use]
    pub fn news(&self) -> Option<(Census, Skipped)> {
        self.shared.news.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Release);
        self.thread.unpark();
    }
}
