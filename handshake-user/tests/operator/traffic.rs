//! Healthy connections, and those with one fault each.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    path::Path,
    process::{Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    libc,
    sched::{CloneFlags, unshare},
};

use crate::{
    program::tls_server::TlsServer,
    testbed::{
        Family, Testbed,
        faults::drop_first,
        packet::{Packet, Side},
    },
};

/// A hundred ordinary connections a second, until it is dropped.
pub(crate) struct Background {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    pub(crate) fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let run = move || {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            while !seen.load(Ordering::Relaxed) {
                let client = TcpStream::connect(address).unwrap();
                let (mut server, _) = listener.accept().unwrap();
                drop(client);
                server.read_to_end(&mut Vec::new()).unwrap();
                drop(server);
                thread::sleep(Duration::from_millis(10));
            }
        };
        Self { stop, thread: Some(thread::spawn(run)) }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // If it has panicked, the test has said so.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Openings over a link that loses the first SYN of each.
pub(crate) fn lose_syns() {
    const N: usize = 30;
    let bed = Testbed::new(Duration::from_millis(20));
    bed.fault(drop_first(N, Side::Client, Packet::is_syn));
    let (listener, address) = bed.listen_on(Side::Server, Family::V4, |_| ());
    // With room for all at once: a full accept queue is another fault.
    listener.listen(128).unwrap();
    let begin = Instant::now();
    thread::scope(|scope| {
        for _ in 0..N {
            scope.spawn(|| bed.socket(Side::Client, Family::V4).connect(&address.into()).unwrap());
        }
        for _ in 0..N {
            listener.accept().unwrap();
        }
    });
    assert!(begin.elapsed() > Duration::from_secs(1), "no SYN was lost");
}

/// Openings to a port on which nobody listens.
pub(crate) fn be_refused() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for _ in 0..200 {
        TcpStream::connect(closed).unwrap_err();
    }
}

/// Openings for which the range of local ports is too small, in a network namespace of its own.
pub(crate) fn exhaust_ports() {
    const PORTS: usize = 4;
    let run = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
        assert!(up.success());
        fs::write("/proc/sys/net/ipv4/ip_local_port_range", format!("40000 {}", 40000 + PORTS - 1)).unwrap();
        let listener = TcpListener::bind("127.0.0.1:9").unwrap();
        let address = listener.local_addr().unwrap();
        let _held: Vec<_> = (0..PORTS).map(|_| TcpStream::connect(address).unwrap()).collect();
        for _ in 0..3 {
            let error = TcpStream::connect(address).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL));
        }
    };
    thread::spawn(run).join().unwrap();
}

/// Openings to a server with a short accept queue, which accepts nothing. Their SYNs are retransmitted twice,
/// a second apart, so that the drops rise from one scrape to the next.
pub(crate) fn overflow_accept_queue() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // SAFETY: the socket is open; it is told another backlog.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 1) }, 0);
    let address = listener.local_addr().unwrap();
    let clients: Vec<_> = (0..4)
        .map(|_| thread::spawn(move || TcpStream::connect_timeout(&address, Duration::from_millis(2500))))
        .collect();
    let opened = clients.into_iter().flat_map(|client| client.join().unwrap()).count();
    assert!(opened < 4, "all {opened} fitted into the queue");
}

/// Connections whose server closes two seconds after its client.
pub(crate) fn close_late() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let servers: Vec<_> = (0..200)
        .map(|_| {
            let client = TcpStream::connect(address).unwrap();
            let server = listener.accept().unwrap().0;
            drop(client);
            server
        })
        .collect();
    thread::sleep(Duration::from_secs(2));
    drop(servers);
}

/// A TLS server, and the settings of its clients.
pub(crate) struct Tls {
    server: TlsServer,
    /// Where the release of OpenSSL is that both are of, if not the system's.
    home: Option<&'static Path>,
    settings: &'static [&'static str],
}

impl Tls {
    /// With a certificate that is valid for this many days.
    pub(crate) fn start(days: i32, settings: &'static [&'static str]) -> Self {
        Self { server: TlsServer::start(days, settings), home: None, settings }
    }

    /// The same of another release, which is unpacked there.
    pub(crate) fn start_with(home: &'static Path, days: i32, settings: &'static [&'static str]) -> Self {
        let home = Some(home);
        Self { server: TlsServer::start_with(openssl(home), days, settings), home, settings }
    }

    pub(crate) fn port(&self) -> u16 {
        self.server.address.port()
    }

    /// One handshake and one request.
    pub(crate) fn connect(&self) -> Output {
        let mut command = openssl(self.home);
        command.args(["s_client", "-quiet", "-no_ign_eof", "-connect", &self.server.address.to_string()]);
        command.args(self.settings).arg("-verify_return_error").arg("-CAfile").arg(&self.server.certificate);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A client that fails may have closed it.
        let _ = child.stdin.take().unwrap().write_all(b"GET / HTTP/1.0\r\n\r\n");
        child.wait_with_output().unwrap()
    }
}

fn openssl(home: Option<&Path>) -> Command {
    let Some(home) = home else { return Command::new("openssl") };
    // With its own C library, and without its default configuration, which names the release's folders.
    let mut command = Command::new(home.join("loader"));
    command.arg("--library-path").arg(home.join("lib")).arg(home.join("openssl"));
    command.env("OPENSSL_CONF", "/dev/null");
    command
}
