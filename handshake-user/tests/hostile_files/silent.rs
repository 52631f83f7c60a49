//! A file system that stops answering once a file is read.

use std::time::Duration;

use crate::{
    alone,
    fuse::{self, Kind},
    program::Daemon,
    proper::{LABEL, Proper},
    serving::Serving,
};

#[test]
fn silent_file_system_delays_no_library_for_long() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&LABEL);
    let mut serving = Serving::new(&daemon);
    let (_server, _) = fuse::start(folder.path(), Kind::Silent);
    let proper = Proper::start();
    serving.until("it is given up", Duration::from_secs(25), |daemon| {
        daemon.scrape().sum("handshake_tls_files_skipped_total", &["reason=\"timeout\""]) >= 1.0
    });
    proper.is_seen(&mut serving, Duration::from_secs(10));
    assert!(serving.slowest < Duration::from_millis(250), "{:?}", serving.slowest);
    assert!(serving.threads <= 8, "{} threads", serving.threads);
}
