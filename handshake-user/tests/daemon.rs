//! The exporter from outside: real connections, real scrapes. Totals include other traffic of the host, so
//! they are compared as "at least"; added labels tell the tests' own connections apart, so those are exact.
//!
//! Needs root. `cargo xtask test` builds the program and names it in `HANDSHAKE_BIN`.
#![expect(clippy::float_cmp, reason = "counts are whole numbers")]

#[path = "daemon/browser.rs"]
mod browser;
#[path = "daemon/exposition.rs"]
mod exposition;
#[path = "daemon/hostile_clients.rs"]
mod hostile_clients;
#[path = "daemon/interrupted.rs"]
mod interrupted;
#[path = "daemon/itself.rs"]
mod itself;
#[path = "daemon/otlp.rs"]
mod otlp;
#[path = "daemon/page.rs"]
mod page;
#[path = "daemon/privileges.rs"]
mod privileges;
mod program;
#[path = "daemon/records.rs"]
mod records;
#[path = "daemon/redact.rs"]
mod redact;
#[path = "daemon/reload.rs"]
mod reload;
#[path = "daemon/shutdown.rs"]
mod shutdown;
#[path = "daemon/socket.rs"]
mod socket;
#[path = "daemon/start.rs"]
mod start;
#[path = "daemon/time_wait.rs"]
mod time_wait;
#[path = "daemon/tracepoint.rs"]
mod tracepoint;
#[path = "daemon/verifier.rs"]
mod verifier;
#[path = "daemon/web.rs"]
mod web;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixDatagram,
    process::Output,
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use program::{Daemon, Scrape, command};
use shutdown::Held;

const OPENS: &str = "handshake_tcp_opens_total";
const CLOSES: &str = "handshake_tcp_closes_total";
/// How long, at least, a server takes to close after its client.
const APP_WAIT: Duration = Duration::from_millis(5);

/// A listener on a loopback address that no other test uses, its address, and the label of its network, which
/// identifies its clients.
fn listen(address: &str) -> (TcpListener, SocketAddr, String) {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let at = listener.local_addr().unwrap();
    let network = format!("remote_net=\"{}.0/24\"", address.rsplit_once('.').unwrap().0);
    (listener, at, network)
}

/// Both ends of a new connection.
fn connect(listener: &TcpListener, at: SocketAddr) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(at).unwrap();
    (client, listener.accept().unwrap().0)
}

/// The client closes first, the server some milliseconds later. Returns when both have closed, with an upper
/// bound on how long the server made the client wait.
fn close((mut client, mut server): (TcpStream, TcpStream)) -> Duration {
    let begin = Instant::now();
    client.shutdown(Shutdown::Write).unwrap();
    server.read_to_end(&mut Vec::new()).unwrap();
    thread::sleep(APP_WAIT);
    drop(server);
    let waited = begin.elapsed();
    client.read_to_end(&mut Vec::new()).unwrap();
    waited
}

