//! Nothing is left in the kernel, however and whenever the program ends. And two instances at the same time.

use std::{
    collections::HashSet,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::process::ExitStatusExt as _,
    process::{Child, ExitStatus},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use crate::{
    close, connect, fails, listen,
    program::{Daemon, Scrape, command, program, send},
};

/// The eBPF objects that a process holds, by their ids.
#[derive(Debug, Default)]
pub(crate) struct Held {
    pub(crate) programs: HashSet<u32>,
    maps: HashSet<u32>,
    links: HashSet<u32>,
}

impl Held {
    /// What this process holds: nothing if it has ended.
    pub(crate) fn by(pid: u32) -> Self {
        let mut held = Self::default();
        let Ok(files) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else { return held };
        for file in files.flatten() {
            let info = fs::read_to_string(file.path()).unwrap_or_default();
            let id = |name| info.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u32>().ok());
            // The entry of a link names its program, too.
            held.programs.extend(id("prog_id:"));
            held.maps.extend(id("map_id:"));
            held.links.extend(id("link_id:"));
        }
        held
    }

    fn is_gone(&self) -> bool {
        let programs = aya::programs::loaded_programs().filter_map(Result::ok).map(|program| program.id());
        let maps = aya::maps::loaded_maps().filter_map(Result::ok).map(|map| map.id());
        let links = aya::programs::loaded_links().filter_map(Result::ok).map(|link| link.id());
        let is_free = |held: &HashSet<u32>, mut there: Box<dyn Iterator<Item = u32>>| {
            !there.any(|id| held.contains(&id))
        };
        is_free(&self.programs, Box::new(programs))
            && is_free(&self.maps, Box::new(maps))
            && is_free(&self.links, Box::new(links))
    }

    /// Waits until the kernel has freed everything, which takes some grace periods.
    pub(crate) fn expect_gone(&self, context: &str) {
        let gone = (0..200).any(|_| {
            thread::sleep(Duration::from_millis(50));
            self.is_gone()
        });
        assert!(gone, "{context}: still in the kernel: {self:?}");
    }
}

/// Ends the process by a signal. Returns what it held, its status, how long it took, and its standard error.
fn end(mut child: Child, by: Signal) -> (Held, ExitStatus, Duration, String) {
    // Stopped, it cannot load more before its end. Not for other signals: stopping interrupts a verification,
    // which would start again.
    if by == Signal::SIGKILL {
        send(child.id(), Signal::SIGSTOP);
    }
    let held = Held::by(child.id());
    let begin = Instant::now();
    send(child.id(), by);
    let mut said = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_string(&mut said).unwrap();
    }
    let status = child.wait().unwrap();
    assert!(!said.contains("panicked"), "{said}");
    (held, status, begin.elapsed(), said)
}

/// How long an orderly end may take without uprobes. The kernel detaches those one after the other, a tenth
/// of a second each, for all processes of the host, so an end with them has no bound.
const MAX_SHUTDOWN: Duration = Duration::from_secs(2);

#[test]
fn sigkill_leaves_nothing() {
    let daemon = Daemon::start(&[]);
    let held = Held::by(daemon.pid());
    assert!(held.programs.len() >= 10 && held.maps.len() >= 5 && !held.links.is_empty(), "{held:?}");
    assert!(!held.is_gone());
    drop(daemon);
    held.expect_gone("SIGKILL");
}

