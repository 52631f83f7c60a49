//! More libraries than available descriptors.

use std::{fs, os::unix::process::CommandExt as _, time::Duration};

use rustix::process::{Resource, Rlimit, setrlimit};

use crate::{
    alone,
    program::{self, Daemon},
    proper::{LABEL, Proper, copies, installed},
    serving::Serving,
    untrusted::UntrustedProcess,
};

const LIMIT: u64 = 192;
const FILES: u32 = 40;

#[test]
fn libraries_beyond_the_descriptor_limit_are_counted() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let mut command = program::command(&["--listen", "127.0.0.1:0"]);
    command.args(LABEL);
    let limit = Rlimit { current: Some(LIMIT), maximum: Some(LIMIT) };
    // SAFETY: between fork and exec only one system call is made.
    unsafe { command.pre_exec(move || Ok(setrlimit(Resource::Nofile, limit)?)) };
    let daemon = Daemon::spawn(&mut command);
    let mut serving = Serving::new(&daemon);
    let covered = |daemon: &Daemon| {
        let labels = ["library=\"gnutls\"", "covered=\"true\""];
        daemon.scrape().sum("handshake_tls_libraries", &labels)
    };
    let skipped = |daemon: &Daemon| {
        daemon.scrape().sum("handshake_tls_files_skipped_total", &["reason=\"descriptors\""])
    };
    // Files at standard paths are inspected at the start.
    let (standing, skipped_before) = (covered(&daemon), skipped(&daemon));

    let mut many = UntrustedProcess::start();
    let files = copies(&installed("libgnutls.so.30"), FILES as usize, folder.path(), "libgnutls-many");
    many.map(&files);
    serving.until("what does not fit is counted", Duration::from_secs(20), |daemon| {
        covered(daemon) - standing + skipped(daemon) - skipped_before >= f64::from(FILES)
    });
    let probed = covered(&daemon) - standing;
    println!("{probed} of {FILES} probed, {} files open", daemon.files());
    assert!(probed >= 1.0, "files in use are preferred to those that merely have a standard path");
    assert!(daemon.files() < usize::try_from(LIMIT).unwrap() * 4 / 5, "{}", daemon.files());

    // Unused files make room for one that comes into use.
    for path in &files {
        fs::remove_file(path).unwrap();
    }
    drop(many);
    let mut other = UntrustedProcess::start();
    serving.until("they are no longer reported", Duration::from_secs(30), |daemon| {
        other.flood(&installed("libgnutls.so.30"));
        covered(daemon) <= standing
    });
    Proper::start().is_seen(&mut serving, Duration::from_secs(20));
    assert!(serving.slowest < Duration::from_millis(250), "{:?}", serving.slowest);
}
