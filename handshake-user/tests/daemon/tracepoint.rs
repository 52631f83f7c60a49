//! Perf tracepoints.

use std::{
    net::{Shutdown, TcpStream},
    os::unix::process::CommandExt as _,
    thread,
    time::{Duration, Instant},
};

use crate::{
    listen,
    program::{Daemon, command, mount_tracefs},
};

const CONNECTIONS: u16 = 20;

#[test]
fn histograms_are_filled_by_perf_tracepoints_too() {
    let mut command =
        command(&["--listen", "127.0.0.1:0", "--attach", "tracepoint", "--tls-libraries", "off"]);
    // SAFETY: between fork and exec only system calls are made.
    unsafe { command.pre_exec(mount_tracefs) };
    let daemon = Daemon::spawn(&mut command);
    let (listener, address, _) = listen("127.77.61.1");
    for _ in 0..CONNECTIONS {
        let client = TcpStream::connect(address).unwrap();
        let (server, _) = listener.accept().unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        drop(server);
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    for name in ["handshake_tcp_open_duration_seconds_count", "handshake_tcp_close_duration_seconds_count"] {
        while daemon.scrape().sum(name, &["role=\"server\""]) < f64::from(CONNECTIONS) {
            assert!(Instant::now() < deadline, "{name} is {}", daemon.scrape().sum(name, &[]));
            thread::sleep(Duration::from_millis(50));
        }
    }
    let records = daemon.scrape().sum("handshake_events_total", &["stage=\"open\""]);
    assert_eq!(records, 0.0, "the kernel side fills them, without records");
}
