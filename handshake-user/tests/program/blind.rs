//! Moments at which this machine's kernel runs no BPF program. Some sandboxes shield their init that way: a
//! soft interrupt that arrives while one of its threads runs changes the states of connections, the kernel
//! tells its own tracing of that, and neither runs a program nor counts that it did not. A test that misses
//! an event in such a moment says so, and `cargo xtask test` repeats it.

use std::{
    cell::OnceCell,
    fs, panic,
    path::{Path, PathBuf},
    process,
    sync::OnceLock,
    time::Duration,
};

use rustix::{
    fd::OwnedFd,
    io,
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen},
};

/// Begins the line that tells it; `cargo xtask test` looks for it.
const TOLD: &str = "the kernel was blind: ";
/// What the hooks on tracepoints see.
const EVENTS: [&str; 5] = [
    "sock/inet_sock_set_state",
    "tcp/tcp_retransmit_skb",
    "tcp/tcp_destroy_sock",
    "tcp/tcp_send_reset",
    "tcp/tcp_receive_reset",
];
/// Of each CPU: three times what the test with most events, `full`, fills.
const BUFFER_KIB: &str = "65536";
const PREFIX: &str = "handshake-test-";

thread_local! {
    /// When the test of this thread began.
    static BEGAN: OnceCell<Duration> = const { OnceCell::new() };
}

/// Tracing of this process's own; `None` where the kernel has none.
static INSTANCE: OnceLock<Option<PathBuf>> = OnceLock::new();

/// From now on, a panic of this thread tells of such moments since the first call.
pub(crate) fn watch() {
    BEGAN.with(|began| {
        began.get_or_init(now);
    });
    INSTANCE.get_or_init(|| {
        let instance =
            instance().inspect_err(|error| eprintln!("no tracing of this kernel: {error}")).ok()?;
        let (default, of_hook) = (panic::take_hook(), instance.clone());
        panic::set_hook(Box::new(move |panic| {
            default(panic);
            let Some(began) = BEGAN.with(|began| began.get().copied()) else { return };
            if let Some(events) = missed(&of_hook, began) {
                println!("{TOLD}{events}");
            } else if has_overrun(&of_hook) {
                println!(
                    "whether the kernel was blind is unknown: its tracing has dropped the oldest events"
                );
            }
        }));
        // SAFETY: the function takes and returns nothing, and does not unwind.
        unsafe { libc::atexit(remove) };
        Some(instance)
    });
}

/// Whether there was such a moment since `began`, or may have been.
pub(crate) fn was_since(began: Duration) -> bool {
    let Some(Some(instance)) = INSTANCE.get() else { return false };
    missed(instance, began).is_some() || has_overrun(instance)
}

extern "C" fn remove() {
    if let Some(Some(instance)) = INSTANCE.get() {
        let _ = fs::remove_dir(instance);
    }
}

/// The time of the kernel's tracing.
pub(crate) fn now() -> Duration {
    Duration::from_nanos(handshake::host::monotonic_ns())
}

/// Tracing of its own, which ends with this process.
fn instance() -> std::io::Result<PathBuf> {
    let root = tracefs()?;
    let instances =
        PathBuf::from(format!("/proc/self/fd/{}/instances", rustix::fd::AsRawFd::as_raw_fd(&root)));
    // It must stay open for as long as the path is used.
    std::mem::forget(root);
    for left in fs::read_dir(&instances)?.flatten() {
        let of = left.file_name().to_string_lossy().strip_prefix(PREFIX).map(str::to_owned);
        if of.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = fs::remove_dir(left.path());
        }
    }
    let instance = instances.join(format!("{PREFIX}{}", process::id()));
    fs::create_dir(&instance)?;
    fs::write(instance.join("trace_clock"), "mono")?;
    fs::write(instance.join("buffer_size_kb"), BUFFER_KIB)?;
    for event in EVENTS {
        fs::write(instance.join("events").join(event).join("enable"), "1")?;
    }
    Ok(instance)
}

fn tracefs() -> io::Result<OwnedFd> {
    let tracefs = fsopen("tracefs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&tracefs)?;
    fsmount(&tracefs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

/// What happened since then while init ran; `None` if nothing did.
fn missed(instance: &Path, began: Duration) -> Option<String> {
    let trace = fs::read_to_string(instance.join("trace")).ok()?;
    let of_init = trace
        .lines()
        .filter_map(parse)
        .filter(|(pid, at, _)| *at >= began && Path::new("/proc/1/task").join(pid).exists());
    let events: Vec<_> = of_init.map(|(_, _, event)| event).collect();
    let first = events.first()?;
    Some(format!(
        "{} events of TCP came while init ran, for which it runs no program: {first} …",
        events.len()
    ))
}

/// Whether more happened than the buffers hold.
fn has_overrun(instance: &Path) -> bool {
    let Ok(cpus) = fs::read_dir(instance.join("per_cpu")) else { return false };
    cpus.flatten().filter_map(|cpu| fs::read_to_string(cpu.path().join("stats")).ok()).any(|stats| {
        stats.lines().any(|line| line.strip_prefix("overrun: ").is_some_and(|count| count.trim() != "0"))
    })
}

/// `COMM-PID [CPU] FLAGS SECONDS: EVENT: …`: the thread, the time, and the event.
fn parse(line: &str) -> Option<(&str, Duration, &str)> {
    let (task, rest) = line.split_once(" [")?;
    let (_, pid) = task.trim().rsplit_once('-')?;
    let (before, event) = rest.split_once(": ")?;
    let at: f64 = before.rsplit_once(' ')?.1.parse().ok()?;
    Some((pid, Duration::from_secs_f64(at), event))
}

#[test]
fn line_of_the_kernels_tracing_is_parsed() {
    let line =
        " tokio-rt-worker-75      [001] ..s1. 75313.864024: inet_sock_set_state: family=AF_INET a=b: c";
    let parsed = ("75", Duration::from_micros(75_313_864_024), "inet_sock_set_state: family=AF_INET a=b: c");
    assert_eq!(parse(line), Some(parsed));
    assert_eq!(parse("#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION"), None);
}
