//! What is left behind: nothing, however and whenever it ends. And a second instance beside the first.

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

use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};

use crate::{
    close, connect, fails, listen,
    program::{Daemon, Scrape, command, program},
};

/// What a process holds in the kernel, by the kernel's ids.
#[derive(Debug, Default)]
struct Held {
    programs: HashSet<u32>,
    maps: HashSet<u32>,
    links: HashSet<u32>,
}

impl Held {
    /// Processes that end meanwhile hold nothing.
    fn by(pid: u32) -> Self {
        let mut held = Self::default();
        let Ok(files) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else { return held };
        for file in files.flatten() {
            let info = fs::read_to_string(file.path()).unwrap_or_default();
            let id = |name| info.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u32>().ok());
            // What is attached by a link tells of its program, too.
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

    /// The kernel frees it after grace periods of its own.
    fn expect_gone(&self, context: &str) {
        let gone = (0..200).any(|_| {
            thread::sleep(Duration::from_millis(50));
            self.is_gone()
        });
        assert!(gone, "{context}: still in the kernel: {self:?}");
    }
}

fn send(pid: u32, signal: Signal) {
    signal::kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
}

/// Sees what the process holds, and sends the signal: what it held, how it ended, how long that took, and what it said.
fn end(mut child: Child, by: Signal) -> (Held, ExitStatus, Duration, String) {
    // It holds no more until its end. In an end by another signal, a program that is being verified would begin anew.
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

/// How long an end in order takes without uprobes. The kernel takes a tenth of a second to let go of each of those, one
/// after the other, for all processes of the host: that has no bound.
const MAX_SHUTDOWN: Duration = Duration::from_secs(2);

#[test]
fn after_sigkill_nothing_is_left() {
    let daemon = Daemon::start(&[]);
    let held = Held::by(daemon.pid());
    assert!(held.programs.len() >= 10 && held.maps.len() >= 5 && !held.links.is_empty(), "{held:?}");
    assert!(!held.is_gone());
    drop(daemon);
    held.expect_gone("SIGKILL");
}

/// At some moments of a start; `started` is what it says when it has started.
fn kill_while_it_starts(arguments: &[&str], started: &str) {
    let begin = Instant::now();
    let mut child = program(arguments).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains(started)));
    let start = begin.elapsed();
    child.kill().unwrap();
    child.wait().unwrap();

    for (number, by) in (0..12_u32).zip([Signal::SIGKILL, Signal::SIGTERM].into_iter().cycle()) {
        // From before main to after the last probe, in no order.
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
        // Tracepoints are attached last: without any link it is far from having started, and does not go on.
        assert!(!held.links.is_empty() || !said.contains(started), "{context}: {said}");
        held.expect_gone(&context);
    }
}

#[test]
fn a_daemon_killed_while_it_starts_leaves_nothing() {
    kill_while_it_starts(&["daemon", "--listen", "127.0.0.1:0"], "listening");
}

#[test]
fn a_trace_killed_while_it_starts_leaves_nothing() {
    kill_while_it_starts(&["trace", "--output", "json"], "tracing");
}

#[test]
fn a_daemon_killed_while_it_ends_leaves_nothing() {
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
fn it_starts_again_at_once_on_the_same_port() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut clients = Vec::new();
    for number in 0..6 {
        // Twice with uprobes.
        let libraries = if number < 2 { "on" } else { "off" };
        let daemon = Daemon::spawn(&mut command(&["--listen", &free, "--tls-libraries", libraries]));
        // One closed by the server, which leaves TIME_WAIT on its side, and one that stays.
        let _ = daemon.scrape();
        let mut stays = TcpStream::connect(&free).unwrap();
        stays.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        assert_ne!(stays.read(&mut [0; 1024]).unwrap(), 0);
        clients.push(stays);
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
fn two_instances_count_the_same_and_end_without_the_other() {
    const N: f64 = 20.0;
    let label = ["--label", "remote_net"];
    let first = Daemon::start(&label);
    let (status, said) = fails(&["--listen", &first.address]);
    assert_eq!((status, said.lines().count()), (1, 1), "{said}");

    let second = Daemon::start(&label);
    let (listener, at, network) = listen("127.77.5.1");
    let churn = || (0..20).for_each(|_| _ = close(connect(&listener, at)));
    // An interrupt in the middle of a program can hide a state change from it; the daemon knows how many.
    let counted = |scrape: &Scrape| {
        let labels = ["role=\"client\"", network.as_str()];
        let missed = scrape.sum("handshake_events_lost_total", &["recursion"]);
        ["handshake_tcp_open_rtt_seconds_count", "handshake_tcp_close_duration_seconds_count"]
            .map(|name| (scrape.sum(name, &labels), missed))
    };
    let expect = |daemon: &Daemon, expected: f64| {
        let is_right = |scrape: &Scrape| {
            counted(scrape).iter().all(|(count, missed)| (expected - missed..=expected).contains(count))
        };
        let scrape = daemon.scrape_until(is_right);
        assert!(is_right(&scrape), "{:?} of {expected}", counted(&scrape));
    };
    churn();
    expect(&first, N);
    expect(&second, N);

    // The first ends in order, its successor by force.
    assert_eq!(first.stop(Signal::SIGTERM).0.code(), Some(0));
    churn();
    expect(&second, 2.0 * N);
    let third = Daemon::start(&label);
    churn();
    expect(&third, N);
    drop(third);
    churn();
    expect(&second, 4.0 * N);
}
