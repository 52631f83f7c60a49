//! The program under test, and its output.

use std::{
    env,
    io::{Read, Write as _},
    net::TcpStream,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    sys::{
        prctl,
        signal::{self, Signal},
    },
    unistd::Pid,
};

/// Includes the time of the verifier.
const TIMEOUT: Duration = Duration::from_mins(1);

/// The path of the program.
pub(crate) fn binary() -> PathBuf {
    let program = env::var_os("HANDSHAKE_BIN").map(PathBuf::from);
    assert!(nix::unistd::geteuid().is_root(), "these tests load programs into the kernel: run them as root");
    program.expect("HANDSHAKE_BIN does not name the program under test: run through `cargo xtask test`")
}

/// Runs it to its end. Returns its output.
pub(crate) fn run(arguments: &[&str]) -> Output {
    Command::new(binary()).args(arguments).stdin(Stdio::null()).env_remove("RUST_LOG").output().unwrap()
}

type Said = Arc<Mutex<Vec<u8>>>;

/// A running program.
pub(crate) struct Program {
    child: Child,
    stdout: Said,
    stderr: Said,
    readers: Vec<JoinHandle<()>>,
}

impl Program {
    /// Starts `handshake trace`. Returns when its probes are attached.
    pub(crate) fn trace(arguments: &[&str], log: Option<&str>) -> Self {
        let mut command = Command::new(binary());
        Self::spawn(command.arg("trace").args(arguments), log, "tracing the connections")
    }

    /// Starts `handshake daemon`. Returns when it listens.
    pub(crate) fn daemon(arguments: &[&str], log: Option<&str>) -> Self {
        let mut command = Command::new(binary());
        let listen = ["daemon", "--listen", "127.0.0.1:0"];
        Self::spawn(command.args(listen).args(arguments), log, "listening on http://")
    }

    /// Returns when it has printed `ready`.
    pub(crate) fn spawn(command: &mut Command, log: Option<&str>, ready: &str) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).env_remove("RUST_LOG");
        if let Some(level) = log {
            command.env("RUST_LOG", level);
        }
        // SAFETY: between fork and exec only one system call is made.
        unsafe { command.pre_exec(|| Ok(prctl::set_pdeathsig(Signal::SIGKILL)?)) };
        let mut child = command.spawn().unwrap();
        let (stdout, stderr) = (Said::default(), Said::default());
        let readers =
            vec![read(child.stdout.take().unwrap(), &stdout), read(child.stderr.take().unwrap(), &stderr)];
        let program = Self { child, stdout, stderr, readers };
        wait(ready, &program.stderr, |said| said.contains(ready));
        program
    }

    /// Waits until its standard output meets the condition.
    #[track_caller]
    pub(crate) fn wait_for(&self, what: &str, enough: impl Fn(&str) -> bool) {
        wait(what, &self.stdout, enough);
    }

    /// Its standard output so far.
    pub(crate) fn said(&self) -> String {
        text(&self.stdout)
    }

    /// Returns the metrics as soon as they meet the condition.
    #[track_caller]
    pub(crate) fn scrape_until(&self, enough: impl Fn(&str) -> bool) -> String {
        let said = text(&self.stderr);
        let (_, address) = said.split_once("listening on http://").unwrap();
        let address = address.split('/').next().unwrap();
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with("HTTP/1.1 200"), "{head}");
            if enough(body) {
                return body.to_owned();
            }
            assert!(Instant::now() < deadline, "not in time: {body}");
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Stops it. Returns its standard output and standard error.
    pub(crate) fn stop(mut self) -> (Vec<u8>, Vec<u8>) {
        signal::kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), Signal::SIGTERM).unwrap();
        assert!(self.child.wait().unwrap().success(), "{}", text(&self.stderr));
        self.readers.drain(..).for_each(|reader| reader.join().unwrap());
        let all = |said: &Said| said.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (all(&self.stdout), all(&self.stderr))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(said: &Said) -> String {
    String::from_utf8_lossy(&said.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
}

#[track_caller]
fn wait(what: &str, said: &Said, enough: impl Fn(&str) -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !enough(&text(said)) {
        assert!(Instant::now() < deadline, "not in time: {what}; it said {}", text(said));
        thread::sleep(Duration::from_millis(20));
    }
}

fn read(mut from: impl Read + Send + 'static, into: &Said) -> JoinHandle<()> {
    let into = Arc::clone(into);
    thread::spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(length @ 1..) = from.read(&mut chunk) {
            into.lock().unwrap_or_else(PoisonError::into_inner).extend(&chunk[..length]);
        }
    })
}
