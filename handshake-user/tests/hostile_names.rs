//! Untrusted names in every output of the program: files, processes, cgroups, server names. Also the
//! namespaces that `check` reports: in its own namespaces the program must not claim what it cannot see.
//!
//! Needs root: run through `cargo xtask test`.

#[path = "hostile_names/hostile_process.rs"]
mod hostile_process;
#[path = "hostile_names/namespaces.rs"]
mod namespaces;
mod program;

use std::process::{Output, Stdio};

use nix::sys::signal::Signal;
use serde_json::Value;

use self::{
    hostile_process::{COMM, FOLDER, HostileProcess, Server, client_hello},
    program::{Daemon, Trace, command, program},
};

/// `FOLDER` as it must be shown, escaped.
const SHOWN: &str = r"a\x1b[2J\x1b]0;x\x07\n  ok  /usr/lib/forged";
/// `COMM` as it must be shown, escaped.
const SHOWN_COMM: &str = r"\x1b[2J\xff\n} 1";

/// Runs the program to its end.
fn run(arguments: &[&str]) -> Output {
    program(arguments).stdout(Stdio::piped()).env_remove("RUST_LOG").output().unwrap()
}

/// Characters that control a terminal or hide text: control characters except line ends, changes of the text
/// direction, zero-width characters.
fn is_harmful(c: char) -> bool {
    c != '\n' && c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[track_caller]
fn assert_harmless(what: &str, output: &[u8]) -> String {
    let text = std::str::from_utf8(output).unwrap_or_else(|error| panic!("{what}: {error}"));
    if let Some(line) = text.lines().find(|line| line.chars().any(is_harmful)) {
        panic!("{what}: {line:?}");
    }
    for line in text.lines() {
        let start = line.trim_start();
        assert!(!start.starts_with("ok  /usr/lib/forged"), "{what} has a forged line: {line:?}");
        assert!(!start.starts_with("} 1"), "{what} has a forged line: {line:?}");
    }
    text.to_owned()
}

#[test]
fn check_shows_a_library_with_a_hostile_path_on_one_line() {
    let hostile = HostileProcess::start();
    let output = run(&["check"]);
    let text = assert_harmless("check", &output.stdout);
    assert_harmless("check, on standard error", &output.stderr);
    let folder = hostile.folder();
    let lines: Vec<_> = text.lines().filter(|line| line.contains(&folder)).collect();
    assert!(lines.len() == 1 && lines[0].contains(SHOWN), "{lines:?}");

    let output = run(&["check", "--json"]);
    let text = assert_harmless("check --json", &output.stdout);
    let report: Value = serde_json::from_str(&text).unwrap();
    let libraries = report["tls_libraries"].as_array().unwrap();
    let library = hostile.library();
    assert!(libraries.iter().any(|it| it["path"] == library), "JSON keeps the exact value: {libraries:?}");
}

#[test]
fn trace_escapes_hostile_names_in_every_output_format() {
    let mut hostile = HostileProcess::start();
    let server = Server::start();
    let port = server.port().to_string();
    for shape in ["table", "json", "ladder"] {
        let trace = Trace::start(&["--port", &port, "--output", shape], Some("debug"));
        hostile.connect(server.port(), &client_hello(b"a\x1b[2J\n\x9b.example"));
        hostile.connect(server.port(), &client_hello(&[b'x'; 1000]));
        trace.wait_for("the close records", |said| match shape {
            "json" => said.matches(r#""event":"close""#).count() >= 4,
            "table" => said.matches(" close ").count() >= 4,
            // Ladders are drawn at the close.
            _ => said.matches(" client").count() >= 2 && said.matches(" server").count() >= 2,
        });
        let (stdout, stderr) = trace.stop();
        let said = assert_harmless(shape, &stdout);
        let log = assert_harmless("its log", &stderr);
        assert!(log.contains(SHOWN), "{log}");
        if shape == "json" {
            let records: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            let comm = format!("{}\\xff\n}} 1", "\x1b[2J");
            assert!(records.iter().any(|record| record["process"]["comm"] == comm), "{said}");
            let cgroup = format!("/{}", hostile.cgroup());
            assert!(records.iter().any(|record| record["process"]["cgroup"] == cgroup), "{said}");
            let name = "x".repeat(1000);
            assert!(records.iter().any(|record| record["tls"]["sni"] == name), "{said}");
        } else {
            assert!(said.contains(SHOWN_COMM), "{said}");
            assert!(said.lines().all(|line| line.chars().count() < 600), "{said}");
        }
    }
}

#[test]
fn daemon_escapes_hostile_names_in_metrics_and_log() {
    let mut hostile = HostileProcess::start();
    let server = Server::start();
    let labels = ["--label", "process", "--label", "cgroup", "--label", "sni"];
    let arguments = [&["--listen", "127.0.0.1:0"], &labels[..]].concat();
    let daemon = Daemon::spawn(command(&arguments).env("RUST_LOG", "debug"));
    hostile.connect(server.port(), &client_hello(b"a\x1b[2J\n\x9b.example"));
    hostile.connect(server.port(), &client_hello(&[b'x'; 1000]));
    let metrics = daemon.metrics_until(|text| text.contains("} 1\"") || text.contains("xxxxxxxx"));
    let text = assert_harmless("/metrics", metrics.as_bytes());
    // The text format doubles backslashes in label values.
    let shown = format!("process=\"{}\"", SHOWN_COMM.replace('\\', r"\\"));
    assert!(text.contains(&shown), "{text}");
    assert!(text.contains(r"h\\x1b[2J"), "the cgroup: {text}");
    assert!(text.lines().all(|line| line.chars().count() < 2000));
    let (status, _, stderr) = daemon.end(Signal::SIGTERM);
    assert!(status.success(), "{status}");
    let log = assert_harmless("the log of daemon", &stderr);
    assert!(log.contains(SHOWN), "{log}");
}

#[test]
fn comm_filter_longer_than_the_kernel_limit_is_truncated_with_a_note() {
    let server = Server::start();
    let port = server.port().to_string();
    let trace = Trace::start(
        &["--port", &port, "--output", "json", "--comm", "handshake-with-a-long-name", "--stage", "open"],
        None,
    );
    let mut hostile = HostileProcess::named(b"handshake-with-a-long-name");
    // The kernel side misses an event that interrupts the eBPF program for another one, but not several in a
    // row.
    (0..3).for_each(|_| hostile.connect(server.port(), b""));
    trace.wait_for("the open record", |said| said.contains(r#""comm":"handshake-with-""#));
    let (_, stderr) = trace.stop();
    let notes = String::from_utf8(stderr).unwrap();
    assert!(notes.contains("--comm") && notes.contains("\"handshake-with-\""), "{notes}");
}

#[test]
fn hostile_names_contain_control_characters() {
    assert!(FOLDER.contains(&b'\x1b') && FOLDER.contains(&b'\n') && FOLDER.contains(&b'\x07'));
    assert!(COMM.len() <= 15 && COMM.contains(&b'\x1b') && COMM.contains(&b'\n'));
}
