//! The daemon under test, and its answers over HTTP.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    process::{Command, ExitStatus},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use super::{Running, Said, program};

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// What precedes the address in the line that says that it listens.
const LISTENING: &str = "listening on http";

/// A daemon that has attached its probes.
pub(crate) struct Daemon {
    running: Running,
    stderr: Said,
    /// Where it listens.
    pub(crate) address: String,
}

/// `handshake daemon`, which dies with the test.
pub(crate) fn command(arguments: &[&str]) -> Command {
    program(&[&["daemon"], arguments].concat())
}

impl Daemon {
    /// Starts it on a free port.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::spawn(command(&["--listen", "127.0.0.1:0"]).args(arguments))
    }

    /// Returns when it listens.
    pub(crate) fn spawn(command: &mut Command) -> Self {
        let stderr = Said::default();
        let running = Running::start(command, LISTENING, |_| (), stderr.taker());
        let running = running.unwrap_or_else(|reason| panic!("{reason}"));
        let log = stderr.text();
        let (_, listening) = log.split_once(LISTENING).unwrap();
        let (_, address) = listening.split_once("://").unwrap();
        let address = address.lines().next().unwrap().trim_end_matches("/metrics").to_owned();
        Self { running, stderr, address }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// What it has logged so far.
    pub(crate) fn said(&self) -> String {
        self.stderr.text()
    }

    /// Its resident memory, KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        self.status("VmRSS:")
    }

    /// A number from its `/proc/PID/status`.
    pub(crate) fn status(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let rest = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        rest.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// How many files it has open.
    pub(crate) fn files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// How many sockets it has open.
    pub(crate) fn sockets(&self) -> usize {
        let files = fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().flatten();
        files
            .filter_map(|file| fs::read_link(file.path()).ok())
            .filter(|to| to.to_string_lossy().starts_with("socket:"))
            .count()
    }

    /// One request on a connection of its own: status, head, body.
    pub(crate) fn request(&self, method: &str, path: &str) -> (u16, String, String) {
        let (status, head, body) = self.request_with(method, path, "");
        (status, head, String::from_utf8(body).unwrap())
    }

    /// The same with further headers, each with its line end.
    pub(crate) fn request_with(&self, method: &str, path: &str, headers: &str) -> (u16, String, Vec<u8>) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{headers}\r\n")
            .unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = answer.windows(4).position(|end| end == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(answer[..end].to_vec()).unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), head, answer.split_off(end + 4))
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
        self.scrape_within(Duration::from_secs(10), enough)
    }

    /// The same with this timeout.
    pub(crate) fn scrape_within(&self, timeout: Duration, enough: impl Fn(&Scrape) -> bool) -> Scrape {
        let deadline = Instant::now() + timeout;
        loop {
            let scrape = self.scrape();
            if enough(&scrape) || Instant::now() > deadline {
                return scrape;
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// The text of `/metrics` as soon as it meets the condition.
    #[track_caller]
    pub(crate) fn metrics_until(&self, enough: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let (status, head, text) = self.request("GET", "/metrics");
            assert_eq!(status, 200, "{head}");
            if enough(&text) {
                return text;
            }
            assert!(Instant::now() < deadline, "not in time: {text}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Kills it, and does not wait until the kernel has detached all its probes.
    pub(crate) fn abandon(self) {
        self.running.abandon();
    }

    /// Ends it by a signal. Returns its status, how long it took, and its whole log.
    #[track_caller]
    pub(crate) fn end(self, signal: Signal) -> (ExitStatus, Duration, Vec<u8>) {
        let (status, took) = self.running.end(signal);
        (status, took, self.stderr.bytes())
    }

    /// The same for a daemon that has nothing to say of its end.
    #[track_caller]
    pub(crate) fn stop(self, signal: Signal) -> (ExitStatus, Duration) {
        let (status, took, log) = self.end(signal);
        let log = String::from_utf8_lossy(&log);
        let (_, listening) = log.split_once(LISTENING).unwrap();
        assert_eq!(listening.lines().count(), 1, "an orderly end logs nothing: {log}");
        (status, took)
    }
}

/// The samples of one scrape, by name and labels as they are written.
pub(crate) struct Scrape(BTreeMap<String, f64>);

impl Scrape {
    pub(crate) fn parse(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let sample = |line: &str| {
            let (series, value) = line.rsplit_once(' ').expect("a sample has a value");
            (series.to_owned(), value.parse().expect("a value is a number"))
        };
        Self(samples.map(sample).collect())
    }

    /// The series of a metric that are not zero, for the message of a failure.
    pub(crate) fn series(&self, name: &str) -> String {
        let of_metric = |series: &str| series.split('{').next() == Some(name);
        let samples = self.0.iter().filter(|(series, value)| of_metric(series) && **value != 0.0);
        samples.fold(String::new(), |text, (series, value)| format!("{text}\n    {series} {value}"))
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
