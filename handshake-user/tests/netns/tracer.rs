//! The program under test, running beside the tests.

use std::{
    collections::BTreeMap,
    env,
    io::{BufRead, BufReader, Read},
    os::unix::process::CommandExt,
    panic::{self, AssertUnwindSafe},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Condvar, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError,
        mpsc::{self, RecvTimeoutError, Sender},
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

use crate::{record::Record, testbed};

/// The probes are verified by the kernel first, which takes its time on a small machine.
const START: Duration = Duration::from_mins(1);
/// It lets go of some hundred probes, each of which takes the kernel up to a tenth of a second.
const END: Duration = Duration::from_mins(1);

pub(crate) struct Tracer {
    child: Child,
    log: Arc<Log>,
    readers: Vec<JoinHandle<()>>,
}

/// Everything that the program has said.
#[derive(Default)]
pub(crate) struct Log {
    said: Mutex<Said>,
    news: Condvar,
    /// What must be true of all that it has said when it has ended.
    promises: Mutex<BTreeMap<String, Promise>>,
}

/// What a test has seen of a connection's end holds to the end: no record comes later. Looks at everything that was said,
/// and tells what is wrong with it.
type Promise = Box<dyn Fn(&[Record]) -> Result<(), String> + Send>;

#[derive(Default)]
struct Said {
    records: Vec<Record>,
    stderr: Vec<String>,
    /// Lines that are no JSON.
    garbage: Vec<String>,
}

/// Perf tracepoints are found in tracefs, which not every host has mounted: the program gets one of its own, in
/// a mount namespace that ends with it.
fn see_tracefs() -> std::io::Result<()> {
    const NONE: Option<&str> = None;
    sched::unshare(CloneFlags::CLONE_NEWNS)?;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    match mount(Some("tracefs"), "/sys/kernel/tracing", Some("tracefs"), MsFlags::empty(), NONE) {
        // It is there already.
        Err(Errno::EBUSY) => Ok(()),
        mounted => Ok(mounted?),
    }
}

impl Tracer {
    /// One tracer serves all tests: it sees the whole host, and every bed has addresses of its own. It ends with the process
    /// of the tests, which fails if the promises are not kept then.
    pub(crate) fn shared() -> Arc<Log> {
        static SHARED: OnceLock<Result<Arc<Log>, String>> = OnceLock::new();
        let started = SHARED.get_or_init(|| {
            let (send, receive) = mpsc::channel();
            // The kernel ends the program with the thread that started it: this one lasts as long as the tests.
            let body = move || match Self::start(&[]) {
                Ok(tracer) => {
                    let log = tracer.log();
                    *LAST.lock().unwrap() = Some(tracer);
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
                assert_eq!(registered, 0, "nothing would look at what is said at the end");
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
        if let Some(way) = env::var_os("HANDSHAKE_TEST_ATTACH") {
            command.arg("--attach").arg(way);
            // SAFETY: between fork and exec only system calls are made.
            unsafe { command.pre_exec(see_tracefs) };
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
            read_lines(child.stdout.take().unwrap(), Arc::clone(&log), Log::hear),
            read_lines(child.stderr.take().unwrap(), Arc::clone(&log), move |log, line| {
                log.hear_stderr(line, &send);
            }),
        ];
        let tracer = Self { child, log, readers };
        match ready.recv_timeout(START) {
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

    /// Ends it as Ctrl-C does; everything it had to say is in the log afterwards, and the promises are kept.
    #[track_caller]
    pub(crate) fn stop(self) {
        let log = self.log();
        self.end();
        let broken = log.broken_promises();
        assert!(broken.is_empty(), "{}", broken.join("\n"));
    }

    #[track_caller]
    fn end(mut self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        signal::kill(pid, Signal::SIGINT).unwrap();
        let status = self.wait(END);
        assert!(
            status.is_some_and(|status| status.success()),
            "the tracer ended with {status:?} after SIGINT:\n{}",
            self.log.stderr()
        );
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
    }

    fn wait(&mut self, patience: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + patience;
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
        // It may have ended already; a second end does no harm.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The shared tracer, to be ended when the tests are over.
static LAST: Mutex<Option<Tracer>> = Mutex::new(None);

/// With which status the process ends when a promise is not kept. Not libtest's own: no test that failed is to blame, and none
/// that passes when it is run again makes it good.
const BROKEN: i32 = 102;

/// The last thing that the process of the tests does. What it settled at its end was still to come, up to a minute later.
extern "C" fn at_the_end() {
    let Some(tracer) = LAST.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
    let log = tracer.log();
    let ended = panic::catch_unwind(AssertUnwindSafe(|| tracer.end()));
    let broken = log.broken_promises();
    if ended.is_err() || !broken.is_empty() {
        eprintln!("after the last test:\n{}", broken.join("\n"));
        // SAFETY: ends the process as it is; no other function that waits for its end is ours.
        unsafe { libc::_exit(BROKEN) }
    }
}

/// There were not enough records in time; those that there were.
#[derive(Debug)]
pub(crate) struct TimedOut(pub(crate) Vec<Record>);

impl Log {
    /// The matching records, once there are enough of them.
    pub(crate) fn wait_for(
        &self,
        patience: Duration,
        matches: impl Fn(&Record) -> bool,
        enough: impl Fn(&[Record]) -> bool,
    ) -> Result<Vec<Record>, TimedOut> {
        let deadline = Instant::now() + patience;
        let mut said = self.lock();
        loop {
            let found: Vec<_> = said.records.iter().filter(|record| matches(record)).cloned().collect();
            if enough(&found) {
                return Ok(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(TimedOut(found));
            }
            said = self.news.wait_timeout(said, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether the lines that it says to people become such in time.
    pub(crate) fn wait_for_log(&self, patience: Duration, enough: impl Fn(&[String]) -> bool) -> bool {
        let deadline = Instant::now() + patience;
        let mut said = self.lock();
        loop {
            if enough(&said.stderr) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            said = self.news.wait_timeout(said, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub(crate) fn matching(&self, matches: impl Fn(&Record) -> bool) -> Vec<Record> {
        self.lock().records.iter().filter(|record| matches(record)).cloned().collect()
    }

    /// This must hold of everything that was said once the program has ended; a later promise of the same name replaces it.
    pub(crate) fn promise(
        &self,
        name: String,
        holds: impl Fn(&[Record]) -> Result<(), String> + Send + 'static,
    ) {
        let mut promises = self.promises.lock().unwrap_or_else(PoisonError::into_inner);
        promises.insert(name, Box::new(holds));
    }

    /// Which promises are broken, and how.
    fn broken_promises(&self) -> Vec<String> {
        let said = self.lock();
        let promises = self.promises.lock().unwrap_or_else(PoisonError::into_inner);
        let broken = promises.iter().filter_map(|(name, holds)| {
            let reason = holds(&said.records).err()?;
            Some(format!("{name}: {reason}"))
        });
        broken.collect()
    }

    pub(crate) fn garbage(&self) -> Vec<String> {
        self.lock().garbage.clone()
    }

    pub(crate) fn stderr(&self) -> String {
        self.lock().stderr.join("\n")
    }

    fn hear(&self, line: String) {
        // The rest of the host has connections too, maybe very many of them.
        static OURS: LazyLock<[String; 2]> =
            LazyLock::new(|| testbed::address_prefixes().map(|prefix| format!("\"{prefix}")));
        if line.starts_with('{') && !OURS.iter().any(|prefix| line.contains(prefix)) {
            return;
        }
        let mut said = self.lock();
        match Record::parse(&line) {
            Ok(record) => said.records.push(record),
            Err(_) => said.garbage.push(line),
        }
        self.news.notify_all();
    }

    fn hear_stderr(&self, line: String, ready: &Sender<()>) {
        if line.starts_with("tracing ") {
            // Nobody listens any more when it says so twice.
            let _ = ready.send(());
        }
        self.lock().stderr.push(line);
        self.news.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read_lines(
    from: impl Read + Send + 'static,
    log: Arc<Log>,
    hear: impl Fn(&Log, String) + Send + 'static,
) -> JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            hear(&log, line);
        }
    })
}
