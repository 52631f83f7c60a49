//! The program under test, running beside the tests.

use std::{
    env,
    os::unix::process::CommandExt as _,
    panic::{self, AssertUnwindSafe},
    sync::{Arc, Mutex, OnceLock, PoisonError, mpsc},
    thread,
};

use nix::{libc, sys::signal::Signal};

use crate::{
    log::Log,
    program::{Running, TRACING, mount_tracefs, program},
    testbed,
};

pub(crate) struct Tracer {
    running: Running,
    log: Arc<Log>,
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
        let mut command = program(&["trace", "--output", "json"]);
        command.args(arguments).env("RUST_LOG", "info");
        if let Some(attach) = env::var_os("HANDSHAKE_TEST_ATTACH") {
            command.arg("--attach").arg(attach);
            // SAFETY: between fork and exec only system calls are made.
            unsafe { command.pre_exec(mount_tracefs) };
        }
        // SAFETY: between fork and exec only system calls are made.
        unsafe {
            command.pre_exec(|| {
                testbed::priority::go_first();
                Ok(())
            })
        };
        let log = Arc::new(Log::default());
        let (out, err) = (Arc::clone(&log), Arc::clone(&log));
        let running = Running::start(
            &mut command,
            TRACING,
            move |line| out.read_stdout(text(line)),
            move |line| err.read_stderr(text(line)),
        )?;
        Ok(Self { running, log })
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
    fn end(self) {
        let (status, _) = self.running.end(Signal::SIGINT);
        assert!(status.success(), "the tracer ended with {status} after SIGINT:\n{}", self.log.stderr());
    }
}

/// A line without its end.
fn text(line: &[u8]) -> String {
    String::from_utf8_lossy(line).trim_end_matches('\n').to_owned()
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
