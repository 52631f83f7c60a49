//! Handshakes that fail or are abandoned.

use std::{io::Write, time::Duration};

use socket2::Socket;

use super::{
    certificate::{Certificate, NAME},
    programs::{Peers, Running, run_for, server_address},
    scenario::{await_data_of, check_consistent},
    settings::Settings,
    wire::{self, Kind},
};
use crate::{
    case::Case,
    ends::{Ends, Expect},
    testbed::{
        Family, Testbed, faults,
        packet::{Packet, Side},
    },
    tracer::Tracer,
};

for_each_program!(wrong_version: openssl, openssl_1_1_1, openssl_3_5, openssl_3_6, curl, gnutls, python,
    node, go, rustls, java);
for_each_program!(untrusted_certificate: openssl, openssl_1_1_1, openssl_3_5, openssl_3_6, curl, gnutls,
    python, go, rustls, java, postgres);
// The alert is encrypted: only a library can report it.
for_each_program!(untrusted_certificate_with_tls13: openssl, openssl_1_1_1, openssl_3_5, openssl_3_6, curl,
    gnutls, python, go);
// The failing end closes without sending the alert that its library has made.
for_each_program!(wrong_version_without_an_alert: asyncio);
for_each_program!(untrusted_certificate_without_an_alert: asyncio);
for_each_program!(certificate_rejected_after_the_handshake: node);
for_each_program!(client_gone_after_its_hello: openssl, curl, haproxy, gnutls, python, asyncio, node, go,
    rustls, java);
for_each_program!(plain_text: openssl, haproxy, gnutls, python, go);
// nginx checks the first byte itself. With memory BIOs the library has no socket, and without a ClientHello
// nothing else ties the session to the connection. rustls and Java cannot be probed.
for_each_program!(plain_text_without_a_record: nginx, asyncio, node, rustls, java);
for_each_program!(client_killed: python, asyncio, node, go, rustls);

const UNFINISHED: &[&str] = &["failed", "abandoned"];

/// The server supports only TLS 1.2, the client only 1.3.
fn wrong_version(peers: &Peers) {
    let ends = fail(peers, Settings::TLS12, Settings::TLS13);
    for side in [Side::Client, Side::Server] {
        check_failed(&ends, side, &["failed"]);
        ends.tls(side).assert_one_of_or_unknown("tls.alert", &["protocol_version", "handshake_failure"]);
    }
    // The alert is not encrypted.
    assert!(ends.tls(Side::Client).get("tls.alert").is_some(), "the alert in {}", ends.tls(Side::Client));
}

fn untrusted_certificate(peers: &Peers) {
    untrusted(peers, Settings::TLS12);
}

fn untrusted_certificate_with_tls13(peers: &Peers) {
    untrusted(peers, Settings::TLS13);
}

fn untrusted(peers: &Peers, settings: Settings) {
    let ends = fail(peers, settings, Settings { trusted: false, ..settings });
    for side in [Side::Client, Side::Server] {
        check_failed(&ends, side, &["failed"]);
        ends.tls(side).assert_one_of_or_unknown(
            "tls.alert",
            &["unknown_ca", "bad_certificate", "certificate_unknown", "handshake_failure", "internal_error"],
        );
    }
}

fn wrong_version_without_an_alert(peers: &Peers) {
    let ends = fail(peers, Settings::TLS12, Settings::TLS13);
    check_failed(&ends, Side::Server, &["failed"]);
    check_failed(&ends, Side::Client, UNFINISHED);
}

fn untrusted_certificate_without_an_alert(peers: &Peers) {
    for settings in [Settings::TLS12, Settings::TLS13] {
        let ends = fail(peers, settings, Settings { trusted: false, ..settings });
        check_failed(&ends, Side::Client, &["failed"]);
        check_failed(&ends, Side::Server, UNFINISHED);
    }
}

/// Node.js completes the handshake, checks the certificate afterwards, and closes.
fn certificate_rejected_after_the_handshake(peers: &Peers) {
    for settings in [Settings::TLS12, Settings::TLS13] {
        let ends = fail(peers, settings, Settings { trusted: false, ..settings });
        ends.tls(Side::Client).assert_is("tls.outcome", "completed");
        ends.tls(Side::Server).assert_one_of_or_unknown("tls.outcome", &["completed", "abandoned", "failed"]);
    }
}

/// The server wants a certificate, and answers a Finished without one by an alert, which is encrypted.
/// Without the libraries neither end can say more than that it may have been one.
#[test]
fn finished_that_the_server_refuses_leaves_the_outcome_unknown() {
    let mut case = Case::new();
    let address = server_address(&case.bed);
    let tracer = Tracer::start(&["--tls-libraries", "off"]).unwrap_or_else(|reason| panic!("{reason}"));
    case.listen_to(tracer.log());
    let certificate = Certificate::shared();
    let mut command = case.bed.command(Side::Server, "openssl");
    command.args(["s_server", "-quiet", "-tls1_3", "-Verify", "1", "-accept", &address.to_string()]);
    command.arg("-key").arg(&certificate.key).arg("-cert").arg(&certificate.chain);
    let _server = Running::start(&case.bed, address, command);
    let mut command = case.bed.command(Side::Client, "openssl");
    command.args(["s_client", "-quiet", "-connect", &address.to_string(), "-servername", NAME]);
    let (_, out) = run_for(command, b"", Duration::from_millis(600));
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(said.contains("certificate required"), "the server did not refuse: {said}");
    case.bed.wait_until_quiet();
    let connection = case.connection();
    let flow = case.flow(connection);
    let [client, server] = [Side::Client, Side::Server].map(|side| wire::records(&flow, side));
    let finished = client.iter().rfind(|record| record.kind == Kind::Data).expect("no Finished");
    let answer = server.iter().find(|record| record.sent > finished.got).expect("no answer to the Finished");
    assert_eq!((answer.kind, answer.body.len()), (Kind::Data, 19), "an encrypted alert");

    let ends = case.ends(connection, Expect::BOTH);
    for side in [Side::Client, Side::Server] {
        for record in [ends.tls(side), ends.close(side)] {
            record.assert_is("tls.source", "wire");
            record.assert_is("tls.version", "1.3");
            record.assert_unknown("tls.outcome");
            record.assert_unknown("setup");
        }
    }
    drop(ends);
    tracer.stop();
}

