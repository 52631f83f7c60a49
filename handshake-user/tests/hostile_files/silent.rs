//! A file system that stops answering once a file is read, as if its server were gone: FUSE, with a server
//! that only implements a few replies of the kernel's protocol (`include/uapi/linux/fuse.h`).

use std::time::Duration;

use crate::{
    alone,
    program::Daemon,
    proper::{LABEL, Proper},
    serving::Serving,
    untrusted::UntrustedProcess,
};

/// Serves a directory with one file, whose reads never return, and starts a child that maps it, all in one
/// mount namespace.
const SERVER: &str = r#"
import ctypes, mmap, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
folder = sys.argv[1]
check(libc.unshare(0x20000))
check(libc.mount(None, b"/", None, 1 << 14 | 1 << 18, None))
device = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
check(libc.mount(b"silent", folder.encode(), b"fuse", 6, options.encode()))
if os.fork() == 0:
    os.close(device)
    libc.prctl(1, 9, 0, 0, 0)
    file = os.open(folder + "/libssl.so.3", os.O_RDONLY)
    code = mmap.mmap(file, 4096, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_EXEC)
    print("mapped", flush=True)
    while True:
        libc.pause()
def attributes(node):
    mode, size = (0o40755, 0) if node == 1 else (0o100755, 1 << 20)
    return struct.pack("<6Q10I", node, size, size >> 9, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)
INIT, LOOKUP, FORGET, GETATTR, OPEN, READ, RELEASE, FLUSH, INTERRUPT = 26, 1, 2, 3, 14, 15, 18, 25, 36
while True:
    request = os.read(device, 1 << 20)
    length, kind, unique, node = struct.unpack_from("<IIQQ", request)
    error, answer = 0, b""
    if kind in (FORGET, READ, INTERRUPT):
        continue
    elif kind == INIT:
        answer = struct.pack("<IIIIHHIIHH8I", 7, 31, 0, 0, 0, 0, 1 << 16, 1, 16, 0, *[0] * 8)
    elif kind == LOOKUP:
        answer = struct.pack("<QQQQII", 2, 0, 3600, 3600, 0, 0) + attributes(2)
    elif kind == GETATTR:
        answer = struct.pack("<QII", 3600, 0, 0) + attributes(node)
    elif kind == OPEN:
        answer = struct.pack("<QII", 0, 0, 0)
    elif kind not in (RELEASE, FLUSH):
        error = -38
    os.write(device, struct.pack("<IiQ", 16 + len(answer), error, unique) + answer)
"#;

#[test]
fn silent_file_system_delays_no_library_for_long() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&LABEL);
    let mut serving = Serving::new(&daemon);
    let mut server = UntrustedProcess::python(SERVER, &[folder.path()]);
    server.wait();
    let proper = Proper::start();
    serving.until("it is given up", Duration::from_secs(25), |daemon| {
        daemon.scrape().sum("handshake_tls_files_skipped_total", &["reason=\"timeout\""]) >= 1.0
    });
    proper.is_seen(&mut serving, Duration::from_secs(10));
    assert!(serving.slowest < Duration::from_millis(250), "{:?}", serving.slowest);
    assert!(serving.threads <= 8, "{} threads", serving.threads);
}
