//! The program under test: how every suite that needs root finds it, starts it and ends it.

#![allow(dead_code, reason = "no suite uses all of it")]

pub(crate) mod blind;
pub(crate) mod child_guard;
mod daemon;
pub(crate) mod machine;
pub(crate) mod tls_server;

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Read},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sched::{self, CloneFlags},
    sys::signal::{self, Signal},
    unistd::Pid,
};

#[allow(unused_imports, reason = "not every suite needs the daemon")]
pub(crate) use self::daemon::{Daemon, Scrape, command};
use self::{
    child_guard::{ChildGuard, die_with_the_starter},
    machine::patience,
};

/// How long the start may take: the kernel verifies the programs, which is slow on a small machine.
const START: Duration = Duration::from_mins(1);
/// How long the end may take: there are some hundred probes, and the kernel takes up to a tenth of a second
/// to detach each.
const END: Duration = Duration::from_mins(1);
/// How long an answer or a record may take.
const TIMEOUT: Duration = Duration::from_mins(1);

/// What `trace` prints on standard error when its probes are attached.
pub(crate) const TRACING: &str = "tracing the connections";

/// Its path.
pub(crate) fn binary() -> PathBuf {
    assert!(nix::unistd::geteuid().is_root(), "these tests load programs into the kernel: run them as root");
    let program = env::var_os("HANDSHAKE_BIN").map(PathBuf::from);
    program.expect("HANDSHAKE_BIN does not name the program under test: run through `cargo xtask test`")
}

/// `handshake`, which dies with the thread that starts it. Only its standard error is kept.
pub(crate) fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    isolate(&mut command);
    command
}

/// Makes the process die with the thread that starts it, and hides the settings of the test's environment
/// from it.
fn isolate(command: &mut Command) {
    for (name, _) in env::vars_os().filter(|(name, _)| is_setting(&name.to_string_lossy())) {
        command.env_remove(name);
    }
    die_with_the_starter(command);
}

fn is_setting(name: &str) -> bool {
    name.starts_with("HANDSHAKE_") || name.starts_with("OTEL_")
}

/// Copies a program that is going to be run. By a process of its own: the kernel runs no file that is open
/// for writing (`ETXTBSY`), and what this process has open is for a moment also in a child of another test.
pub(crate) fn copy_program(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg(from).arg(to).status().unwrap();
    assert!(copied.success(), "cannot copy {} to {}", from.display(), to.display());
}

/// Perf tracepoints need tracefs, which not every host has mounted: the program gets a mount of its own, in a
/// mount namespace that ends with it.
pub(crate) fn mount_tracefs() -> std::io::Result<()> {
    const NONE: Option<&str> = None;
    sched::unshare(CloneFlags::CLONE_NEWNS)?;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    match mount(Some("tracefs"), "/sys/kernel/tracing", Some("tracefs"), MsFlags::empty(), NONE) {
        // It is mounted already.
        Err(Errno::EBUSY) => Ok(()),
        mounted => Ok(mounted?),
    }
}

/// Sends a signal to a process that has not been waited for.
pub(crate) fn send(pid: u32, signal: Signal) {
    signal::kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
}

/// A running program, whose output is passed on line by line. Dropping it kills it.
pub(crate) struct Running {
    child: ChildGuard,
    readers: Vec<JoinHandle<()>>,
}

impl Running {
    /// Starts it. Returns when it has printed a line with `ready` on standard error, or why it has not. `out`
    /// and `err` take each line with its end.
    pub(crate) fn start(
        command: &mut Command,
        ready: &'static str,
        out: impl FnMut(&[u8]) + Send + 'static,
        mut err: impl FnMut(&[u8]) + Send + 'static,
    ) -> Result<Self, String> {
        blind::watch();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().map_err(|error| format!("{command:?}: {error}"))?;
        let mut child = ChildGuard::of(child);
        let (send, lines) = mpsc::channel();
        let mut send = Some(send);
        let err = move |line: &[u8]| {
            err(line);
            let text = String::from_utf8_lossy(line).into_owned();
            let is_ready = text.contains(ready);
            if let Some(sender) = &send {
                // Nobody waits any more if it was too slow.
                let _ = sender.send(text);
            }
            if is_ready {
                send = None;
            }
        };
        let readers = vec![read(child.stdout.take().unwrap(), out), read(child.stderr.take().unwrap(), err)];
        let running = Self { child, readers };

        let deadline = Instant::now() + patience(START);
        let mut log = String::new();
        while !log.contains(ready) {
            match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => log.push_str(&line),
                Err(RecvTimeoutError::Disconnected) => return Err(format!("{command:?} has ended:\n{log}")),
                Err(RecvTimeoutError::Timeout) => {
                    let stacks = stacks(running.pid());
                    return Err(format!("{command:?} is not ready after {START:?}:\n{log}{stacks}"));
                }
            }
        }
        Ok(running)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it by a signal. Returns its status and how long it took; all its output has been passed on then.
    #[track_caller]
    pub(crate) fn end(self, signal: Signal) -> (ExitStatus, Duration) {
        send(self.pid(), signal);
        self.wait()
    }

