//! The daemon under test, and its answers over HTTP.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Child, ChildStderr, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        prctl,
        signal::{self, Signal},
    },
    unistd::Pid,
};

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A daemon that has attached its probes.
pub(crate) struct Daemon {
    child: Child,
    stderr: BufReader<ChildStderr>,
    /// Where it listens.
    pub(crate) address: String,
}

/// `handshake daemon`, which dies with the test.
pub(crate) fn command(arguments: &[&str]) -> Command {
    program(&[&["daemon"], arguments].concat())
}

/// `handshake`, which dies with the test.
pub(crate) fn program(arguments: &[&str]) -> Command {
    let program = env::var_os("HANDSHAKE_BIN").map(PathBuf::from);
    let program =
        program.expect("HANDSHAKE_BIN does not name the program under test: run through `cargo xtask test`");
    assert!(nix::unistd::geteuid().is_root(), "these tests load programs into the kernel: run them as root");
    let mut command = Command::new(program);
    command.args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("HANDSHAKE_")) {
        command.env_remove(name);
    }
    // SAFETY: between fork and exec only one system call is made.
    unsafe { command.pre_exec(|| Ok(prctl::set_pdeathsig(Signal::SIGKILL)?)) };
    command
}

impl Daemon {
    /// Starts it on a free port.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::spawn(command(&["--listen", "127.0.0.1:0"]).args(arguments))
    }

    /// Returns when it listens.
    pub(crate) fn spawn(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let mut daemon = Self { child, stderr, address: String::new() };
        let mut log = String::new();
        while daemon.address.is_empty() {
            let mut line = String::new();
            assert_ne!(daemon.stderr.read_line(&mut line).unwrap(), 0, "it ended: {log}");
            if let Some((_, rest)) = line.split_once("listening on http://") {
                rest.trim().trim_end_matches("/metrics").clone_into(&mut daemon.address);
            }
            log.push_str(&line);
        }
        daemon
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its process, for signals.
    #[allow(dead_code, reason = "for the tests that stop it")]
    pub(crate) fn process(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    /// Its resident memory, KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        self.status("VmRSS:")
    }

    /// A number from its `/proc/PID/status`.
    pub(crate) fn status(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let rest = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        rest.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// How many files it has open.
    pub(crate) fn files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    /// How many sockets it has open.
    pub(crate) fn sockets(&self) -> usize {
        let files = fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().flatten();
        files
            .filter_map(|file| fs::read_link(file.path()).ok())
            .filter(|to| to.to_string_lossy().starts_with("socket:"))
            .count()
    }

    /// One request on a connection of its own: status, head, body.
    pub(crate) fn request(&self, method: &str, path: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), head.to_owned(), body.to_owned())
    }

    /// The samples of `/metrics`.
    pub(crate) fn scrape(&self) -> Scrape {
        let (status, _, text) = self.request("GET", "/metrics");
        assert_eq!(status, 200, "{text}");
        Scrape::parse(&text)
    }

    /// The first scrape for which `enough` holds, or the last before the timeout: the caller's assertions
    /// then show its values.
    pub(crate) fn scrape_until(&self, enough: impl Fn(&Scrape) -> bool) -> Scrape {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let scrape = self.scrape();
            if enough(&scrape) || Instant::now() > deadline {
                return scrape;
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Kills it, and does not wait until the kernel has detached all its probes.
    #[allow(dead_code, reason = "for the tests of strangers' files, which leave many probes")]
    pub(crate) fn abandon(mut self) {
        self.child.kill().unwrap();
        std::mem::forget(self);
    }

    /// Ends it by a signal. Returns its status and how long it took.
    pub(crate) fn stop(mut self, signal: Signal) -> (ExitStatus, Duration) {
        let begin = Instant::now();
        signal::kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
        // Standard error ends with the process.
        let mut log = String::new();
        self.stderr.read_to_string(&mut log).unwrap();
        let status = self.child.wait().unwrap();
        assert_eq!(log, "", "an orderly end logs nothing");
        (status, begin.elapsed())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The samples of one scrape, by name and labels as they are written.
pub(crate) struct Scrape(BTreeMap<String, f64>);

impl Scrape {
    fn parse(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let sample = |line: &str| {
            let (series, value) = line.rsplit_once(' ').expect("a sample has a value");
            (series.to_owned(), value.parse().expect("a value is a number"))
        };
        Self(samples.map(sample).collect())
    }

    /// The sum over the series of a metric that have all these labels, such as `role="client"`.
    pub(crate) fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let matches = |series: &str| {
            let (metric, rest) = series.split_once('{').unwrap_or((series, ""));
            metric == name && labels.iter().all(|label| rest.contains(label))
        };
        // An empty sum is -0.0, which would be printed as such.
        0.0 + self.0.iter().filter(|(series, _)| matches(series)).map(|(_, value)| value).sum::<f64>()
    }
}
