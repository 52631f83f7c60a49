//! Processes that make others wait, by a file system whose server does not answer reads.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use crate::{
    alone,
    fuse::{self, Kind},
    program::Daemon,
    proper::{LABEL, Proper},
    serving::Serving,
};

/// Waits until a thread of the process cannot be interrupted.
fn wait_until_stuck(pid: u32) {
    let is_stuck = || {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        let stats = threads.map(|thread| fs::read_to_string(thread.path().join("stat")).unwrap());
        stats.into_iter().any(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('D')))
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is_stuck() {
        assert!(
            Instant::now() < deadline,
            "its mapping is not waited for: {}",
            fs::read_to_string(format!("/proc/{pid}/stack")).unwrap()
        );
        thread::sleep(Duration::from_millis(10));
    }
}

/// The kernel would wait for it to list its mappings, and to probe what it has mapped: OpenSSL.
#[test]
fn process_whose_mappings_are_locked_does_not_keep_the_daemon_from_starting() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let (server, pid) = fuse::start(folder.path(), Kind::Own);
    wait_until_stuck(pid);
    let begin = Instant::now();
    let daemon = Daemon::start(&LABEL);
    let took = begin.elapsed();
    let mut serving = Serving::new(&daemon);
    let proper = Proper::start();
    serving.until("it is found and waits", Duration::from_secs(20), |daemon| {
        daemon.scrape().sum("handshake_tls_inspection_queue_files", &[]) >= 1.0
    });
    drop(server);
    proper.is_seen(&mut serving, Duration::from_secs(20));
    println!("started in {took:?}, slowest {:?}", serving.slowest);
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert!(daemon.said().contains("a process does not let its mappings be read"), "{}", daemon.said());
    assert!(serving.slowest < Duration::from_millis(250), "{:?}", serving.slowest);
}

/// Were the daemon to map this file, all its threads would wait.
#[test]
fn file_that_would_lock_the_daemons_own_mappings_is_not_mapped() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&LABEL);
    let mut serving = Serving::new(&daemon);
    let (_server, _) = fuse::start(folder.path(), Kind::Direct);
    let proper = Proper::start();
    serving.until("it is given up", Duration::from_secs(25), |daemon| {
        daemon.scrape().sum("handshake_tls_files_skipped_total", &["reason=\"timeout\""]) >= 1.0
    });
    proper.is_seen(&mut serving, Duration::from_secs(20));
    assert!(serving.slowest < Duration::from_millis(250), "{:?}", serving.slowest);
}
