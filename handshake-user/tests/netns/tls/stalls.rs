//! What holds handshakes up, each made on purpose: told at both ends, with the link as the second witness.

use std::{fs, process::Stdio, time::Duration};

use serde_json::Value;

use super::{
    programs::{
        Account, Peers, Running, drive_with, gnutls, openssl, python::script, serve_with, server_address,
    },
    row::Row,
    scenario::{check, flights_of, made},
    settings::Settings,
    witness::Witness,
};
use crate::{
    case::{Case, RTT, ms},
    ends::{Ends, Expect},
    program::{
        machine::{probes_libraries, tolerance},
        program,
    },
    record::Record,
    testbed::{
        capture::{Capture, Seen},
        faults,
        packet::{Packet, Side},
    },
};

/// How far a stall may be from what the link shows.
const TOLERANCE: Duration = Duration::from_millis(10);

/// A stall as a record tells it: the end, the cause, the duration.
type Told = (String, Option<String>, Duration);

#[track_caller]
fn stalls(tls: &Record) -> Vec<Told> {
    let stalls = tls.get("tls.stalls").and_then(Value::as_array);
    let stalls = stalls.unwrap_or_else(|| panic!("tls.stalls is missing in {tls}"));
    let told = |stall: &Value| {
        (
            stall["end"].as_str().unwrap().to_owned(),
            stall.get("cause").map(|cause| cause.as_str().unwrap().to_owned()),
            Duration::from_micros(stall["duration_us"].as_u64().unwrap()),
        )
    };
    stalls.iter().map(told).collect()
}

/// Checks that these stalls are told and no others.
#[track_caller]
fn assert_stalls(tls: &Record, expected: &[(&str, Option<&str>, Duration)]) {
    let told = stalls(tls);
    let what: Vec<_> = told.iter().map(|(end, cause, _)| (&**end, cause.as_deref())).collect();
    let expected_what: Vec<_> = expected.iter().map(|&(end, cause, _)| (end, cause)).collect();
    // A busy machine stalls an end by itself.
    let mut others = what.iter();
    let has_all = expected_what.iter().all(|expected| others.any(|told| told == expected));
    assert_time!(!has_all || what.len() == expected_what.len(), "stalls besides {expected_what:?} in {tls}");
    assert_eq!(what, expected_what, "in {tls}");
    for ((.., duration), (end, cause, truth)) in told.iter().zip(expected) {
        assert_time!(
            duration.abs_diff(*truth) <= tolerance(TOLERANCE),
            "{cause:?} of the {end}: {duration:?}, not {truth:?}, in {tls}"
        );
    }
}

/// What `explain` says of a record.
fn explain(record: &Record) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), record.to_string()).unwrap();
    let mut command = program(&["explain", file.path().to_str().unwrap()]);
    let out = command.stdout(Stdio::piped()).output().unwrap();
    String::from_utf8(out.stdout).unwrap()
}

/// `explain` says this of the close record, its line of advice included.
#[track_caller]
fn assert_explained(ends: &Ends, side: Side, texts: &[&str]) {
    let explained = explain(ends.close(side));
    for text in texts {
        assert!(explained.contains(text), "no {text:?} in\n{explained}");
    }
}

const GNUTLS_AND_OPENSSL: Peers = Peers {
    client: gnutls::PEERS.client,
    server: openssl::PEERS.server,
    libraries: [Some(super::programs::Library::GnuTls), Some(super::programs::Library::OpenSsl)],
};

/// The client's packets that carry its last flight, and the server's ACK between them.
fn parts(flow: &Capture) -> (Vec<Seen>, Option<Seen>) {
    let data: Vec<Seen> = flow.from(Side::Client, Packet::has_data).into_iter().cloned().collect();
    let first = &data[1];
    let end = first.packet.end();
    let acks = flow.from(Side::Server, |packet| packet.is_bare_ack() && packet.ack == end);
    (data[1..].to_vec(), acks.first().map(|&seen| seen.clone()))
}

