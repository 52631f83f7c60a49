//! `openssl s_server`, and its certificate.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::{child_guard::ChildGuard, send};

/// A server that answers requests of HTTP. It dies with the thread that starts it.
pub(crate) struct TlsServer {
    child: ChildGuard,
    pub(crate) address: SocketAddr,
    pub(crate) certificate: PathBuf,
    _folder: TempDir,
}

impl TlsServer {
    /// Returns when it listens, with a certificate that is valid for this many days.
    pub(crate) fn start(days: i32, settings: &[&str]) -> Self {
        Self::start_with(Command::new("openssl"), days, settings)
    }

    /// The same with this program.
    pub(crate) fn start_with(mut command: Command, days: i32, settings: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (key, certificate) = certificate(folder.path(), days);
        // A port that was free a moment ago.
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        command.args(["s_server", "-quiet", "-www", "-accept", &address.to_string()]).args(settings);
        command.arg("-key").arg(key).arg("-cert").arg(&certificate);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = ChildGuard::start(&mut command);
        let server = Self { child, address, certificate, _folder: folder };
        let deadline = Instant::now() + Duration::from_secs(10);
        while !server.listens() {
            assert!(Instant::now() < deadline, "openssl does not listen");
            thread::sleep(Duration::from_millis(20));
        }
        server
    }

    /// Looked up, not tried: an attempt would be an opening.
    fn listens(&self) -> bool {
        let listening = format!("0100007F:{:04X} 00000000:0000 0A", self.address.port());
        fs::read_to_string("/proc/thread-self/net/tcp").unwrap().contains(&listening)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        send(self.child.id(), signal);
    }
}

/// A key, and a certificate of its own signature.
pub(crate) fn certificate(folder: &Path, days: i32) -> (PathBuf, PathBuf) {
    let [key, request, certificate] =
        ["key.pem", "request.pem", "certificate.pem"].map(|name| folder.join(name));
    let mut command = Command::new("openssl");
    command.args(["req", "-new", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=example.org", "-keyout"]);
    run(command.arg(&key).arg("-out").arg(&request));
    let mut command = Command::new("openssl");
    command.args(["x509", "-req", "-days", &days.to_string(), "-in"]).arg(request).arg("-signkey").arg(&key);
    run(command.arg("-out").arg(&certificate));
    (key, certificate)
}

fn run(command: &mut Command) {
    let out = command.stdin(Stdio::null()).output().expect("openssl, which this test needs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}
