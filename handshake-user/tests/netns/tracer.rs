//! The program under test, running beside the tests.

use std::{
    env,
    io::{BufRead, BufReader, Read},
    os::unix::process::CommandExt,
    panic::{self, AssertUnwindSafe},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    libc,
    mount::{MsFlags, mount},
    sched::{self, CloneFlags},
    sys::{
        prctl,
        signal::{self, Signal},
    },
    unistd::Pid,
};

use crate::{log::Log, machine::patience, testbed};

/// How long the start may take: the kernel verifies the programs, which is slow on a small machine.
const START: Duration = Duration::from_mins(1);
/// How long the end may take: there are some hundred probes, and the kernel takes up to a tenth of a second
/// to detach each.
const END: Duration = Duration::from_mins(1);

pub(crate) struct Tracer {
    child: Child,
    log: Arc<Log>,
    readers: Vec<JoinHandle<()>>,
}

/// Perf tracepoints need tracefs, which not every host has mounted: the program gets a mount of its own, in a
/// mount namespace that ends with it.
fn mount_tracefs() -> std::io::Result<()> {
    const NONE: Option<&str> = None;
    sched::unshare(CloneFlags::CLONE_NEWNS)?;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    match mount(Some("tracefs"), "/sys/kernel/tracing", Some("tracefs"), MsFlags::empty(), NONE) {
        // It is mounted already.
        Err(Errno::EBUSY) => Ok(()),
        mounted => Ok(mounted?),
    }
}

impl Tracer {
    /// One tracer serves all tests: it sees the whole host, and every testbed has addresses of its own. It
    /// ends with the test process, which fails if a check of [`Log::check_at_end`] fails then.
    pub(crate) fn shared() -> Arc<Log> {
        static SHARED: OnceLock<Result<Arc<Log>, String>> = OnceLock::new();
        let started = SHARED.get_or_init(|| {
            let (send, receive) = mpsc::channel();
            // The program dies with the thread that started it (PR_SET_PDEATHSIG): this one lives as long as
            // the tests.
            let body = move || match Self::start(&[]) {
                Ok(tracer) => {
                    let log = tracer.log();
                    *SHARED_TRACER.lock().unwrap() = Some(tracer);
                    let _ = send.send(Ok(log));
                    loop {
                        thread::park();
                    }
                }
                Err(reason) => drop(send.send(Err(reason))),
            };
            thread::Builder::new().name("tracer".into()).spawn(body).unwrap();
            let log = receive.recv().unwrap();
            if log.is_ok() {
                // SAFETY: `at_the_end` is a function of the right kind that lasts as long as the process.
                let registered = unsafe { libc::atexit(at_the_end) };
                assert_eq!(registered, 0, "the checks at the end would not run");
            }
            log
        });
        started.clone().unwrap_or_else(|reason| panic!("{reason}"))
    }

    /// Returns when the probes are attached.
    pub(crate) fn start(arguments: &[&str]) -> Result<Self, String> {
        let Some(program) = env::var_os("HANDSHAKE_BIN").map(PathBuf::from) else {
            return Err(
                "HANDSHAKE_BIN does not name the program under test: run through `cargo xtask test`".into()
            );
        };
        let mut command = Command::new(&program);
        command.args(["trace", "--output", "json"]).args(arguments).env("RUST_LOG", "info");
        if let Some(attach) = env::var_os("HANDSHAKE_TEST_ATTACH") {
            command.arg("--attach").arg(attach);
            // SAFETY: between fork and exec only system calls are made.
            unsafe { command.pre_exec(mount_tracefs) };
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // SAFETY: between fork and exec only system calls are made.
        unsafe {
            command.pre_exec(|| {
                prctl::set_pdeathsig(Signal::SIGKILL)?;
                testbed::priority::go_first();
                Ok(())
            })
        };
        let mut child = command.spawn().map_err(|error| format!("{}: {error}", program.display()))?;

        let log = Arc::new(Log::default());
        let (send, ready) = mpsc::channel();
        let readers = vec![
            read_lines(child.stdout.take().unwrap(), Arc::clone(&log), Log::read_stdout),
            read_lines(child.stderr.take().unwrap(), Arc::clone(&log), move |log, line| {
                log.read_stderr(line, &send);
            }),
        ];
        let tracer = Self { child, log, readers };
        match ready.recv_timeout(patience(START)) {
            Ok(()) => Ok(tracer),
            Err(RecvTimeoutError::Disconnected) => {
                Err(format!("the tracer has ended:\n{}", tracer.log.stderr()))
            }
            Err(RecvTimeoutError::Timeout) => {
                Err(format!("the tracer is not ready after {START:?}:\n{}", tracer.log.stderr()))
            }
        }
    }

    pub(crate) fn log(&self) -> Arc<Log> {
        Arc::clone(&self.log)
    }

    /// Ends it as Ctrl-C does. All its output is in the log afterwards, and the checks of the log are made.
    #[track_caller]
    pub(crate) fn stop(self) {
        let log = self.log();
        self.end();
        let failed = log.failed_checks();
        assert!(failed.is_empty(), "{}", failed.join("\n"));
    }

    #[track_caller]
    fn end(mut self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        signal::kill(pid, Signal::SIGINT).unwrap();
        let status = self.wait(patience(END));
        assert!(
            status.is_some_and(|status| status.success()),
            "the tracer ended with {status:?} after SIGINT:\n{}",
            self.log.stderr()
        );
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
    }

    fn wait(&mut self, timeout: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            match self.child.try_wait().unwrap() {
                None if Instant::now() < deadline => thread::sleep(Duration::from_millis(20)),
                status => return status,
            }
        }
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The shared tracer, which ends after the last test.
static SHARED_TRACER: Mutex<Option<Tracer>> = Mutex::new(None);

/// The exit status when a check at the end fails. Not libtest's 101: no single test failed, so running one
/// again must not make up for it.
const CHECKS_FAILED: i32 = 102;

/// Runs when the test process ends: the tracer reports some connections only at its own end.
extern "C" fn at_the_end() {
    let Some(tracer) = SHARED_TRACER.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
    let log = tracer.log();
    let ended = panic::catch_unwind(AssertUnwindSafe(|| tracer.end()));
    let failed = log.failed_checks();
    if ended.is_err() || !failed.is_empty() {
        eprintln!("after the last test:\n{}", failed.join("\n"));
        // SAFETY: it does not return; no other exit handler is ours.
        unsafe { libc::_exit(CHECKS_FAILED) }
    }
}

fn read_lines(
    from: impl Read + Send + 'static,
    log: Arc<Log>,
    take: impl Fn(&Log, String) + Send + 'static,
) -> JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            take(&log, line);
        }
    })
}