    /// Waits until it has ended, by itself or by a signal. Returns the same.
    #[track_caller]
    pub(crate) fn wait(mut self) -> (ExitStatus, Duration) {
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(begin.elapsed() < patience(END), "it has not ended after {END:?}");
            thread::sleep(Duration::from_millis(5));
        };
        let took = begin.elapsed();
        self.readers.drain(..).for_each(|reader| reader.join().unwrap());
        (status, took)
    }

    /// Kills it, and does not wait until the kernel has detached all its probes.
    pub(crate) fn abandon(mut self) {
        self.child.kill().unwrap();
        std::mem::forget(self);
    }
}

/// What each of its threads waits for in the kernel.
fn stacks(pid: u32) -> String {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return String::new() };
    let told = |of: PathBuf| {
        let [name, state, stack] =
            ["comm", "stat", "stack"].map(|file| fs::read_to_string(of.join(file)).unwrap_or_default());
        let state = state.rsplit_once(") ").map_or("?", |(_, rest)| &rest[..1]).to_owned();
        format!("{} {state}: {}\n", name.trim(), stack.lines().collect::<Vec<_>>().join(" "))
    };
    threads.flatten().map(|thread| told(thread.path())).collect()
}

fn read(from: impl Read + Send + 'static, mut take: impl FnMut(&[u8]) + Send + 'static) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        while let Ok(1..) = from.read_until(b'\n', &mut line) {
            take(&line);
            line.clear();
        }
    })
}

/// Output so far, shared with the thread that reads it.
#[derive(Clone, Default)]
pub(crate) struct Said(Arc<Mutex<Vec<u8>>>);

impl Said {
    /// Takes what [`Running::start`] passes on.
    pub(crate) fn taker(&self) -> impl FnMut(&[u8]) + Send + use<> {
        let said = self.clone();
        move |line| said.0.lock().unwrap_or_else(PoisonError::into_inner).extend(line)
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }
}

/// A running `handshake trace`, and all its output.
pub(crate) struct Trace {
    running: Running,
    stdout: Said,
    stderr: Said,
}

impl Trace {
    /// Returns when its probes are attached.
    pub(crate) fn start(arguments: &[&str], log: Option<&str>) -> Self {
        let mut command = program(&[&["trace"], arguments].concat());
        match log {
            Some(level) => command.env("RUST_LOG", level),
            None => command.env_remove("RUST_LOG"),
        };
        Self::of(&mut command)
    }

    /// The same for a command that runs it.
    pub(crate) fn spawn(command: &mut Command) -> Self {
        isolate(command);
        Self::of(command)
    }

    fn of(command: &mut Command) -> Self {
        let (stdout, stderr) = (Said::default(), Said::default());
        let running = Running::start(command, TRACING, stdout.taker(), stderr.taker());
        Self { running: running.unwrap_or_else(|reason| panic!("{reason}")), stdout, stderr }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// Waits until its standard output meets the condition.
    #[track_caller]
    pub(crate) fn wait_for(&self, what: &str, enough: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + patience(TIMEOUT);
        while !enough(&self.stdout.text()) {
            assert!(Instant::now() < deadline, "not in time: {what}; it said {}", self.stdout.text());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Its standard output so far.
    pub(crate) fn said(&self) -> String {
        self.stdout.text()
    }

    /// Stops it. Returns its standard output and standard error.
    #[track_caller]
    pub(crate) fn stop(self) -> (Vec<u8>, Vec<u8>) {
        let (status, _) = self.running.end(Signal::SIGTERM);
        assert!(status.success(), "{}", self.stderr.text());
        (self.stdout.bytes(), self.stderr.bytes())
    }
}
