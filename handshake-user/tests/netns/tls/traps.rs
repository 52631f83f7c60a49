//! Cases that are easily got wrong: what is not a handshake, what began before the tracer, what occurs twice.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use super::{
    certificate::{Certificate, NAME},
    programs::{self, Peers, Running, account, gnutls, python, run, run_for, server_address},
    row::Row,
    scenario::{await_data_of, check, check_consistent, made},
    settings::Settings,
    wire::{self, Kind},
};
use crate::{
    case::{Case, pause},
    ends::Expect,
    server::Server,
    testbed::packet::Side,
    tracer::Tracer,
};

for_each_program!(running_before_the_tracer: python, asyncio, node, go, go_stripped, go_pie, go_wrapped);

/// Both programs have loaded their libraries before the tracer starts.
fn running_before_the_tracer(peers: &Peers) {
    let mut case = Case::new();
    let address = server_address(&case.bed);
    let server = (peers.server)(&case.bed, address, Settings::TLS13);
    let mut client = (peers.client)(&case.bed, address, Settings::TLS13);
    let tracer = Tracer::start(&[]).unwrap_or_else(|reason| panic!("{reason}"));
    let rows = [Row::Tls13Full, Row::Tls13Resumed];
    let accounts = client.connect(rows.len());
    case.bed.wait_until_quiet();
    drop(client);
    case.listen_to(tracer.log());
    check(&case, peers, made(&rows, accounts));
    drop(server);
    tracer.stop();
}

/// Two processes use one library at the same time.
#[test]
fn two_clients_at_once() {
    let case = Case::new();
    let address = server_address(&case.bed);
    let peers = &programs::asyncio::PEERS;
    let _server = (peers.server)(&case.bed, address, Settings::TLS13);
    let mut clients = [(); 2].map(|()| (python::PEERS.client)(&case.bed, address, Settings::TLS13));
    let mut theirs: Vec<_> = clients
        .iter_mut()
        .map(|client| u64::from(client.driven().expect("one of the tests' own programs").begin()))
        .collect();
    await_data_of(&case, Side::Client, 2);
    case.bed.wait_until_quiet();
    let mut pids: Vec<_> = case
        .bed
        .capture()
        .connections()
        .into_iter()
        .map(|connection| {
            let ends = case.ends(connection, Expect::BOTH);
            for side in [Side::Client, Side::Server] {
                ends.tls(side).assert_is("tls.class", "full");
                check_consistent(&ends, side);
            }
            ends.tls(Side::Client).number("process.pid").expect("a client's process is certain")
        })
        .collect();
    pids.sort_unstable();
    theirs.sort_unstable();
    assert_eq!(pids, theirs);
}

/// A second `gnutls_handshake()` only updates the keys (RFC 8446 §4.6.3).
#[test]
fn key_update_of_gnutls() {
    repeat_with_gnutls(Settings::TLS13, Row::Tls13Full);
}

/// A second handshake on an established TLS connection (RFC 5246 §7.4.1.1) makes no record.
#[test]
fn renegotiation_of_gnutls() {
    repeat_with_gnutls(Settings::TLS12, Row::Tls12Full);
}

fn repeat_with_gnutls(settings: Settings, row: Row) {
    let case = Case::new();
    let address = server_address(&case.bed);
    let _server = (gnutls::PEERS.server)(&case.bed, address, settings);
    let mut command = gnutls::command(&case.bed, address, settings);
    command.arg("--rehandshake").arg(address.ip().to_string());
    let (pid, out) = run(command, programs::REQUEST);
    check(&case, &gnutls::PEERS, made(&[row], vec![account(pid, &out)]));
    assert_second_handshake(&case, row);
}

/// `K` and `R` are commands of `s_client`.
#[test]
fn key_update_of_openssl() {
    repeat_with_openssl(Settings::TLS13, Row::Tls13Full, b"K\n");
}

#[test]
fn renegotiation_of_openssl() {
    repeat_with_openssl(Settings::TLS12, Row::Tls12Full, b"R\n");
}

