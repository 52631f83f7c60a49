//! Replaces a hundred libraries by a hundred others.

use std::{
    fs,
    os::unix::net::UnixDatagram,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    alone,
    program::{self, Daemon},
    proper::{copies, installed},
    serving::Serving,
    untrusted::UntrustedProcess,
};

const FILES: usize = 100;
/// A file counts as unused after two sweeps, half a minute apart, without it.
const TIMEOUT: Duration = Duration::from_mins(3);
/// The daemon notifies every second if the watchdog interval is two.
const WATCHDOG_EVERY: Duration = Duration::from_secs(1);

/// The service manager, which measures the time between two watchdog notifications.
struct Manager {
    over: Arc<AtomicBool>,
    thread: JoinHandle<(usize, Duration)>,
}

impl Manager {
    fn start(socket: &Path) -> Self {
        let socket = UnixDatagram::bind(socket).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let over = Arc::<AtomicBool>::default();
        let its = Arc::clone(&over);
        let thread = thread::spawn(move || {
            let (mut count, mut longest, mut last) = (0, Duration::ZERO, None::<Instant>);
            while !its.load(Ordering::Relaxed) {
                let mut buffer = [0; 256];
                let length = socket.recv(&mut buffer).unwrap_or(0);
                if let Some(last) = last {
                    longest = longest.max(last.elapsed());
                }
                if buffer[..length].starts_with(b"WATCHDOG=1") {
                    count += 1;
                    last = Some(Instant::now());
                }
            }
            (count, longest)
        });
        Self { over, thread }
    }

    /// The number of notifications, and the longest interval.
    fn stop(self) -> (usize, Duration) {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

#[test]
fn scrapes_are_served_while_a_hundred_libraries_are_replaced() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    // Two libraries with few probes, so that the test is short, which the metrics distinguish.
    let (gnutls, nss) = (installed("libgnutls.so.30"), installed("libssl3.so"));
    let socket = folder.path().join("notify");
    let manager = Manager::start(&socket);
    let mut command = program::command(&["--listen", "127.0.0.1:0"]);
    command.env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", "2000000");
    let daemon = Daemon::spawn(&mut command);
    let mut serving = Serving::new(&daemon);
    let covered = |daemon: &Daemon, library: &str| {
        let labels = [&*format!("library=\"{library}\""), "covered=\"true\""];
        daemon.scrape().sum("handshake_tls_libraries", &labels)
    };
    let standing = ["gnutls", "nss"].map(|library| covered(&daemon, library));
    let files = f64::from(u32::try_from(FILES).unwrap());

    let mut before = UntrustedProcess::start();
    let old = copies(&gnutls, FILES, folder.path(), "libgnutls-old");
    before.map(&old);
    serving
        .until("the old ones are probed", TIMEOUT, |daemon| covered(daemon, "gnutls") >= standing[0] + files);

    let new = copies(&nss, FILES, folder.path(), "libssl-new");
    for path in &old {
        fs::remove_file(path).unwrap();
    }
    drop(before);
    let mut after = UntrustedProcess::start();
    after.map(&new);
    let mut most = 0;
    serving.until("the new ones are probed, and the old ones are no longer reported", TIMEOUT, |daemon| {
        most = most.max(daemon.files());
        after.flood(&gnutls);
        covered(daemon, "nss") >= standing[1] + files && covered(daemon, "gnutls") < standing[0] + files
    });
    // A file has several probes, and each takes the kernel up to a tenth of a second.
    serving.until("old ones are detached", TIMEOUT, |daemon| {
        most = most.max(daemon.files());
        daemon.files() + FILES <= most
    });
    let (signs, longest) = manager.stop();
    println!("watchdog fed {signs} times, at the latest after {longest:?}");
    assert!(serving.slowest < Duration::from_millis(100), "{:?}", serving.slowest);
    assert!(signs > 0 && longest < WATCHDOG_EVERY * 3 / 2, "{signs} signs of life, {longest:?} without one");
    assert!(serving.threads <= 8, "{} threads", serving.threads);
    daemon.abandon();
}
