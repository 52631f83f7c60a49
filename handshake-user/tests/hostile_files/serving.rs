//! Measures whether the daemon responds in time.

use std::{
    fs,
    time::{Duration, Instant},
};

use crate::program::Daemon;

/// Scrapes the daemon repeatedly.
pub(crate) struct Serving<'d> {
    daemon: &'d Daemon,
    /// The longest response time, without the time that its event loop and this thread waited for a CPU.
    pub(crate) slowest: Duration,
    /// The maximum number of its threads.
    pub(crate) threads: u64,
    pub(crate) asked: usize,
}

impl<'d> Serving<'d> {
    pub(crate) fn new(daemon: &'d Daemon) -> Self {
        Self { daemon, slowest: Duration::ZERO, threads: 0, asked: 0 }
    }

    pub(crate) fn ask(&mut self) {
        let pid = self.daemon.pid();
        for path in ["/healthz", "/metrics"] {
            let waited = || {
                waited(&format!("/proc/{pid}/task/{pid}/schedstat")) + waited("/proc/thread-self/schedstat")
            };
            let (before, begin) = (waited(), Instant::now());
            assert_eq!(self.daemon.request("GET", path).0, 200, "{path}");
            let took = begin.elapsed().saturating_sub(waited().saturating_sub(before));
            self.slowest = self.slowest.max(took);
        }
        self.threads = self.threads.max(self.daemon.status("Threads:"));
        self.asked += 1;
    }

    /// Scrapes until the condition holds. Panics if that takes too long.
    #[track_caller]
    pub(crate) fn until(&mut self, what: &str, patience: Duration, mut holds: impl FnMut(&Daemon) -> bool) {
        let begin = Instant::now();
        while !holds(self.daemon) {
            assert!(begin.elapsed() < patience, "{what}: not within {patience:?}");
            self.ask();
            std::thread::sleep(Duration::from_millis(20));
        }
        println!(
            "{what}: after {:?}, {} times asked, slowest {:?}",
            begin.elapsed(),
            self.asked,
            self.slowest
        );
    }
}

/// How long a thread was runnable without a CPU.
fn waited(schedstat: &str) -> Duration {
    let text = fs::read_to_string(schedstat).unwrap_or_default();
    Duration::from_nanos(text.split(' ').nth(1).and_then(|wait| wait.parse().ok()).unwrap_or_default())
}
