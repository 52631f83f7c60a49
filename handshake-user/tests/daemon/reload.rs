//! The configuration, read anew while the daemon runs.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::net::UnixDatagram,
    path::Path,
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;

use crate::{
    OPENS, close, connect, listen,
    program::{Daemon, Scrape, command, send},
};

fn start(file: &Path, text: &str) -> Daemon {
    fs::write(file, text).unwrap();
    Daemon::spawn(&mut command(&["--listen", "127.0.0.1:0", "--config", file.to_str().unwrap()]))
}

/// Writes the file and sends SIGHUP. Returns what the daemon says of it.
fn reload(daemon: &Daemon, file: &Path, text: &str) -> String {
    let before = daemon.said().len();
    fs::write(file, text).unwrap();
    send(daemon.pid(), Signal::SIGHUP);
    for _ in 0..500 {
        let said = daemon.said()[before..].to_owned();
        if said.lines().any(|line| line.starts_with("handshake: configuration ")) {
            return said;
        }
        thread::sleep(Duration::from_millis(20));
    }
    panic!("{}", daemon.said());
}

fn reloads(scrape: &Scrape, result: &str) -> f64 {
    scrape.sum("handshake_config_reloads_total", &[&format!("result=\"{result}\"")])
}

#[test]
fn reload_takes_what_it_can_and_names_what_it_cannot() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("handshake.toml");
    let labels = "labels = [\"remote_net\"]\n";
    let daemon = start(&file, &format!("{labels}max_series = 1000\n"));
    let (listener, at, network) = listen("127.77.33.1");
    for _ in 0..20 {
        close(connect(&listener, at));
    }
    let timed = |scrape: &Scrape, network: &str| {
        scrape.sum("handshake_tcp_open_duration_seconds_count", &["client", network])
    };
    let before = daemon.scrape_until(|scrape| timed(scrape, &network) >= 20.0);
    assert_eq!((timed(&before, &network), reloads(&before, "success")), (20.0, 0.0));
    let read_at = |scrape: &Scrape| scrape.sum("handshake_config_last_reload_success_timestamp_seconds", &[]);
    thread::sleep(Duration::from_millis(1100));

    let said = reload(
        &daemon,
        &file,
        &format!("{labels}max_series = 900\nremote_net_ipv4 = 16\nring_kib = 64\nlog_level = \"info\"\n"),
    );
    assert!(said.contains("configuration reloaded; only a restart changes ring_kib\n"), "{said}");
    for _ in 0..20 {
        close(connect(&listener, at));
    }
    let wide = "remote_net=\"127.77.0.0/16\"";
    let after = daemon.scrape_until(|scrape| timed(scrape, wide) >= 20.0);
    // Other tests have addresses of the wider network, too.
    assert!(timed(&after, wide) >= 20.0);
    assert_eq!(timed(&after, &network), 20.0, "what was counted stays");
    assert!(after.sum(OPENS, &[]) >= before.sum(OPENS, &[]) + 40.0);
    assert_eq!((reloads(&after, "success"), reloads(&after, "failure")), (1.0, 0.0));
    assert_eq!(after.sum("handshake_config_last_reload_successful", &[]), 1.0);
    assert!(read_at(&after) > read_at(&before));

    // What is shown is in force, is a valid file, and has the flags.
    let (status, _, shown) = daemon.request("GET", "/config");
    assert_eq!(status, 200);
    for line in [
        "max_series = 900",
        "remote_net_ipv4 = 16",
        "ring_kib = 8192",
        "log_level = \"info\"",
        "listen = \"127.0.0.1:0\"",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line}: {shown}");
    }
    fs::write(&file, &shown).unwrap();
    assert!(command(&["--check-config", "--config", file.to_str().unwrap()]).status().unwrap().success());

    // A file with an error changes nothing.
    let said = reload(&daemon, &file, "max_series = 1\nlisen = 1\n");
    assert!(
        said.contains("not reloaded, the one in force stays: ")
            && said.contains("line 2")
            && said.contains("`lisen`"),
        "{said}"
    );
    let (_, _, still) = daemon.request("GET", "/config");
    assert_eq!(still, shown);
    let refused = daemon.scrape();
    assert_eq!((reloads(&refused, "success"), reloads(&refused, "failure")), (1.0, 1.0));
    assert_eq!(refused.sum("handshake_config_last_reload_successful", &[]), 0.0);
    assert_eq!(read_at(&refused), read_at(&after));
    assert_eq!(daemon.end(Signal::SIGTERM).0.code(), Some(0));
}

#[test]
fn level_of_the_log_changes_at_once_unless_the_command_line_has_one() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("handshake.toml");
    let daemon = start(&file, "");
    // What is no HTTP is told at `debug`.
    let is_told = |daemon: &Daemon| {
        let before = daemon.said().len();
        let mut stream = TcpStream::connect(&daemon.address).unwrap();
        stream.write_all(b"\x16\x03\x01\r\n\r\n").unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
        drop(stream);
        thread::sleep(Duration::from_millis(300));
        daemon.said()[before..].contains("an HTTP connection ended early")
    };
    assert!(!is_told(&daemon), "{}", daemon.said());
    reload(&daemon, &file, "log_level = \"debug\"\n");
    assert!(is_told(&daemon), "{}", daemon.said());
    reload(&daemon, &file, "log_level = \"error\"\n");
    assert!(!is_told(&daemon), "{}", daemon.said());
    daemon.end(Signal::SIGTERM);
}

#[test]
fn service_manager_follows_a_reload() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
    let receive = || {
        let mut buffer = [0; 1024];
        let length = manager.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).trim().to_owned()
    };
    let mut daemon = command(&["--listen", "127.0.0.1:0"]);
    let daemon = Daemon::spawn(daemon.env("NOTIFY_SOCKET", &path));
    assert_eq!(receive(), "READY=1");
    send(daemon.pid(), Signal::SIGHUP);
    let reloading = receive();
    let (word, time) = reloading.split_once('\n').unwrap();
    assert!(word == "RELOADING=1" && time.starts_with("MONOTONIC_USEC="), "{reloading}");
    let ready = receive();
    assert!(ready.starts_with("READY=1\nSTATUS=configuration reloaded"), "{ready}");
    daemon.end(Signal::SIGTERM);
    assert_eq!(receive(), "STOPPING=1");
}