/// One attempt, which must fail according to the client.
#[track_caller]
fn fail(peers: &Peers, server: Settings, client: Settings) -> Ends {
    let case = Case::new();
    let address = server_address(&case.bed);
    let _server = (peers.server)(&case.bed, address, server);
    let mut client = (peers.client)(&case.bed, address, client);
    let accounts = client.connect(1);
    assert!(accounts[0].failure.is_some(), "the client reports no failure");
    case.bed.wait_until_quiet();
    // Not earlier: Node.js reports the failure in the middle of its handshake, before it closes.
    drop(client);
    case.ends(case.connection(), Expect::BOTH)
}

#[track_caller]
fn check_failed(ends: &Ends, side: Side, outcomes: &[&str]) {
    let tls = ends.tls(side);
    assert!(tls.get("tls.outcome").is_some(), "tls.outcome is missing in {tls}");
    tls.assert_one_of_or_unknown("tls.outcome", outcomes);
    // Only completed handshakes have these.
    for path in ["tls.class", "tls.round_trips", "setup"] {
        tls.assert_unknown(path);
    }
    check_consistent(ends, side);
}

/// The client closes right after its `ClientHello`.
fn client_gone_after_its_hello(peers: &Peers) {
    let (case, _server) = listening(peers);
    let mut client = dial(&case.bed);
    client.write_all(&hello()).unwrap();
    drop(client);
    case.bed.wait_until_quiet();
    let ends = case.ends(case.connection(), Expect::BOTH);
    for side in [Side::Client, Side::Server] {
        check_failed(&ends, side, UNFINISHED);
    }
    ends.tls(Side::Client).assert_is("tls.source", "wire");
}

/// The library reports an error; the link carries no handshake.
fn plain_text(peers: &Peers) {
    let ends = ask_in_plain_text(peers);
    ends.assert_no_tls(Side::Client);
    check_failed(&ends, Side::Server, UNFINISHED);
    ends.tls(Side::Server).assert_is("tls.source", "library");
    ends.tls(Side::Server).assert_unknown("tls.version");
}

fn plain_text_without_a_record(peers: &Peers) {
    let ends = ask_in_plain_text(peers);
    for side in [Side::Client, Side::Server] {
        ends.assert_no_tls(side);
    }
}

#[track_caller]
fn ask_in_plain_text(peers: &Peers) -> Ends {
    let (case, _server) = listening(peers);
    let mut client = dial(&case.bed);
    client.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    // The answer may be an alert, plain text, or a reset.
    let _ = std::io::copy(&mut client, &mut std::io::sink());
    drop(client);
    case.bed.wait_until_quiet();
    case.ends(case.connection(), Expect::BOTH)
}

fn listening(peers: &Peers) -> (Case, Running) {
    let case = Case::new();
    let server = (peers.server)(&case.bed, server_address(&case.bed), Settings::TLS12);
    (case, server)
}

fn dial(bed: &Testbed) -> Socket {
    let client = bed.socket(Side::Client, Family::V4);
    client.connect(&server_address(bed).into()).unwrap();
    client
}

/// A `ClientHello` of TLS 1.2 that every server here accepts (RFC 5246 §7.4.1.2).
fn hello() -> Vec<u8> {
    const EXTENSIONS: &[u8] = &[
        0, 10, 0, 6, 0, 4, 0, 29, 0, 23, // supported_groups: X25519, P-256
        0, 11, 0, 2, 1, 0, // ec_point_formats: uncompressed
        0, 13, 0, 4, 0, 2, 4, 3, // signature_algorithms: ECDSA with SHA-256
        0, 23, 0, 0, // extended_master_secret
        0xff, 1, 0, 1, 0, // renegotiation_info: none
    ];
    // TLS 1.2, the random, no session, ECDHE-ECDSA with AES-128-GCM and AES-256-GCM, no compression.
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 4, 0xc0, 0x2b, 0xc0, 0x2c, 1, 0]);
    body.extend(u16::try_from(EXTENSIONS.len()).unwrap().to_be_bytes());
    body.extend(EXTENSIONS);
    let length = u16::try_from(body.len()).unwrap();
    let mut record = vec![22, 3, 1];
    record.extend((length + 4).to_be_bytes());
    record.extend([1, 0]);
    record.extend(length.to_be_bytes());
    record.extend(body);
    record
}

/// The client is killed while it waits for the answer, so its library never sees the end.
fn client_killed(peers: &Peers) {
    let (case, _server) = listening(peers);
    let from_server = |packet: &Packet| packet.from == Side::Server && packet.has_data();
    case.bed.fault(faults::drop_all(from_server));
    let mut client = (peers.client)(&case.bed, server_address(&case.bed), Settings::TLS12);
    client.driven().expect("one of the tests' own programs").begin();
    // The server has answered, and the answer is lost.
    await_data_of(&case, Side::Server, 1);
    drop(client);
    case.bed.mend();
    case.bed.wait_until_quiet();
    let ends = case.ends(case.connection(), Expect::BOTH);
    for side in [Side::Client, Side::Server] {
        check_failed(&ends, side, UNFINISHED);
    }
    ends.tls(Side::Client).assert_is("tls.outcome", "abandoned");
}
