//! What `handshake report` tells of connections over the link.

use std::{fs, time::Duration};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{
    case::Case,
    program::{Running, Said, TRACING, Trace, program},
    testbed::{
        Family, faults,
        packet::{Packet, Side},
    },
    truth,
};

/// What this report has of the openings of clients, of a class.
fn opens<'a>(report: &'a Value, class: &str) -> &'a Value {
    row(report, "open", class)
}

/// What it has of a stage of clients, of a class.
fn row<'a>(report: &'a Value, stage: &str, class: &str) -> &'a Value {
    let stages = report["stages"].as_array().unwrap();
    let is_it = |row: &&Value| row["stage"] == stage && row["role"] == "client" && row["class"] == class;
    stages.iter().find(is_it).unwrap_or_else(|| panic!("no row of {class} in {report:#}"))
}

/// Three openings, one whose SYN was lost, and one that was refused: traced for a report, and recorded and
/// then reported.
#[test]
fn live_and_of_a_file_it_tells_what_the_link_carried() {
    let case = Case::new();
    let ends = [Side::Client, Side::Server].map(|side| case.bed.address(side, Family::V4).to_string());
    let mine = ["--tls-libraries", "off", "--remote", &ends[0], "--remote", &ends[1]];
    let (out, err) = (Said::default(), Said::default());
    let mut command = program(&[&["report", "--duration", "1h", "--json"], &mine[..]].concat());
    let live = Running::start(&mut command, TRACING, out.taker(), err.taker()).unwrap();
    let recording = Trace::start(&[&["--output", "json"], &mine[..]].concat(), None);

    let mut connections: Vec<_> = (0..3).map(|_| case.establish(Family::V4).finish()).collect();
    case.bed.wait_until_quiet();
    case.bed.fault(faults::drop_first(1, Side::Client, Packet::is_syn));
    connections.push(case.establish(Family::V4).finish());
    let (listener, address) = case.bed.listen(Family::V4);
    drop(listener);
    case.bed.socket(Side::Client, Family::V4).connect(&address.into()).unwrap_err();
    case.bed.wait_until_quiet();
    recording.wait_for("all closings", |said| {
        said.matches("\"event\":\"close\"").count() == 8 && said.contains("\"refused\"")
    });

    assert!(live.end(Signal::SIGTERM).0.success(), "{}", err.text());
    let live: Value = serde_json::from_slice(&out.bytes()).unwrap();
    let (records, _) = recording.stop();
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), records).unwrap();
    let of_file = program(&["report", "--json", file.path().to_str().unwrap()])
        .stdout(std::process::Stdio::piped())
        .output()
        .unwrap();
    assert!(of_file.status.success(), "{}", String::from_utf8_lossy(&of_file.stderr));
    let of_file: Value = serde_json::from_slice(&of_file.stdout).unwrap();

    let capture = case.bed.capture();
    let mut truths: Vec<Duration> =
        connections.iter().map(|&connection| truth::client_open(&capture.of(connection))).collect();
    truths.sort();
    for report in [&live, &of_file] {
        // Both ends of four connections, and the client that was refused.
        assert_eq!((&report["connections"], &report["lost"]), (&9.into(), &0.into()), "{report:#}");
        let plain = opens(report, "established");
        assert_eq!(plain["count"], 3, "{report:#}");
        let again = opens(report, "established retransmitted");
        assert_eq!(again["count"], 1, "{report:#}");
        // The first timer of the SYN alone takes a second.
        assert_eq!(again["buckets"], json!([{"le_us": 1_600_000, "count": 1}]), "{report:#}");
        let setups = row(report, "setup", "without TLS");
        for row in [plain, setups] {
            let buckets = row["buckets"].as_array().unwrap();
            let sum: u64 = buckets.iter().map(|bucket| bucket["count"].as_u64().unwrap()).sum();
            assert_eq!(row["timed"], sum, "{report:#}");
        }
        assert_eq!(setups["count"], 4, "{report:#}");
        let shown = Duration::from_micros(plain["p50_us"].as_u64().unwrap());
        assert_time!(
            shown.abs_diff(truths[1]) <= Duration::from_millis(3),
            "the median is {shown:?}, the truth {:?}",
            truths[1]
        );
        let failure = &report["failures"][0];
        assert_eq!((&failure["reason"], &failure["count"]), (&"refused".into(), &1.into()), "{report:#}");
        let retransmits: u64 = report["services"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row["syn_retransmits"].as_u64().unwrap())
            .sum();
        assert_eq!(retransmits, 1, "{report:#}");
        let slowest = &report["slowest"][0];
        assert_eq!((&slowest["role"], &slowest["open"]["syn_retransmits"]), (&"client".into(), &1.into()));
        let took = Duration::from_micros(slowest["open"]["duration_us"].as_u64().unwrap());
        assert_time!(took.abs_diff(truths[3]) <= Duration::from_millis(3), "{took:?}, not {:?}", truths[3]);
    }
}