fn repeat_with_openssl(settings: Settings, row: Row, input: &[u8]) {
    let case = Case::new();
    let address = server_address(&case.bed);
    let certificate = Certificate::shared();
    let version = format!("-tls{}", settings.version.number().replace('.', "_"));
    let mut command = case.bed.command(Side::Server, "openssl");
    command.args(["s_server", "-quiet", "-client_renegotiation", "-accept", &address.to_string(), &version]);
    command.arg("-key").arg(&certificate.key).arg("-cert").arg(&certificate.chain);
    let _server = Running::start(&case.bed, address, command);
    let mut command = case.bed.command(Side::Client, "openssl");
    command.args(["s_client", "-connect", &address.to_string(), "-servername", NAME, &version]);
    let (pid, out) = run_for(command, input, Duration::from_millis(800));
    check(&case, &programs::openssl::PEERS, made(&[row], vec![account(pid, &out)]));
    assert_second_handshake(&case, row);
}

/// A return probe would kill such programs, and confuse their handshakes.
#[test]
fn coroutines_on_one_thread() {
    let case = Case::new();
    let address = server_address(&case.bed);
    let peers = &programs::coroutines::PEERS;
    let _server = (peers.server)(&case.bed, address, Settings::TLS13);
    let rows = [Row::Tls13Full; 5];
    let accounts = (peers.client)(&case.bed, address, Settings::TLS13).connect(rows.len());
    check(&case, peers, made(&rows, accounts));
}

/// DTLS uses the same functions of the libraries, but has no TCP connection.
#[test]
fn dtls_makes_no_record() {
    const PORT: &str = "4433";
    let case = Case::new();
    // Its own tracer: all its records are there once it has ended.
    let tracer = Tracer::start(&[]).unwrap_or_else(|reason| panic!("{reason}"));
    let openssl = |arguments: &[&str]| {
        let mut command = case.bed.command(Side::Server, "openssl");
        command.args(arguments);
        command
    };
    let at = format!("127.0.0.1:{PORT}");
    let client = || openssl(&["s_client", "-dtls", "-connect", &at]);
    let (unanswered, out) = run(client(), b"");
    assert!(!out.status.success(), "a handshake without a server");

    let certificate = Certificate::shared();
    let mut server = openssl(&["s_server", "-dtls", "-quiet", "-accept", &at]);
    server.arg("-key").arg(&certificate.key).arg("-cert").arg(&certificate.chain).stderr(Stdio::null());
    let server = Server::start(server);
    await_udp_socket(&case, PORT);
    let (by_openssl, out) = run_for(client(), b"", Duration::from_millis(300));
    assert!(String::from_utf8_lossy(&out.stdout).contains("Protocol  : DTLSv1.2"), "{out:?}");
    let mut command = case.bed.command(Side::Server, "gnutls-cli");
    command.args(["--udp", "--insecure", "--port", PORT, "127.0.0.1"]);
    let (by_gnutls, out) = run_for(command, b"", Duration::from_millis(300));
    assert!(String::from_utf8_lossy(&out.stdout).contains("Handshake was completed"), "{out:?}");

    let log = tracer.log();
    tracer.stop();
    let pids = [unanswered, by_openssl, by_gnutls, server.pid()].map(|pid| Some(u64::from(pid)));
    let records = log.matching(|record| pids.contains(&record.number("process.pid")));
    assert!(records.is_empty(), "{records:?}");
}

#[track_caller]
fn await_udp_socket(case: &Case, port: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let listens = || {
        let mut command = case.bed.command(Side::Server, "ss");
        let out = command.args(["-Hlnu", "sport", "=", &format!(":{port}")]).output().unwrap();
        !out.stdout.is_empty()
    };
    while !listens() {
        assert!(Instant::now() < deadline, "no UDP socket on port {port}");
        pause(20);
    }
}

/// The link carried what could be taken for a second handshake.
#[track_caller]
fn assert_second_handshake(case: &Case, row: Row) {
    let client = wire::records(&case.bed.capture(), Side::Client);
    let behind = client.iter().skip_while(|record| record.kind != Kind::ChangeCipherSpec).skip(2);
    // It is encrypted: TLS 1.2 has a content type of its own, 1.3 only the length of a KeyUpdate (RFC 8446
    // §4.6.3, §5.2).
    let again = |record: &wire::Record| match row.version() {
        "1.2" => record.kind == Kind::Handshake,
        _ => record.kind == Kind::Data && record.body.len() == 5 + 1 + 16,
    };
    assert!(behind.into_iter().any(again), "no second handshake on the link");
}
