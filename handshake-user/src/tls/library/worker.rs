//! One thread that follows the TLS libraries: it reads files, attaches probes and lets go of them, one after the other. Each
//! of these can take the kernel a tenth of a second or more, for which records and scrapes do not wait.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, Thread},
    time::{Duration, Instant, SystemTime},
};

use aya::Ebpf;

use super::{
    libraries::{Libraries, LibraryCounts},
    skipped::Skipped,
};

/// A turn that lasts longer is told. Four file systems that do not answer take a minute, many probes half of one.
const LONG: Duration = Duration::from_mins(2);

/// The thread. Dropping it tells the thread to end, and does not wait: what it leaves attached, the kernel detaches when the
/// program ends.
#[derive(Debug)]
pub struct Worker {
    shared: Arc<Shared>,
    thread: Thread,
    is_stuck: bool,
}

#[derive(Debug)]
struct Shared {
    is_over: AtomicBool,
    /// When the last turn ended.
    turn: Mutex<(Instant, SystemTime)>,
    /// What has changed and was not asked for yet.
    counts: Mutex<Option<(LibraryCounts, Skipped)>>,
}

impl Worker {
    /// Begins; looks for what is new in intervals of `pace`. The object's programs stay attached as long as it works.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn start(mut libraries: Libraries, mut ebpf: Ebpf, pace: Duration) -> io::Result<Self> {
        let turn = Mutex::new((Instant::now(), SystemTime::now()));
        let shared = Arc::new(Shared { is_over: AtomicBool::new(false), turn, counts: Mutex::new(None) });
        let its = Arc::clone(&shared);
        let work = move || {
            while !its.is_over.load(Ordering::Acquire) {
                let more = libraries.turn(&mut ebpf);
                *its.turn.lock().unwrap_or_else(PoisonError::into_inner) =
                    (Instant::now(), SystemTime::now());
                if let Some(census) = libraries.take_counts() {
                    *its.counts.lock().unwrap_or_else(PoisonError::into_inner) = Some(census);
                }
                if !more {
                    thread::park_timeout(pace);
                }
            }
            // The tracepoints first: they run for every connection.
            drop(ebpf);
        };
        let handle = thread::Builder::new().name("libraries".to_owned()).spawn(work)?;
        Ok(Self { shared, thread: handle.thread().clone(), is_stuck: false })
    }

    /// When the last turn ended. Says in the log when that is long ago, and when it goes on.
    pub fn last_turn(&mut self) -> SystemTime {
        let (turn, at) = *self.shared.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let is_stuck = turn.elapsed() > LONG;
        match (self.is_stuck, is_stuck) {
            (false, true) => tracing::warn!(
                "the thread that follows the TLS libraries has not come round for {} s: libraries that come into use are not \
                 probed, and their handshakes are seen on the wire alone. Does every file system below /usr answer? \
                 Otherwise restart the program and report it",
                turn.elapsed().as_secs()
            ),
            (true, false) => tracing::info!("the thread that follows the TLS libraries has come round again"),
            _ => {}
        }
        self.is_stuck = is_stuck;
        at
    }

    /// How many files there are and what was skipped, if that has changed since it was asked for last.
    #[must_use]
    pub fn take_counts(&self) -> Option<(LibraryCounts, Skipped)> {
        self.shared.counts.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Release);
        self.thread.unpark();
    }
}
