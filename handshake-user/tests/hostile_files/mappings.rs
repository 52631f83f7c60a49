//! A process with as many mappings as the kernel allows, that makes new ones without end.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use handshake::tls::discover::{Discovery, DiscoveryEvent, SWEEP};

use crate::{
    alone,
    program::Daemon,
    proper::{LABEL, Proper, copies, installed},
    serving::Serving,
    stranger::Stranger,
};

/// Keeps 65 000 mappings of one page of code, none of which the kernel can join with the next, and maps and
/// unmaps another file as fast as it goes.
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

/// The process, with files of its own.
fn many(folder: &tempfile::TempDir) -> Stranger {
    let kept = copies(&installed("libgnutls.so.30"), 1, folder.path(), "libgnutls-kept");
    let other = copies(&installed("libgnutls.so.30"), 1, folder.path(), "libgnutls-other");
    let mut stranger = Stranger::python(MANY, &[&kept[0], &other[0]]);
    stranger.wait();
    stranger
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

/// The same where there is no iterator: by `/proc/PID/maps`.
#[test]
fn process_with_65_000_mappings_hides_no_library_without_the_iterator() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let mut discovery = Discovery::new(Err("the test wants none".to_owned()), SWEEP);
    let _many = many(&folder);
    let wanted: PathBuf = folder.path().join("libgnutls-wanted-0.so.3");
    let mut other = Stranger::start();
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
    // Debug builds of the tests are slow; the worker is where it runs, and nothing waits for that.
    assert!(slowest < Duration::from_secs(3), "{slowest:?}");
}
