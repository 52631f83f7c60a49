//! Clients and servers in wide use, one file each. All of them transfer one small page.

use std::{
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{ChildStdin, Command, Output, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::settings::Settings;
use crate::{
    case::pause,
    program::{
        child_guard::ChildGuard,
        machine::{patience, probes_libraries},
    },
    server::{Server, await_listener},
    testbed::{Testbed, packet::Side},
    tracer::Tracer,
};

pub(crate) mod asyncio;
pub(crate) mod coroutines;
pub(crate) mod curl;
pub(crate) mod false_start;
pub(crate) mod gnutls;
pub(crate) mod go;
pub(crate) mod haproxy;
pub(crate) mod java;
pub(crate) mod nginx;
pub(crate) mod node;
pub(crate) mod openssl;
pub(crate) mod postgres;
pub(crate) mod python;
pub(crate) mod rustls;

pub(crate) use go::{pie as go_pie, stripped as go_stripped, wrapped as go_wrapped};
pub(crate) use openssl::{v1_1_1 as openssl_1_1_1, v3_5 as openssl_3_5, v3_6 as openssl_3_6};

pub(crate) const REQUEST: &[u8] = b"GET / HTTP/1.0\r\n\r\n";

/// How long a program may take.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A client and a server.
pub(crate) struct Peers {
    pub(crate) client: for<'a> fn(&'a Testbed, SocketAddr, Settings) -> Box<dyn Client + 'a>,
    pub(crate) server: fn(&Testbed, SocketAddr, Settings) -> Running,
    /// The TLS libraries of the client and of the server; `None` where none of its functions can be probed.
    pub(crate) libraries: [Option<Library>; 2],
}

/// A library whose functions can be probed, and how the program uses it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Library {
    GnuTls,
    Go,
    OpenSsl,
    /// With memory BIOs or coroutines: when a call sleeps, it is unknown whether it waits for the peer.
    OpenSslUncertain,
}

impl Library {
    /// Its name in records.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::GnuTls => "gnutls",
            Self::Go => "go",
            Self::OpenSsl | Self::OpenSslUncertain => "openssl",
        }
    }
}

const fn both(library: Option<Library>) -> [Option<Library>; 2] {
    [library; 2]
}

impl Peers {
    pub(crate) fn library(&self, side: Side) -> Option<Library> {
        let library = match side {
            Side::Client => self.libraries[0],
            Side::Server => self.libraries[1],
        };
        library.filter(|_| probes_libraries())
    }
}

/// A client program.
pub(crate) trait Client {
    /// Connects this many times, one after the other, and resumes the session if there is one. May return
    /// before the last connection has ended.
    fn connect(&mut self, times: usize) -> Vec<Account>;

    /// The same client as one of the tests' own programs, which can begin a connection without waiting for
    /// its end. Returns `None` for others.
    fn driven(&mut self) -> Option<&mut Driven> {
        None
    }
}

/// What a client reports about a connection.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    pub(crate) pid: u32,
    /// How long the handshake took by the program's own clock.
    pub(crate) taken: Option<Duration>,
    /// The program's message if the handshake failed.
    pub(crate) failure: Option<String>,
}

/// A running server, with its working folder.
pub(crate) struct Running {
    _server: Server,
    _folder: Option<TempDir>,
}

impl Running {
    #[track_caller]
    pub(crate) fn start(bed: &Testbed, address: SocketAddr, command: Command) -> Self {
        Self::start_in(None, bed, address, command)
    }

    #[track_caller]
    pub(crate) fn start_in(
        folder: Option<TempDir>,
        bed: &Testbed,
        address: SocketAddr,
        mut command: Command,
    ) -> Self {
        command.stderr(Stdio::null());
        let running = Self { _server: Server::start(command), _folder: folder };
        await_listener(bed, address.port());
        running
    }
}

/// One of the tests' own programs as a server.
#[track_caller]
pub(crate) fn serve(command: Command, bed: &Testbed, address: SocketAddr, settings: Settings) -> Running {
    serve_with(command, bed, address, settings, &[])
}

/// The same with more arguments.
#[track_caller]
pub(crate) fn serve_with(
    mut command: Command,
    bed: &Testbed,
    address: SocketAddr,
    settings: Settings,
    more: &[&str],
) -> Running {
    command.args(arguments("server", address, settings)).args(more);
    Running::start(bed, address, command)
}

/// One of the tests' own programs as a client.
#[track_caller]
pub(crate) fn drive(command: Command, address: SocketAddr, settings: Settings) -> Box<dyn Client> {
    drive_with(command, address, settings, &[])
}

/// The same with more arguments.
#[track_caller]
pub(crate) fn drive_with(
    mut command: Command,
    address: SocketAddr,
    settings: Settings,
    more: &[&str],
) -> Box<dyn Client> {
    command.args(arguments("client", address, settings)).args(more);
    Box::new(Driven::start(command))
}

fn arguments(role: &str, address: SocketAddr, settings: Settings) -> Vec<String> {
    let mut arguments = vec![role.to_owned(), address.ip().to_string(), address.port().to_string()];
    arguments.extend(settings.arguments());
    arguments
}