/// Checks both ends of a Finished that Nagle's algorithm held.
#[track_caller]
fn assert_held(case: &Case, ends: &Ends) {
    let flow = case.flow(case.connection());
    let (parts, ack) = parts(&flow);
    let ack = ack.expect("the server acknowledges ChangeCipherSpec by itself");
    let [first, second, ..] = &parts[..] else { panic!("the flight has one part:\n{flow}") };
    assert_eq!(first.packet.payload, 6, "ChangeCipherSpec is by itself:\n{flow}");
    let held = second.arrived - first.arrived;
    // Half a round trip there and half of one back.
    let delayed = held.saturating_sub(RTT);
    assert!(delayed >= ms(35), "the ACK was not delayed:\n{flow}");
    for side in [Side::Client, Side::Server] {
        let tls = ends.tls(side);
        assert_stalls(tls, &[("client", Some("nagle"), RTT), ("server", Some("delayed_ack"), delayed)]);
        let (_, first, last) = *flights_of(tls).last().unwrap();
        assert_time!(last.saturating_sub(first).abs_diff(held) <= tolerance(TOLERANCE), "{tls}");
    }
    assert!(ack.arrived > first.arrived && ack.arrived < second.arrived, "{flow}");
    assert_explained(
        ends,
        Side::Client,
        &["Nagle's algorithm held it", "until an ACK that the server delayed", "TCP_NODELAY in this program"],
    );
    assert_explained(ends, Side::Server, &["Nagle's algorithm held it", "TCP_NODELAY in the peer's program"]);
}

#[test]
fn nagle_holds_the_finished_of_gnutls_until_a_delayed_ack() {
    let case = Case::new();
    let address = server_address(&case.bed);
    let _server = (GNUTLS_AND_OPENSSL.server)(&case.bed, address, Settings::TLS13);
    let accounts = (GNUTLS_AND_OPENSSL.client)(&case.bed, address, Settings::TLS13).connect(1);
    let (_, ends) = check(&case, &GNUTLS_AND_OPENSSL, made(&[Row::Tls13Full], accounts));
    assert_held(&case, &ends);
}

/// The same client on a socket of its own, with Nagle's algorithm or without.
fn gnutls_on_a_socket(nodelay: &str) -> (Case, Witness, Ends) {
    let case = Case::new();
    let address = server_address(&case.bed);
    let _server = (openssl::PEERS.server)(&case.bed, address, Settings::TLS13);
    let command = script(&case.bed, Side::Client, "false_start.py");
    let mut client = drive_with(command, address, Settings::TLS13, &[nodelay]);
    // Its own clock stops when the library is done, whatever TCP holds.
    let accounts = client.connect(1).into_iter().map(|account| Account { taken: None, ..account }).collect();
    let (witness, ends) = check(&case, &GNUTLS_AND_OPENSSL, made(&[Row::Tls13Full], accounts));
    (case, witness, ends)
}

#[test]
fn nagle_holds_the_finished_of_a_program_that_leaves_it_on() {
    let (case, _, ends) = gnutls_on_a_socket("nodelay=no");
    assert_held(&case, &ends);
}

#[test]
fn nothing_holds_the_finished_with_tcp_nodelay() {
    let (_, _, ends) = gnutls_on_a_socket("nodelay=yes");
    for side in [Side::Client, Side::Server] {
        assert_stalls(ends.tls(side), &[]);
    }
    assert!(!explain(ends.close(Side::Client)).contains("Nagle"));
}

/// A server that takes 150 ms between the ClientHello and its answer.
fn slow_server(how: &str) -> (Ends, Duration) {
    const TIME: &str = "milliseconds=150";
    let case = Case::new();
    let address = server_address(&case.bed);
    let command = script(&case.bed, Side::Server, "slow.py");
    let _server: Running =
        serve_with(command, &case.bed, address, Settings::TLS13, &[&format!("how={how}"), TIME]);
    let accounts = (openssl::PEERS.client)(&case.bed, address, Settings::TLS13).connect(1);
    assert_eq!(accounts[0].failure, None);
    let connection = case.connection();
    let flow = case.flow(connection);
    let took = flow.sent(Side::Server, Packet::has_data) - flow.got(Side::Server, Packet::has_data);
    (case.ends(connection, Expect::BOTH), took)
}

