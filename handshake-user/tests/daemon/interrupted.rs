//! Soft interrupts in the middle of the program on changes of state, made on purpose.

use std::{
    fs, iter,
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sched::{CloneFlags, CpuSet, sched_setaffinity, unshare},
    sys::socket,
    unistd::Pid,
};

use crate::program::{Daemon, Scrape, blind, machine::patience};

const LOAD: Duration = Duration::from_millis(300);
/// So many times, at least, the kernel must have skipped the program for the test to mean anything.
const ENOUGH: u64 = 20;
/// How long the load is repeated until that is so: a virtual machine is slow.
const PROVOKING: Duration = Duration::from_secs(20);
/// For what is in progress when the load ends.
const PATIENCE: Duration = Duration::from_secs(2);
const TRIES: usize = 20;

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

/// Opens and closes connections for a while; returns how many.
fn load() -> u32 {
    thread::spawn(|| {
        enter_namespace_with_interrupts();
        thread::scope(|scope| {
            let clients = [0, 1].map(|cpu| scope.spawn(move || connect_on(cpu)));
            clients.map(|client| client.join().unwrap()).iter().sum()
        })
    })
    .join()
    .unwrap()
}

/// Connects on this CPU with a server on the first one.
fn connect_on(cpu: usize) -> u32 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            on_cpu(0);
            while listener.accept().is_ok() {}
        });
        on_cpu(cpu);
        let until = Instant::now() + LOAD;
        let made = iter::repeat_with(|| TcpStream::connect(address))
            .take_while(|_| Instant::now() < until)
            .try_fold(0, |made, stream| stream.map(|_| made + 1));
        // Nobody listens any more, and the server ends.
        socket::shutdown(listener.as_raw_fd(), socket::Shutdown::Both).unwrap();
        made.unwrap()
    })
}

/// One is interrupted by what the other does.
fn has_two_cpus() -> bool {
    let has = thread::available_parallelism().unwrap().get() >= 2;
    if !has {
        eprintln!("skipped: it takes two CPUs");
    }
    has
}

/// Repeats what found something wrong while the kernel was blind: so many events come that it often is.
fn unless_blind(mut attempt: impl FnMut() -> Result<(), String>) {
    let wrong: Vec<_> = (0..TRIES)
        .map_while(|_| {
            let began = blind::now();
            let wrong = attempt().err()?;
            assert!(blind::was_since(began), "{wrong}");
            Some(wrong)
        })
        .collect();
    assert!(wrong.len() < TRIES, "the kernel was blind every time: {wrong:?}");
}

/// Where the interrupted program misses a change of state, the reentrant one sees it, and no other.
#[test]
fn interrupted_program_misses_no_change_of_state() {
    if !has_two_cpus() {
        return;
    }
    let daemon = Daemon::start(&["--tls-libraries", "off"]);
    let deadline = Instant::now() + patience(PROVOKING);
    let skipped = loop {
        unless_blind(|| every_opening_is_counted_once(&daemon));
        match skipped(daemon.pid()) {
            None => return eprintln!("skipped: the kernel does not tell how often it skipped a program"),
            Some(few) if few < ENOUGH && Instant::now() < deadline => {}
            Some(skipped) => break skipped,
        }
    };
    let lost = daemon.scrape().sum("handshake_events_lost_total", &["reason=\"recursion\""]);
    println!("skipped {skipped} times, lost {lost}");
    assert!(skipped >= ENOUGH, "the program was hardly ever interrupted: {skipped}");
    // Those of other programs, which have no reentrant one: tcp_destroy_sock.
    #[expect(clippy::cast_precision_loss, reason = "some hundred")]
    let few = skipped as f64 / 10.0;
    assert!(lost <= few, "{lost} lost of {skipped} that the program missed");
}

/// Under load. Returns what is wrong.
fn every_opening_is_counted_once(daemon: &Daemon) -> Result<(), String> {
    let before = daemon.scrape();
    let made = load();
    let has_all = |scrape: &Scrape| {
        ["client", "server"]
            .iter()
            .all(|role| opened(scrape, role) - opened(&before, role) >= f64::from(made))
    };
    let others = |scrape: &Scrape| {
        scrape.sum("handshake_tcp_opens_total", &["role=\"client\""]) - opened(scrape, "client")
    };
    let last = daemon.scrape_within(patience(PATIENCE), has_all);
    let is_right = has_all(&last) && others(&last) == others(&before);
    let opens = last.series("handshake_tcp_opens_total");
    is_right.then_some(()).ok_or_else(|| format!("{made} connections:{opens}"))
}

/// An interrupt between the two programs, after which both handle the change: no entry shows the second that
/// the first has. After the load, as many connections must be neither open nor closed as before.
#[test]
fn change_of_a_connection_without_room_is_counted_once() {
    if !has_two_cpus() {
        return;
    }
    let daemon = Daemon::start(&["--tls-libraries", "off", "--max-connections", "1"]);
    unless_blind(|| {
        let before = daemon.scrape();
        let made = load();
        let is_right = |scrape: &Scrape| {
            let rise = |state| {
                scrape.sum("handshake_connections", &[state]) - before.sum("handshake_connections", &[state])
            };
            opened(scrape, "server") - opened(&before, "server") >= f64::from(made)
                && ["state=\"opening\"", "state=\"closing\""].into_iter().all(|state| rise(state) == 0.0)
        };
        let last = daemon.scrape_within(patience(PATIENCE), is_right);
        let left = last.series("handshake_connections");
        is_right(&last).then_some(()).ok_or_else(|| format!("{made} connections:{left}"))
    });
}
