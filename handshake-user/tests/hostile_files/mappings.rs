//! Processes with many mappings: as many as the kernel allows, with new ones all the time, and with more than
//! the kernel tells of at once.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use handshake::tls::discover::{Discovery, DiscoveryEvent, IteratorError, SWEEP};

use crate::{
    alone,
    program::Daemon,
    proper::{LABEL, Proper, copies, installed},
    serving::Serving,
    untrusted::UntrustedProcess,
};

/// Keeps 65 000 one-page executable mappings that the kernel cannot merge, and maps and unmaps another file
/// as fast as possible.
const MANY: &str = r#"
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
kept, other = (os.open(path, os.O_RDONLY) for path in sys.argv[1:3])
def code(file):
    return libc.mmap(None, 4096, 5, 2, file, 0)
failed = ctypes.c_void_p(-1).value
for _ in range(65000):
    assert code(kept) != failed
print("mapped", flush=True)
while True:
    libc.munmap(code(other), 4096)
"#;

/// Starts the process with its own files.
fn many(folder: &tempfile::TempDir) -> UntrustedProcess {
    let kept = copies(&installed("libgnutls.so.30"), 1, folder.path(), "libgnutls-kept");
    let other = copies(&installed("libgnutls.so.30"), 1, folder.path(), "libgnutls-other");
    let mut untrusted = UntrustedProcess::python(MANY, &[&kept[0], &other[0]]);
    untrusted.wait();
    untrusted
}

#[test]
fn process_with_65_000_mappings_hides_no_library() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&LABEL);
    let mut serving = Serving::new(&daemon);
    let _many = many(&folder);
    Proper::start().is_seen(&mut serving, Duration::from_secs(20));
    let peak = daemon.status("VmHWM:") >> 10;
    println!("peak {peak} MB, slowest {:?}", serving.slowest);
    assert!(peak < 150, "{peak} MB");
    assert!(serving.slowest < Duration::from_millis(100), "{:?}", serving.slowest);
}

/// More mappings than the kernel's iterator tells of at once, of a process that is looked at again and again
/// because it maps unknown files, and does nothing else meanwhile.
#[test]
fn process_with_2_000_mappings_hides_no_library() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&LABEL);
    let mut serving = Serving::new(&daemon);
    let mut untrusted = UntrustedProcess::start();
    let kept = copies(&installed("libgnutls.so.30"), 1, folder.path(), "libgnutls-kept").remove(0);
    untrusted.map(&vec![kept; 2000]);
    untrusted.map(&copies(&installed("libgnutls.so.30"), 3, folder.path(), "libgnutls-other"));
    Proper::start().is_seen(&mut serving, Duration::from_secs(20));
    let peak = daemon.status("VmHWM:") >> 10;
    assert!(peak < 150, "{peak} MB");
}

/// The same as the first without the iterator, through `/proc/PID/maps`.
#[test]
fn process_with_65_000_mappings_hides_no_library_without_the_iterator() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let mut discovery = Discovery::new(Err(IteratorError::NoProgram), SWEEP);
    let _many = many(&folder);
    let wanted: PathBuf = folder.path().join("libgnutls-wanted-0.so.3");
    let mut other = UntrustedProcess::start();
    other.map(&copies(&installed("libgnutls.so.30"), 1, folder.path(), "libgnutls-wanted"));
    let (begin, mut slowest) = (Instant::now(), Duration::ZERO);
    let mut is_found = false;
    while !is_found {
        assert!(begin.elapsed() < Duration::from_secs(20), "it is not found");
        let poll = Instant::now();
        let news = discovery.poll(poll, 128);
        slowest = slowest.max(poll.elapsed());
        is_found =
            news.iter().any(|news| matches!(news, DiscoveryEvent::Found(found) if found.shown == wanted));
    }
    println!("found after {:?}, slowest look {slowest:?}", begin.elapsed());
    // Debug builds of the tests are slow; in the daemon this runs in the worker, for which nothing waits.
    assert!(slowest < Duration::from_secs(3), "{slowest:?}");
}