fn fails(arguments: &[&str]) -> (i32, String) {
    let Output { status, stderr, .. } = command(arguments).output().unwrap();
    (status.code().unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn every_connection_is_counted_once_and_timed_once() {
    const N: f64 = 25.0;
    let daemon = Daemon::start(&["--label", "remote_net", "--label", "local_port"]);
    let (listener, at, network) = listen("127.77.1.1");
    let port = format!("local_port=\"{}\"", at.port());
    let before = daemon.scrape();
    let longest: Duration = (0..25).map(|_| close(connect(&listener, at))).sum();

    let server = ["role=\"server\"", "initiator=\"remote\"", &port];
    let client = ["role=\"client\"", network.as_str()];
    let app_wait = "handshake_tcp_close_app_wait_seconds";
    let timed = |scrape: &Scrape| {
        [
            scrape.sum("handshake_tcp_open_duration_seconds_count", &client),
            scrape.sum("handshake_tcp_open_duration_seconds_bucket", &[client[0], client[1], "le=\"+Inf\""]),
            scrape.sum("handshake_tcp_open_rtt_seconds_count", &client),
            scrape.sum("handshake_tcp_close_duration_seconds_count", &client),
            scrape.sum(&format!("{app_wait}_count"), &server),
        ]
    };
    // A connection missing from the histograms is a failure even if it is counted as lost.
    let after = daemon.scrape_until(|scrape| timed(scrape).iter().all(|count| *count >= N));
    let rose = |name: &str, labels: &[&str]| after.sum(name, labels) - before.sum(name, labels);

    let recursion = after.sum("handshake_events_lost_total", &["recursion"]);
    assert_eq!(timed(&after), [N; 5], "{recursion} runs skipped");
    let waited = rose(&format!("{app_wait}_sum"), &server);
    let range = (APP_WAIT * 25).as_secs_f64()..=longest.as_secs_f64();
    assert!(range.contains(&waited), "the server waited {waited} s before its closes, not {range:?}");

    for role in ["role=\"client\"", "role=\"server\""] {
        assert!(rose(OPENS, &[role, "family=\"ipv4\"", "outcome=\"established\""]) >= N, "{role}");
        assert!(rose(CLOSES, &[role, "_segments\""]) >= N, "{role}");
    }
    assert!(rose("handshake_events_total", &["stage=\"open\""]) >= 2.0 * N);
    assert!(rose("handshake_events_total", &["stage=\"close\""]) >= 2.0 * N);
    for reason in ["ring_full", "state_full", "malformed"] {
        assert_eq!(after.sum("handshake_events_lost_total", &[reason]), 0.0, "{reason}");
    }

    // A second scrape does not count again.
    assert_eq!(timed(&daemon.scrape()), timed(&after));
}

#[test]
fn refused_connection_is_counted_and_not_timed() {
    let daemon = Daemon::start(&["--label", "remote_net"]);
    let (listener, at, network) = listen("127.77.2.1");
    drop(listener);
    let refused = |scrape: &Scrape| scrape.sum(OPENS, &["role=\"client\"", "outcome=\"refused\""]);
    let before = refused(&daemon.scrape());
    for _ in 0..5 {
        TcpStream::connect(at).unwrap_err();
    }
    let after = daemon.scrape();
    assert!(refused(&after) - before >= 5.0);
    assert_eq!(after.sum("handshake_tcp_open_duration_seconds_count", &[&network]), 0.0);
}

#[test]
fn connection_gauge_includes_preexisting_connections() {
    let (listener, at, _) = listen("127.77.3.1");
    let old: Vec<_> = (0..4).map(|_| connect(&listener, at)).collect();
    let daemon = Daemon::start(&[]);
    let gauge = |scrape: &Scrape, role: &str| {
        scrape.sum("handshake_connections", &[&format!("role=\"{role}\""), "state=\"established\""])
    };
    // On a large or busy host they are counted after the start.
    let first = daemon.scrape_until(|scrape| gauge(scrape, "unknown") >= 8.0);
    assert!(gauge(&first, "unknown") >= 8.0, "both ends were there before");

    let new: Vec<_> = (0..50).map(|_| connect(&listener, at)).collect();
    let open = daemon.scrape();
    for role in ["client", "server"] {
        assert!(gauge(&open, role) >= 50.0, "{role}");
    }

    let unknown = |scrape: &Scrape| scrape.sum(CLOSES, &["role=\"unknown\""]);
    for pair in old.into_iter().chain(new) {
        close(pair);
    }
    let closed = daemon.scrape_until(|scrape| unknown(scrape) - unknown(&first) >= 8.0);
    let recursion = closed.sum("handshake_events_lost_total", &["recursion"]);
    assert!(unknown(&closed) - unknown(&first) >= 8.0, "{recursion} runs skipped");
    // Other tests have connections too, but fewer than these.
    for role in ["client", "server"] {
        assert!(gauge(&closed, role) <= gauge(&open, role) - 25.0, "{role}");
    }
}

#[test]
fn series_over_the_limit_become_other_and_are_counted() {
    let daemon = Daemon::start(&["--label", "local_port", "--max-series", "3"]);
    for _ in 0..8 {
        let (listener, at, _) = listen("127.77.4.1");
        close(connect(&listener, at));
    }
    let scrape = daemon.scrape_until(|scrape| scrape.sum("handshake_label_overflow_total", &[]) > 0.0);
    assert!(scrape.sum("handshake_label_overflow_total", &["label=\"local_port\""]) > 0.0);
    assert!(scrape.sum("handshake_tcp_open_rtt_seconds_count", &["local_port=\"other\""]) > 0.0);
}

/// Without labels on demand, the kernel side fills the histograms itself: they have every connection that the
/// counters have, even if user space reads nothing meanwhile and there is hardly any room for records.
#[test]
fn histograms_are_complete_while_the_daemon_is_stopped() {
    const N: u32 = 2000;
    let flood = |daemon: &Daemon, address| {
        let (listener, at, _) = listen(address);
        program::send(daemon.pid(), Signal::SIGSTOP);
        for _ in 0..N {
            let (client, server) = connect(&listener, at);
            drop(client);
            drop(server);
        }
        program::send(daemon.pid(), Signal::SIGCONT);
    };
    let lost = |scrape: &Scrape| scrape.sum("handshake_events_lost_total", &["ring_full"]);

    let daemon = Daemon::start(&["--ring-kib", "4"]);
    let before = daemon.scrape();
    flood(&daemon, "127.77.21.1");
    let pairs = |scrape: &Scrape| {
        ["client", "server"].map(|role| {
            let role = format!("role=\"{role}\"");
            let counted = scrape.sum(OPENS, &[&role, "established"]);
            (counted, scrape.sum("handshake_tcp_open_duration_seconds_count", &[&role]))
        })
    };
    // Connections of others may end between the counters and the histograms of one scrape.
    let after = daemon.scrape_until(|scrape| pairs(scrape).iter().all(|(counted, timed)| counted == timed));
    for ((counted, timed), (before, _)) in pairs(&after).into_iter().zip(pairs(&before)) {
        assert!(counted - before >= f64::from(N), "{counted} openings, {before} before");
        assert_eq!(counted, timed, "an opening is missing in the histogram");
    }
    let setups =
        |scrape: &Scrape| scrape.sum("handshake_setup_duration_seconds_count", &["version=\"none\""]);
    assert!(setups(&after) - setups(&before) >= 2.0 * f64::from(N), "{}", setups(&after));
    // Those of closings that are followed into TIME_WAIT did not fit, and the histograms do not need them.
    assert!(lost(&after) > 0.0);

    // With a label the histograms need records, and lack those that did not fit.
    let daemon = Daemon::start(&["--ring-kib", "4", "--label", "remote_net"]);
    flood(&daemon, "127.77.22.1");
    let after = daemon.scrape_until(|scrape| lost(scrape) > 0.0);
    assert!(lost(&after) > 0.0);
    let [(counted, timed), _] = pairs(&after);
    assert!(timed < counted, "{timed} of {counted}");
}

#[test]
fn pages_have_their_status_and_headers() {
    let daemon = Daemon::start(&[]);
    let (status, head, body) = daemon.request("GET", "/metrics");
    assert_eq!(status, 200);
    assert!(head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"), "{head}");
    assert!(body.ends_with('\n') && body.contains("# TYPE handshake_tcp_time_wait_seconds histogram"));
    let (status, head, body) = daemon.request("HEAD", "/metrics");
    assert!(status == 200 && body.is_empty() && head.contains("content-length: "), "{head}");
    for (method, path, expected) in
        [("GET", "/healthz", 200), ("GET", "/readyz", 200), ("GET", "/", 403), ("GET", "/x", 404)]
            .into_iter()
            .chain([("POST", "/metrics", 405)])
    {
        assert_eq!(daemon.request(method, path).0, expected, "{method} {path}");
    }
    let scrape = daemon.scrape();
    // Eight tracepoints and the wire view.
    assert_eq!(scrape.sum("handshake_probe_attached", &[]), 9.0, "every probe attaches on this kernel");
    assert_eq!(scrape.sum("handshake_build_info", &[]), 1.0);
    assert!(scrape.sum("process_resident_memory_bytes", &[]) > 0.0);
}

#[test]
fn sigterm_and_sigint_end_the_daemon_and_detach_everything() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let daemon = Daemon::start(&[]);
        let held = Held::by(daemon.pid());
        assert!(held.programs.len() >= 6, "{held:?}");
        let mut unfinished = TcpStream::connect(&daemon.address).unwrap();
        unfinished.write_all(b"GET /metrics HT").unwrap();

        let (status, took) = daemon.stop(signal);
        assert_eq!(status.code(), Some(0), "{signal}");
        // The kernel takes up to a tenth of a second to detach each uprobe, one after the other.
        assert!(took < Duration::from_secs(8), "{signal}: {took:?}");
        held.expect_gone(signal.as_str());
    }
}

#[test]
fn service_manager_is_notified() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
    let mut daemon = command(&["--listen", "127.0.0.1:0"]);
    let daemon = Daemon::spawn(daemon.env("NOTIFY_SOCKET", &path));
    let receive = || {
        let mut buffer = [0; 256];
        let length = manager.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).trim().to_owned()
    };
    assert_eq!(receive(), "READY=1");
    assert_eq!(daemon.stop(Signal::SIGTERM).0.code(), Some(0));
    assert_eq!(receive(), "STOPPING=1");
}