/// A client that connects once for every line it reads, and writes a line about the result.
pub(crate) struct Driven {
    child: ChildGuard,
    stdin: ChildStdin,
    lines: Receiver<String>,
}

impl Driven {
    #[track_caller]
    fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = ChildGuard::start(&mut command);
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (send, lines) = mpsc::channel();
        // It ends with the program.
        thread::spawn(move || {
            BufReader::new(stdout).lines().map_while(Result::ok).all(|line| send.send(line).is_ok())
        });
        Self { child, stdin, lines }
    }

    /// Begins a connection without waiting for it. Returns the process id.
    pub(crate) fn begin(&mut self) -> u32 {
        self.stdin.write_all(b"\n").unwrap();
        self.child.id()
    }
}

impl Client for Driven {
    #[track_caller]
    fn connect(&mut self, times: usize) -> Vec<Account> {
        let pid = self.child.id();
        let once = |_| {
            self.stdin.write_all(b"\n").unwrap();
            let line = self.lines.recv_timeout(patience(TIMEOUT)).expect("no line from the client in time");
            let taken = line.parse().ok().map(Duration::from_micros);
            let failure = taken.is_none().then_some(line);
            Account { pid, taken, failure }
        };
        (0..times).map(once).collect()
    }

    fn driven(&mut self) -> Option<&mut Driven> {
        Some(self)
    }
}

/// Runs a client to its end, with `input` on its standard input. Returns its process id and output.
#[track_caller]
pub(crate) fn run(command: Command, input: &[u8]) -> (u32, Output) {
    run_until(command, input, None)
}

/// The same for a client that ends when its standard input does, which is closed after `time`.
#[track_caller]
pub(crate) fn run_for(command: Command, input: &[u8], time: Duration) -> (u32, Output) {
    run_until(command, input, Some(Instant::now() + time))
}

#[track_caller]
fn run_until(mut command: Command, input: &[u8], end: Option<Instant>) -> (u32, Output) {
    let program = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child =
        command.spawn().unwrap_or_else(|error| panic!("{program}, which this test needs: {error}"));
    let pid = child.id();
    let mut stdin = child.stdin.take();
    // A program that fails may have closed it.
    let _ = stdin.as_mut().unwrap().write_all(input);
    let deadline = Instant::now() + patience(TIMEOUT);
    while child.try_wait().unwrap().is_none() {
        if end.is_some_and(|end| Instant::now() > end) {
            drop(stdin.take());
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            let out = child.wait_with_output().unwrap();
            panic!("{program} does not end: {}", String::from_utf8_lossy(&out.stderr));
        }
        pause(10);
    }
    (pid, child.wait_with_output().unwrap())
}

/// The account of a client that reports no time.
pub(crate) fn account(pid: u32, out: &Output) -> Account {
    let failure = (!out.status.success()).then(|| {
        format!("{} {}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
    });
    Account { pid, taken: None, failure }
}

/// A proxy as a client: it takes plain-text requests on its own side of the link and forwards them over it
/// with TLS.
pub(crate) struct Proxy<'a> {
    bed: &'a Testbed,
    server: Server,
    _folder: TempDir,
}

impl Proxy<'_> {
    const PORT: u16 = 8080;
    const ADDRESS: &'static str = "127.0.0.1:8080";
}

impl Client for Proxy<'_> {
    fn connect(&mut self, times: usize) -> Vec<Account> {
        let once = |_| {
            let mut command = self.bed.command(Side::Client, "curl");
            command.args(["--silent", "--show-error", "--fail", "--max-time", "10", Self::ADDRESS]);
            let (_, out) = run(command, b"");
            account(self.server.pid(), &out)
        };
        (0..times).map(once).collect()
    }
}

/// Waits until the tracer has probed a program with a library of its own, which must be running: the
/// handshakes of its first tens of milliseconds are seen on the wire alone (docs/limitations.md).
#[track_caller]
pub(crate) fn await_probes(program: &Path) {
    if !probes_libraries() {
        return;
    }
    let path = format!(" path={} ", program.display());
    let found = Tracer::shared().wait_for_log(patience(TIMEOUT), |lines| {
        let last = lines.iter().rev().find(|line| line.contains(&path));
        last.is_some_and(|line| line.contains(" TLS library "))
    });
    assert!(found, "the tracer did not find {}:\n{}", program.display(), Tracer::shared().stderr());
}

/// A source file of the tests' own programs.
pub(crate) fn source(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(path)
}

/// A program that `cargo xtask` builds or unpacks for the tests.
pub(crate) fn tool(path: &str) -> PathBuf {
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let tool = target.with_file_name("tools").join("peers").join(path);
    assert!(tool.exists(), "there is no {}: run through `cargo xtask test`", tool.display());
    tool
}

/// The server address of all scenarios.
pub(crate) fn server_address(bed: &Testbed) -> SocketAddr {
    SocketAddr::new(bed.address(Side::Server, crate::testbed::Family::V4), 4433)
}
