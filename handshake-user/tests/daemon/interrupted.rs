//! Soft interrupts in the middle of the program on changes of state, made on purpose.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener, TcpStream},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sched::{CloneFlags, CpuSet, sched_setaffinity, unshare},
    unistd::Pid,
};

use crate::program::{Daemon, Scrape};

const LOAD: Duration = Duration::from_secs(4);
/// So many times, at least, the kernel must have skipped the program for the test to mean anything.
const ENOUGH: u64 = 20;

/// Connections of other programs meanwhile.
const UNRELATED: f64 = 50.0;

/// Moves this thread into a network namespace whose loopback hands its packets to the second CPU, which is
/// interrupted for each, whatever it is doing.
fn enter_namespace_with_interrupts() {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
    let done = Command::new("sh")
        .args(["-ec", "mount --make-rprivate /; mount -t sysfs sysfs /sys; ip link set lo up; echo 2 > /sys/class/net/lo/queues/rx-0/rps_cpus; \
               echo 100 > /proc/sys/net/ipv4/tcp_max_tw_buckets"])
        .status()
        .unwrap();
    assert!(done.success());
}

fn on_cpu(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu).unwrap();
    sched_setaffinity(Pid::from_raw(0), &set).unwrap();
}

/// How often the kernel skipped the program on changes of state because it was running on that CPU. It is the
/// one with most of the skipped runs: the others run once per connection or less. Returns `None` if the
/// kernel does not tell (before 5.12).
fn skipped(pid: u32) -> Option<u64> {
    let skipped = |text: String| {
        text.lines().find_map(|line| line.strip_prefix("recursion_misses:")?.trim().parse::<u64>().ok())
    };
    let entries = fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap().flatten();
    entries.filter_map(|entry| skipped(fs::read_to_string(entry.path()).ok()?)).max()
}

fn opened(scrape: &Scrape, role: &str) -> f64 {
    scrape.sum("handshake_tcp_opens_total", &[&format!("role=\"{role}\""), "outcome=\"established\""])
}

/// Where the interrupted program misses a change of state, the reentrant one sees it.
#[test]
fn interrupted_program_misses_no_change_of_state() {
    if thread::available_parallelism().unwrap().get() < 2 {
        return eprintln!("skipped: it takes two CPUs");
    }
    let daemon = Daemon::start(&["--tls-libraries", "off"]);
    let load = thread::spawn(|| {
        enter_namespace_with_interrupts();
        let clients = [0, 1].map(|cpu| {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let at = listener.local_addr().unwrap();
            thread::spawn(move || {
                on_cpu(0);
                while listener.accept().is_ok() {}
            });
            thread::spawn(move || {
                on_cpu(cpu);
                let until = Instant::now() + LOAD;
                let mut made = 0;
                while Instant::now() < until {
                    drop(TcpStream::connect(at).unwrap());
                    made += 1;
                }
                made
            })
        });
        clients.map(|client| client.join().unwrap()).iter().sum::<u32>()
    });
    let made = load.join().unwrap();
    let scrape = daemon.scrape_until(|scrape| opened(scrape, "server") >= f64::from(made));
    let Some(skipped) = skipped(daemon.pid()) else {
        return eprintln!("skipped: the kernel does not tell how often it skipped a program");
    };
    let lost = scrape.sum("handshake_events_lost_total", &["reason=\"recursion\""]);
    let ends = ["client", "server"].map(|role| opened(&scrape, role));
    println!("skipped {skipped} times, lost {lost}; {made} connections, openings {ends:?}");
    assert!(skipped >= ENOUGH, "the program was hardly ever interrupted: {skipped}");
    // Those of other programs, which have no reentrant one: tcp_destroy_sock.
    #[expect(clippy::cast_precision_loss, reason = "some hundred")]
    let few = skipped as f64 / 10.0;
    assert!(lost <= few, "{lost} lost of {skipped} that the program missed");
    // Each connection once. The daemon counts the whole host.
    let range = f64::from(made)..=f64::from(made) + UNRELATED.max(few);
    assert!(ends.iter().all(|opened| range.contains(opened)), "{ends:?} openings, not {range:?}");
}