/// Ends the program at several moments of its start. It logs `started` when it has started.
fn end_during_start(arguments: &[&str], started: &str) {
    let begin = Instant::now();
    let mut child = program(arguments).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains(started)));
    let start = begin.elapsed();
    child.kill().unwrap();
    child.wait().unwrap();

    for (number, by) in (0..12_u32).zip([Signal::SIGKILL, Signal::SIGTERM].into_iter().cycle()) {
        // From before main to after the last probe, in no particular order.
        let after = start / 10 * (number * 7 % 12);
        let child = program(arguments).spawn().unwrap();
        thread::sleep(after);
        let (held, status, took, said) = end(child, by);
        let context = format!("{arguments:?}, {by} after {after:?}");
        println!(
            "{context}: {status}, {took:?}, {} programs, {} links",
            held.programs.len(),
            held.links.len()
        );
        let expected =
            status.signal() == Some(by as i32) || (by == Signal::SIGTERM && status.code() == Some(0));
        assert!(expected, "{context}: {status}");
        // Without any link it has not attached its tracepoints, and must not go on to start.
        assert!(!held.links.is_empty() || !said.contains(started), "{context}: {said}");
        held.expect_gone(&context);
    }
}

#[test]
fn daemon_ended_during_start_leaves_nothing() {
    end_during_start(&["daemon", "--listen", "127.0.0.1:0"], "listening");
}

#[test]
fn trace_ended_during_start_leaves_nothing() {
    end_during_start(&["trace", "--output", "json"], "tracing");
}

#[test]
fn daemon_killed_during_shutdown_leaves_nothing() {
    for after in [0, 20, 150, 600] {
        let daemon = Daemon::start(&[]);
        let held = Held::by(daemon.pid());
        send(daemon.pid(), Signal::SIGTERM);
        thread::sleep(Duration::from_millis(after));
        drop(daemon);
        held.expect_gone(&format!("SIGKILL {after} ms after SIGTERM"));
    }
}

/// As `systemctl restart` does, with clients that are still connected.
#[test]
fn daemon_restarts_at_once_on_the_same_port() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut clients = Vec::new();
    for number in 0..6 {
        // Twice with uprobes.
        let libraries = if number < 2 { "on" } else { "off" };
        let daemon = Daemon::spawn(&mut command(&["--listen", &free, "--tls-libraries", libraries]));
        // One connection that the server closes, which leaves TIME_WAIT on its side, and one that stays open.
        let _ = daemon.scrape();
        let mut open = TcpStream::connect(&free).unwrap();
        open.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        assert_ne!(open.read(&mut [0; 1024]).unwrap(), 0);
        clients.push(open);
        let held = Held::by(daemon.pid());
        if number == 3 {
            drop(daemon);
        } else {
            let (status, took) = daemon.stop(Signal::SIGTERM);
            println!("stop {number}: {took:?}, {} links", held.links.len());
            assert_eq!(status.code(), Some(0));
            assert!(took < MAX_SHUTDOWN || libraries == "on", "{took:?}");
        }
    }
}

#[test]
fn two_instances_count_and_end_independently() {
    const N: f64 = 20.0;
    let label = ["--label", "remote_net"];
    let first = Daemon::start(&label);
    let (status, said) = fails(&["--listen", &first.address]);
    assert_eq!((status, said.lines().count()), (1, 1), "{said}");

    let second = Daemon::start(&label);
    let (listener, at, network) = listen("127.77.5.1");
    let load = || (0..20).for_each(|_| _ = close(connect(&listener, at)));
    let counted = |scrape: &Scrape| {
        let labels = ["role=\"client\"", network.as_str()];
        ["handshake_tcp_open_rtt_seconds_count", "handshake_tcp_close_duration_seconds_count"]
            .map(|name| scrape.sum(name, &labels))
    };
    let expect = |daemon: &Daemon, expected: f64| {
        let scrape = daemon.scrape_until(|scrape| counted(scrape).iter().all(|count| *count >= expected));
        let recursion = scrape.sum("handshake_events_lost_total", &["recursion"]);
        assert_eq!(counted(&scrape), [expected; 2], "{recursion} runs skipped");
    };
    load();
    expect(&first, N);
    expect(&second, N);

    // The first ends in order, its successor by SIGKILL.
    assert_eq!(first.stop(Signal::SIGTERM).0.code(), Some(0));
    load();
    expect(&second, 2.0 * N);
    let third = Daemon::start(&label);
    load();
    expect(&third, N);
    drop(third);
    load();
    expect(&second, 4.0 * N);
}
