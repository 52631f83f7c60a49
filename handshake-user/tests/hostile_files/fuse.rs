//! A file system whose server answers everything but reads, as if it were gone: FUSE, with a server that
//! implements a few replies of the kernel's protocol (`include/uapi/linux/fuse.h`).

use std::path::Path;

use crate::untrusted::UntrustedProcess;

/// What the server's child does with the one file.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// It maps it.
    Silent,
    /// It reads it as well, and files that are opened later are for direct access: the kernel waits for the
    /// pages that are being read to map such a file, with the mappings of the process locked.
    Direct,
    /// And it maps such a file itself.
    Own,
}

/// Serves a directory with one file, all in one mount namespace, to a child that prints its process id.
const SERVER: &str = r#"
import ctypes, mmap, os, ssl, struct, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
folder, kind = sys.argv[1:3]
check(libc.unshare(0x20000))
check(libc.mount(None, b"/", None, 1 << 14 | 1 << 18, None))
device = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
check(libc.mount(b"served", folder.encode(), b"fuse", 6, options.encode()))
def code(file):
    return mmap.mmap(file, 4096, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_EXEC)
if os.fork() == 0:
    os.close(device)
    libc.prctl(1, 9, 0, 0, 0)
    path = folder + "/libssl.so.3"
    file = os.open(path, os.O_RDONLY)
    kept = code(file)
    if kind != "silent":
        threading.Thread(target=os.pread, args=(file, 1, 0), daemon=True).start()
        time.sleep(0.3)
        direct = os.open(path, os.O_RDONLY)
    print(os.getpid(), flush=True)
    if kind == "own":
        code(direct)
    while True:
        time.sleep(1)
def attributes(node):
    mode, size = (0o40755, 0) if node == 1 else (0o100755, 1 << 20)
    return struct.pack("<6Q10I", node, size, size >> 9, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)
INIT, LOOKUP, FORGET, GETATTR, OPEN, READ, STATFS, RELEASE, FLUSH, INTERRUPT = 26, 1, 2, 3, 14, 15, 17, 18, 25, 36
DIRECT_IO, KEEP_CACHE, INIT_EXT, DIRECT_IO_ALLOW_MMAP = 1, 2, 1 << 30, 1 << 4
opened = 0
while True:
    request = os.read(device, 1 << 20)
    length, op, unique, node = struct.unpack_from("<IIQQ", request)
    error, answer = 0, b""
    if op in (FORGET, READ, INTERRUPT):
        continue
    elif op == INIT:
        flags = [DIRECT_IO_ALLOW_MMAP, *[0] * 7]
        answer = struct.pack("<IIIIHHIIHH8I", 7, 36, 0, INIT_EXT, 0, 0, 1 << 16, 1, 16, 0, *flags)
    elif op == LOOKUP:
        answer = struct.pack("<QQQQII", 2, 0, 3600, 3600, 0, 0) + attributes(2)
    elif op == GETATTR:
        answer = struct.pack("<QII", 3600, 0, 0) + attributes(node)
    elif op == OPEN:
        is_direct = kind != "silent" and opened > 0
        answer = struct.pack("<QII", 0, KEEP_CACHE | DIRECT_IO if is_direct else KEEP_CACHE, 0)
        opened += 1
    elif op == STATFS:
        answer = struct.pack("<5Q4I24s", 0, 0, 0, 0, 0, 4096, 255, 4096, 0, b"")
    elif op not in (RELEASE, FLUSH):
        error = -38
    os.write(device, struct.pack("<IiQ", 16 + len(answer), error, unique) + answer)
"#;

/// Starts it. Returns the child's process id as well.
pub(crate) fn start(folder: &Path, kind: Kind) -> (UntrustedProcess, u32) {
    let kind = match kind {
        Kind::Silent => "silent",
        Kind::Direct => "direct",
        Kind::Own => "own",
    };
    let mut server = UntrustedProcess::python(SERVER, &[folder, Path::new(kind)]);
    let pid = server.line().trim().parse().unwrap();
    (server, pid)
}