/// Checks both ends: only the one that took the time knows what for.
#[track_caller]
fn assert_slow((ends, took): &(Ends, Duration), cause: &str, texts: &[&str]) {
    assert!(*took >= ms(140), "{took:?}");
    let cause = probes_libraries().then_some(cause);
    assert_stalls(ends.tls(Side::Server), &[("server", cause, *took)]);
    assert_stalls(ends.tls(Side::Client), &[("server", None, *took)]);
    if cause.is_some() {
        assert_explained(ends, Side::Server, texts);
    }
    assert_explained(ends, Side::Client, &[" late", "answers at once, in one piece"]);
}

#[test]
fn server_whose_program_waits_before_its_answer() {
    assert_slow(
        &slow_server("waiting"),
        "waiting",
        &["the server's program waited", "a program here that answers at once"],
    );
}

#[test]
fn server_whose_library_computes_its_answer() {
    assert_slow(
        &slow_server("computing"),
        "computing",
        &["the server computed", "less computing for a handshake here"],
    );
}

/// A sleep for a lock or a page of the disk is not one for the peer.
#[test]
fn server_whose_library_sleeps_for_a_moment_while_it_computes() {
    let (ends, took) = slow_server("computing-and-sleeping");
    if let Some(computed) = ends.tls(Side::Server).micros("tls.compute_us") {
        assert!((ms(140)..took + ms(5)).contains(&computed), "{computed:?} of {took:?}");
    }
    assert_slow(&(ends, took), "computing", &["the server computed", "less computing for a handshake here"]);
}

#[test]
fn server_whose_program_sleeps_in_a_callback_of_its_library() {
    let (ends, took) = slow_server("sleeping");
    if let Some(computed) = ends.tls(Side::Server).micros("tls.compute_us") {
        assert!(computed < ms(15), "{computed:?}");
    }
    assert_slow(
        &(ends, took),
        "waiting",
        &["the server's program waited", "a program here that answers at once"],
    );
}

/// The first segment with data of this side is lost. Returns both ends, and after how long it was sent again.
fn lost(side: Side) -> (Ends, Duration) {
    let case = Case::new();
    let address = server_address(&case.bed);
    let _server = (openssl::PEERS.server)(&case.bed, address, Settings::TLS13);
    case.bed.fault(faults::drop_first(1, side, Packet::has_data));
    let accounts = (openssl::PEERS.client)(&case.bed, address, Settings::TLS13).connect(1);
    assert_eq!(accounts[0].failure, None);
    let connection = case.connection();
    let flow = case.flow(connection);
    let data = flow.from(side, Packet::has_data);
    let again = data[1..].iter().find(|seen| seen.packet.seq == data[0].packet.seq);
    let again = again.expect("it is sent again").arrived - data[0].arrived;
    (case.ends(connection, Expect::BOTH), again)
}

#[test]
fn client_hello_that_is_lost() {
    let (ends, again) = lost(Side::Client);
    assert_stalls(ends.tls(Side::Client), &[("client", Some("retransmission"), again)]);
    assert_stalls(ends.tls(Side::Server), &[]);
    assert_explained(
        &ends,
        Side::Client,
        &["the same again", "lost, sent again after", "no loss of segments on the path"],
    );
}

#[test]
fn answer_of_the_server_that_is_lost() {
    let (ends, again) = lost(Side::Server);
    assert_stalls(ends.tls(Side::Server), &[("server", Some("retransmission"), again)]);
    // It was late, and why cannot be told from here.
    assert_stalls(ends.tls(Side::Client), &[("server", None, again)]);
    assert_explained(&ends, Side::Server, &["the same again", "no loss of segments on the path"]);
}
