//! A process with the most hostile names that the kernel accepts.

use std::{
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    process::{ChildStdout, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use handshake::host;
use tempfile::TempDir;

use crate::program::child_guard::ChildGuard;

/// A directory name that clears the screen, sets a title and forges a line of `check`.
pub(crate) const FOLDER: &[u8] = b"a\x1b[2J\x1b]0;x\x07\n  ok  /usr/lib/forged";
/// The name of its process: not UTF-8, and ends a metrics sample.
pub(crate) const COMM: &[u8] = b"\x1b[2J\xff\n} 1";

const SCRIPT: &str = r#"
import ctypes, os, socket, sys
libc = ctypes.CDLL(None)
libc.prctl(15, bytes.fromhex(sys.argv[1]), 0, 0, 0)
libc.dlopen.restype = ctypes.c_void_p
assert libc.dlopen(os.fsencode(sys.argv[2]), 2)
print("ready", flush=True)
for line in sys.stdin:
    port, _, hello = line.strip().partition(" ")
    with socket.create_connection(("127.0.0.1", int(port))) as peer:
        peer.sendall(bytes.fromhex(hello))
        peer.shutdown(socket.SHUT_WR)
        peer.recv(100)
        peer.recv(1)
    print("done", flush=True)
"#;

pub(crate) struct HostileProcess {
    child: ChildGuard,
    heard: BufReader<ChildStdout>,
    folder: TempDir,
    cgroup: PathBuf,
}

impl HostileProcess {
    /// Starts a process with the most hostile name.
    pub(crate) fn start() -> Self {
        Self::named(COMM)
    }

    pub(crate) fn named(comm: &[u8]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let folder = tempfile::tempdir().unwrap();
        let library = library_in(folder.path());
        fs::create_dir_all(library.parent().unwrap()).unwrap();
        fs::copy(installed(), &library).unwrap();
        // The kernel only rejects line ends.
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("h\x1b[2J\u{9b}\u{202e}{}-{count}", std::process::id());
        let cgroup = host::cgroup2().expect("cgroup v2 is mounted").mount.join(name);
        fs::create_dir(&cgroup).unwrap();

        let mut command = Command::new("python3");
        command.args(["-c", SCRIPT, &hex(comm)]).arg(&library).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = ChildGuard::start(&mut command);
        fs::write(cgroup.join("cgroup.procs"), child.id().to_string()).unwrap();
        let heard = BufReader::new(child.stdout.take().unwrap());
        let mut hostile = Self { child, heard, folder, cgroup };
        hostile.hear("ready");
        hostile
    }

    fn hear(&mut self, word: &str) {
        let mut line = String::new();
        self.heard.read_line(&mut line).unwrap();
        assert_eq!(line.trim_end(), word);
    }

    /// Makes a connection and sends these bytes on it. Returns when it is closed.
    pub(crate) fn connect(&mut self, port: u16, bytes: &[u8]) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{port} {}", hex(bytes)).unwrap();
        self.hear("done");
    }

    /// The path of its library, which is valid UTF-8.
    pub(crate) fn library(&self) -> String {
        library_in(self.folder.path()).into_os_string().into_string().unwrap()
    }

    /// The path of its directory, which is unique.
    pub(crate) fn folder(&self) -> String {
        self.folder.path().to_str().unwrap().to_owned()
    }

    /// The name of its cgroup.
    pub(crate) fn cgroup(&self) -> String {
        self.cgroup.file_name().unwrap().to_str().unwrap().to_owned()
    }
}

impl Drop for HostileProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // The cgroup only becomes empty a moment after the process has ended.
        for _ in 0..100 {
            if fs::remove_dir(&self.cgroup).is_ok() {
                break;
            }
            thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

fn library_in(folder: &Path) -> PathBuf {
    folder.join(std::ffi::OsStr::from_bytes(FOLDER)).join("libssl.so.3")
}

/// The system's libssl, which `openssl` uses.
fn installed() -> PathBuf {
    let output = Command::new("sh").args(["-c", "ldd \"$(command -v openssl)\""]).output().unwrap();
    let libraries = String::from_utf8(output.stdout).unwrap();
    let path = libraries.split_whitespace().find(|word| word.contains("/libssl.so"));
    path.expect("openssl is linked with libssl").into()
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// A server that rejects every handshake with an alert, and lets the client close first.
pub(crate) struct Server(u16);

impl Server {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            for mut peer in listener.incoming().flatten() {
                let _ = peer.read_to_end(&mut Vec::new());
                // A fatal handshake_failure.
                let _ = peer.write_all(&[0x15, 3, 3, 0, 2, 2, 40]);
            }
        });
        Self(port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.0
    }
}

/// A TLS 1.2 ClientHello with this server name.
pub(crate) fn client_hello(server_name: &[u8]) -> Vec<u8> {
    let sized = |length: usize, bytes: &[u8]| {
        let size = u32::try_from(bytes.len()).unwrap().to_be_bytes();
        [&size[4 - length..], bytes].concat()
    };
    let name = sized(2, &[&[0][..], &sized(2, server_name)].concat());
    let extensions = [&[0, 0][..], &sized(2, &name)].concat();
    let random = [7; 32];
    let body =
        [&[3, 3][..], &random, &[0], &sized(2, &[0xc0, 0x2f]), &sized(1, &[0]), &sized(2, &extensions)]
            .concat();
    let message = [&[1][..], &sized(3, &body)].concat();
    [&[0x16, 3, 1][..], &sized(2, &message)].concat()
}
