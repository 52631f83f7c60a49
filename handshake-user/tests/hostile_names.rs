//! Names that a stranger chooses, in every output of the program: files, processes, cgroups, server names.
//! And where the program runs, told by `check`: in namespaces of its own it must not claim what it cannot
//! see.
//!
//! Needs root: run through `cargo xtask test`.

#[path = "hostile_names/namespaces.rs"]
mod namespaces;
#[path = "hostile_names/program.rs"]
mod program;
#[path = "hostile_names/stranger.rs"]
mod stranger;

use serde_json::Value;

use self::{
    program::{Program, run},
    stranger::{COMM, FOLDER, Server, Stranger, client_hello},
};

/// As it must be shown: `FOLDER` without harm.
const SHOWN: &str = r"a\x1b[2J\x1b]0;x\x07\n  ok  /usr/lib/forged";
/// The same of `COMM`.
const SHOWN_COMM: &str = r"\x1b[2J\xff\n} 1";

/// What drives a terminal or hides: control characters but line ends, what turns the direction of text, what
/// has no width.
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
fn check_shows_a_library_in_a_strangers_folder_on_its_own_line() {
    let stranger = Stranger::start();
    let output = run(&["check"]);
    let text = assert_harmless("check", &output.stdout);
    assert_harmless("check, on standard error", &output.stderr);
    let folder = stranger.folder();
    let lines: Vec<_> = text.lines().filter(|line| line.contains(&folder)).collect();
    assert!(lines.len() == 1 && lines[0].contains(SHOWN), "{lines:?}");

    let output = run(&["check", "--json"]);
    let text = assert_harmless("check --json", &output.stdout);
    let report: Value = serde_json::from_str(&text).unwrap();
    let libraries = report["tls_libraries"].as_array().unwrap();
    let library = stranger.library();
    assert!(libraries.iter().any(|it| it["path"] == library), "the value is the true one: {libraries:?}");
}

#[test]
fn trace_shows_a_stranger_in_every_shape() {
    let mut stranger = Stranger::start();
    let server = Server::start();
    let port = server.port().to_string();
    for shape in ["table", "json", "ladder"] {
        let trace = Program::trace(&["--port", &port, "--output", shape], Some("debug"));
        stranger.connect(server.port(), &client_hello(b"a\x1b[2J\n\x9b.example"));
        stranger.connect(server.port(), &client_hello(&[b'x'; 1000]));
        trace.wait_for("the closings", |said| match shape {
            "json" => said.matches(r#""event":"close""#).count() >= 4,
            "table" => said.matches(" close ").count() >= 4,
            // Ladders are drawn when they close.
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
            let cgroup = format!("/{}", stranger.cgroup());
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
fn daemon_serves_and_logs_a_stranger() {
    let mut stranger = Stranger::start();
    let server = Server::start();
    let labels = ["--label", "process", "--label", "cgroup", "--label", "sni"];
    let daemon = Program::daemon(&labels, Some("debug"));
    stranger.connect(server.port(), &client_hello(b"a\x1b[2J\n\x9b.example"));
    stranger.connect(server.port(), &client_hello(&[b'x'; 1000]));
    let metrics = daemon.scrape_until(|text| text.contains("} 1\"") || text.contains("xxxxxxxx"));
    let text = assert_harmless("/metrics", metrics.as_bytes());
    // The text format doubles backslashes in values of labels.
    let shown = format!("process=\"{}\"", SHOWN_COMM.replace('\\', r"\\"));
    assert!(text.contains(&shown), "{text}");
    assert!(text.contains(r"h\\x1b[2J"), "the cgroup: {text}");
    assert!(text.lines().all(|line| line.chars().count() < 2000));
    let (_, stderr) = daemon.stop();
    let log = assert_harmless("the log of daemon", &stderr);
    assert!(log.contains(SHOWN), "{log}");
}

#[test]
fn a_name_that_is_longer_than_the_kernel_keeps_it_is_matched_and_told() {
    let server = Server::start();
    let port = server.port().to_string();
    let trace = Program::trace(
        &["--port", &port, "--output", "json", "--comm", "handshake-with-a-long-name", "--stage", "open"],
        None,
    );
    let mut stranger = Stranger::named(b"handshake-with-a-long-name");
    // The kernel leaves out an event that interrupts the program on another one; not several.
    (0..3).for_each(|_| stranger.connect(server.port(), b""));
    trace.wait_for("the opening", |said| said.contains(r#""comm":"handshake-with-""#));
    let (_, stderr) = trace.stop();
    let notes = String::from_utf8(stderr).unwrap();
    assert!(notes.contains("--comm") && notes.contains("\"handshake-with-\""), "{notes}");
}

#[test]
fn the_stranger_is_as_hostile_as_it_should_be() {
    assert!(FOLDER.contains(&b'\x1b') && FOLDER.contains(&b'\n') && FOLDER.contains(&b'\x07'));
    assert!(COMM.len() <= 15 && COMM.contains(&b'\x1b') && COMM.contains(&b'\n'));
}
