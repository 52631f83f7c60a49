//! As many simultaneous connections as two processes have descriptors for, in their own network namespace.

use std::{
    collections::BTreeMap,
    env,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::{fd::AsFd as _, unix::process::CommandExt as _},
    process::{ChildStdin, ChildStdout, Command, Stdio},
};

use nix::{
    sched::{self, CloneFlags},
    sys::socket::{self, Backlog},
};
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::program::child_guard::ChildGuard;

/// Connections, each with two ends on this host.
pub(crate) const PAIRS: f64 = 12_000.0;
/// Connection attempts to a port without a listener.
pub(crate) const REFUSED: f64 = 300.0;
/// How the connections end, in turn.
const WAYS: &[u8] = &[CLIENT_FIRST, RESET, SERVER_FIRST];
const CLIENT_FIRST: u8 = 0;
const RESET: u8 = 1;
const SERVER_FIRST: u8 = 2;
/// The environment variable that selects the part of a load process.
const PART: &str = "FULL_TEST_PART";
/// Marks the lines of the load among those of the test harness.
const MARK: &str = "load: ";

/// The two processes, which proceed step by step.
pub(crate) struct Load {
    server: Part,
    client: Part,
}

impl Load {
    pub(crate) fn start() -> Self {
        let mut server = Part::start("server", |command| {
            // SAFETY: between fork and exec only a system call is made.
            unsafe { command.pre_exec(|| Ok(sched::unshare(CloneFlags::CLONE_NEWNET)?)) };
        });
        let at = server.hear();
        let network = std::fs::File::open(format!("/proc/{}/ns/net", server.child.id())).unwrap();
        let client = Part::start("client", |command| {
            // SAFETY: as above, on a file that the closure owns.
            unsafe { command.pre_exec(move || Ok(sched::setns(network.as_fd(), CloneFlags::CLONE_NEWNET)?)) };
        });
        let mut load = Self { server, client };
        load.client.say(&at);
        load
    }

    /// Opens all connections. Returns when both ends are established.
    pub(crate) fn open(&mut self) {
        self.client.say("open");
        self.client.expect("open");
        self.server.expect("open");
    }

    /// The number of its sockets in each state of `/proc/net/tcp`, without listeners and time-wait
    /// minisockets.
    pub(crate) fn sockets(&self) -> BTreeMap<String, usize> {
        let table = std::fs::read_to_string(format!("/proc/{}/net/tcp", self.server.child.id())).unwrap();
        let mut states = BTreeMap::new();
        for line in table.lines().skip(1) {
            let columns: Vec<_> = line.split_ascii_whitespace().collect();
            let (state, timer) = (columns[3], columns[5]);
            if state != "0A" && !timer.starts_with("03:") {
                *states.entry(state.to_owned()).or_default() += 1;
            }
        }
        states
    }

    /// Closes all connections. Returns when both ends of each are closed.
    pub(crate) fn close(&mut self) {
        self.server.say("close");
        self.client.say("close");
        self.client.expect("closed");
        self.server.expect("closed");
    }
}

struct Part {
    child: ChildGuard,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Part {
    fn start(part: &str, prepare: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", "load::part", "--ignored", "--nocapture"]).env(PART, part);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        prepare(&mut command);
        let mut child = ChildGuard::start(&mut command);
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self { child, stdin, stdout }
    }

    fn say(&mut self, word: &str) {
        writeln!(self.stdin, "{word}").unwrap();
    }

    fn hear(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.stdout.read_line(&mut line).unwrap(), 0, "a process of the load has ended");
            if let Some((_, word)) = line.split_once(MARK) {
                return word.trim().to_owned();
            }
        }
    }

    fn expect(&mut self, word: &str) {
        assert_eq!(self.hear(), word);
    }
}

/// Not a test: the entry point of the load processes.
#[test]
#[ignore = "a process of the load"]
fn part() {
    let Ok(part) = env::var(PART) else { return };
    let limit = getrlimit(Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    setrlimit(Resource::Nofile, raised).unwrap();
    match &*part {
        "server" => serve(),
        _ => connect(),
    }
}

fn serve() {
    bring_up();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // A full backlog would delay connection attempts until a retransmitted SYN.
    socket::listen(&listener, Backlog::new(4096).unwrap()).unwrap();
    say(&listener.local_addr().unwrap().to_string());
    let mut streams: Vec<(u8, TcpStream)> = Vec::new();
    while streams.len() < pairs() {
        let (mut stream, _) = listener.accept().unwrap();
        let mut way = [0];
        stream.read_exact(&mut way).unwrap();
        streams.push((way[0], stream));
    }
    say("open");
    assert_eq!(hear(), "close");
    let (first, rest): (Vec<_>, Vec<_>) = streams.into_iter().partition(|(way, _)| *way == SERVER_FIRST);
    drop(first);
    for (_, stream) in rest {
        wait_for_end(stream);
    }
    say("closed");
    // Keeps the namespace until the test has seen the last FIN.
    hear();
}

fn connect() {
    let at: SocketAddr = hear().parse().unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_eq!(hear(), "open");
    for _ in 0..refused() {
        TcpStream::connect(free).unwrap_err();
    }
    let mut streams: Vec<(u8, TcpStream)> = Vec::new();
    for &way in WAYS.iter().cycle().take(pairs()) {
        let mut stream = TcpStream::connect(at).unwrap();
        stream.write_all(&[way]).unwrap();
        streams.push((way, stream));
    }
    say("open");
    assert_eq!(hear(), "close");
    let (rest, first): (Vec<_>, Vec<_>) = streams.into_iter().partition(|(way, _)| *way == SERVER_FIRST);
    for (way, stream) in first {
        if way == RESET {
            let at_once = nix::libc::linger { l_onoff: 1, l_linger: 0 };
            socket::setsockopt(&stream, socket::sockopt::Linger, &at_once).unwrap();
        }
        drop(stream);
    }
    for (_, stream) in rest {
        wait_for_end(stream);
    }
    say("closed");
    hear();
}

fn wait_for_end(mut stream: TcpStream) {
    // A reset also ends the connection.
    let _ = stream.read(&mut [0]);
    let _ = stream.shutdown(Shutdown::Both);
}

/// The loopback device of a new namespace is down.
fn bring_up() {
    let status = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "`ip link set lo up` failed: is iproute2 installed?"
    );
}

fn say(word: &str) {
    println!("\n{MARK}{word}");
    io::stdout().flush().unwrap();
}

/// Returns an empty string when the test has ended.
fn hear() -> String {
    let mut line = String::new();
    io::stdin().read_line(&mut line).unwrap();
    line.trim().to_owned()
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small whole numbers")]
const fn pairs() -> usize {
    PAIRS as usize
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small whole numbers")]
const fn refused() -> usize {
    REFUSED as usize
}
