//! The thread that follows the TLS libraries: it inspects files, attaches probes and detaches them, one after
//! the other. Each step can take a tenth of a second or more, which records and scrapes do not wait for.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{self, Receiver},
    },
    thread::{self, Thread},
    time::{Duration, Instant, SystemTime},
};

use aya::Ebpf;

use super::{
    libraries::{Libraries, LibraryCounts},
    skipped::Skipped,
};

/// A turn that takes longer is logged. Four file systems that do not answer take a minute, many probes half a
/// minute.
const LONG: Duration = Duration::from_mins(2);

/// How long to wait for the thread to end: for a file system that does not answer, no longer. What it has not
/// detached by then the kernel detaches when the process exits, which takes longer.
const END: Duration = Duration::from_millis(1500);

/// The thread. Dropping it makes the thread end.
#[derive(Debug)]
pub struct Worker {
    shared: Arc<Shared>,
    thread: Thread,
    /// Nothing comes by it: it is closed when the thread ends.
    over: Mutex<Receiver<()>>,
    is_stuck: bool,
}

#[derive(Debug)]
struct Shared {
    is_over: AtomicBool,
    /// When the last turn ended.
    turn: Mutex<(Instant, SystemTime)>,
    /// Changes that were not taken yet.
    counts: Mutex<Option<(LibraryCounts, Skipped)>>,
    /// Files that await their inspection.
    queued: AtomicUsize,
}

impl Worker {
    /// Starts the thread, which takes a turn at least every `pace`. The programs of the object stay attached
    /// while it runs.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn start(mut libraries: Libraries, mut ebpf: Ebpf, pace: Duration) -> io::Result<Self> {
        let turn = Mutex::new((Instant::now(), SystemTime::now()));
        let (is_over, queued) = (AtomicBool::new(false), AtomicUsize::new(libraries.queued()));
        let shared = Arc::new(Shared { is_over, turn, counts: Mutex::new(None), queued });
        let its = Arc::clone(&shared);
        let (ends_with_it, over) = mpsc::channel::<()>();
        let work = move || {
            let _ends_with_it = ends_with_it;
            while !its.is_over.load(Ordering::Acquire) {
                let more = libraries.turn(&mut ebpf);
                its.queued.store(libraries.queued(), Ordering::Relaxed);
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
            drop(libraries);
        };
        let handle = thread::Builder::new().name("libraries".to_owned()).spawn(work)?;
        Ok(Self { shared, thread: handle.thread().clone(), over: Mutex::new(over), is_stuck: false })
    }

    /// When the last turn ended. Logs when that is too long ago, and when turns resume.
    pub fn last_turn(&mut self) -> SystemTime {
        let (turn, at) = *self.shared.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let is_stuck = turn.elapsed() > LONG;
        match (self.is_stuck, is_stuck) {
            (false, true) => tracing::warn!(
                "the thread that follows the TLS libraries has made no progress for {} s: libraries that come into use are not \
                 probed, and their handshakes are seen on the wire alone. Does every file system below /usr answer? \
                 Otherwise restart the program and report it",
                turn.elapsed().as_secs()
            ),
            (true, false) => tracing::info!("the thread that follows the TLS libraries makes progress again"),
            _ => {}
        }
        self.is_stuck = is_stuck;
        at
    }

    /// How many files await their inspection.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.shared.queued.load(Ordering::Relaxed)
    }

    /// How many files there are and what was skipped. Returns `None` if nothing has changed since the last
    /// call.
    #[must_use]
    pub fn take_counts(&self) -> Option<(LibraryCounts, Skipped)> {
        self.shared.counts.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Release);
        self.thread.unpark();
        // Either it ends or the time does.
        let _ = self.over.get_mut().unwrap_or_else(PoisonError::into_inner).recv_timeout(END);
    }
}