#[test]
fn busy_port_error_is_one_line() {
    let (_listener, at, _) = listen("127.0.0.1");
    let (status, said) = fails(&["--listen", &at.to_string()]);
    assert_eq!((status, said.lines().count()), (1, 1), "{said}");
    for part in [&*at.to_string(), "in use", "ss -ltnp"] {
        assert!(said.contains(part), "{said}");
    }
}

#[test]
fn flags_override_the_environment_and_that_the_file() {
    let (_listener, at, _) = listen("127.0.0.1");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("handshake.toml");
    fs::write(&file, format!("listen = \"{at}\"\nbuckets = [0.5]\n")).unwrap();
    let file = file.to_str().unwrap();

    // The file alone: its port is busy.
    let (status, said) = fails(&["--config", file]);
    assert!(status == 1 && said.contains("in use"), "{said}");
    // The environment names a free one; a flag overrides its labels.
    let mut both = command(&["--config", file, "--label", "process"]);
    let daemon = Daemon::spawn(
        both.env("HANDSHAKE_LISTEN", "127.0.0.1:0").env("HANDSHAKE_LABELS", "cgroup,local_port"),
    );
    // The scrapes' own connections.
    let bucket = "handshake_tcp_open_rtt_seconds_bucket";
    let text = daemon.metrics_until(|text| text.contains(bucket));
    let bucket = text.lines().find(|line| line.starts_with(bucket)).unwrap();
    assert!(bucket.contains("process=") && !bucket.contains("cgroup="), "{bucket}");
    assert!(bucket.contains("le=\"0.5\""), "{bucket}");

    fs::write(file, "# nothing\nlisen = 1\n").unwrap();
    let (status, said) = fails(&["--config", file]);
    assert!(status == 1 && said.contains("line 2") && said.contains("`lisen`"), "{said}");
}
