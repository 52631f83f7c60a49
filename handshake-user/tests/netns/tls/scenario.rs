//! Two programs and one or more connections between them, with the checks of the records of each.

use std::{fs, time::Duration};

use handshake_common::tls::wire::burst::MAX_BURSTS;
use serde_json::Value;

use super::{
    certificate::Certificate,
    programs::{Account, Library, Peers, server_address},
    row::Row,
    settings::Settings,
    witness::{Flight, Handshake, Witness},
};
use crate::{
    case::{Case, RTT, ms},
    ends::{Ends, Expect, opening},
    program::machine::{patience, tolerance},
    record::Record,
    testbed::{
        capture::Connection,
        packet::{Packet, Side},
    },
};

/// How far a time may be from that on the link: programs, and a busy machine, take time to handle a packet.
pub(crate) const TOLERANCE: Duration = Duration::from_millis(10);
/// Segments of both ends that pass within so much may do it in one order on the link, and in another in TCP.
const CROSSING: Duration = Duration::from_micros(200);
/// How long both ends together may compute in a handshake: Java compiles its own code meanwhile.
const COMPUTING: Duration = Duration::from_secs(2);

/// A connection that was made, and the kind of handshake that it must have had.
pub(crate) struct Made {
    pub(crate) row: Row,
    pub(crate) account: Account,
}

/// Connects the two programs once for each row, and expects that kind of handshake.
#[track_caller]
pub(crate) fn meet(peers: &Peers, settings: Settings, rows: &[Row]) {
    let case = Case::new();
    let address = server_address(&case.bed);
    let _server = (peers.server)(&case.bed, address, settings);
    let mut client = (peers.client)(&case.bed, address, settings);
    let accounts = client.connect(rows.len());
    check(&case, peers, made(rows, accounts));
}

/// The same, but restarts the server with other settings before the last connection.
#[track_caller]
pub(crate) fn meet_and_restart(peers: &Peers, before: Settings, after: Settings, rows: &[Row]) {
    let case = Case::new();
    let address = server_address(&case.bed);
    let server = (peers.server)(&case.bed, address, before);
    let mut client = (peers.client)(&case.bed, address, before);
    let mut accounts = client.connect(rows.len() - 1);
    // Otherwise segments still on the link would be answered with a RST.
    case.bed.wait_until_quiet();
    drop(server);
    let _server = (peers.server)(&case.bed, address, after);
    accounts.extend(client.connect(1));
    check(&case, peers, made(rows, accounts));
}

pub(crate) fn made(rows: &[Row], accounts: Vec<Account>) -> Vec<Made> {
    rows.iter().zip(accounts).map(|(&row, account)| Made { row, account }).collect()
}

/// Waits until that side has sent data on this many connections.
#[track_caller]
pub(crate) fn await_data_of(case: &Case, side: Side, count: usize) {
    case.bed.wait_until(&format!("data of the {side:?} on {count} connections"), |capture| {
        let connections = capture.connections().into_iter();
        let has_data = |&connection: &Connection| capture.of(connection).count(side, Packet::has_data) > 0;
        connections.filter(has_data).count() == count
    });
}

/// Checks every connection of this testbed, oldest first. Returns the measurement and the records of the last
/// one.
#[track_caller]
pub(crate) fn check(case: &Case, peers: &Peers, made: Vec<Made>) -> (Witness, Ends) {
    case.bed.wait_until_quiet();
    let connections = case.bed.capture().connections();
    assert_eq!(connections.len(), made.len(), "connections on the link; the client reports {:?}", {
        made.iter().map(|made| &made.account).collect::<Vec<_>>()
    });
    let mut last = None;
    for (connection, made) in connections.into_iter().zip(made) {
        assert_eq!(made.account.failure, None, "the client reports a failure");
        let witness = witness(case, connection, &made);
        let ends = case.ends(connection, Expect::BOTH);
        for side in [Side::Client, Side::Server] {
            check_end(&ends, side, peers.library(side), &witness);
        }
        for record in ends.all(Side::Client) {
            record.assert_process_or_unknown(made.account.pid);
        }
        last = Some((witness, ends));
    }
    last.expect("no connection")
}

/// The measurement on the link, which must be that of the kind of handshake that the scenario is for.
#[track_caller]
fn witness(case: &Case, connection: Connection, made: &Made) -> Witness {
    let witness = Witness::of(&case.bed.capture().of(connection));
    assert_eq!(witness.row, made.row, "the kind of handshake on the link");
    let setup = witness.row.setup_round_trips(witness.hello_in_syn);
    for (what, actual, round_trips, duration) in [
        ("client", witness.client.round_trips, made.row.client_round_trips(), witness.client.duration),
        ("server", witness.server.round_trips, made.row.server_round_trips(), witness.server.duration),
        ("setup", setup, setup, witness.setup),
    ] {
        assert_eq!(actual, round_trips, "round trips of the {what}");
        let least = RTT * round_trips;
        assert_time!(
            least <= duration + ms(1) && duration <= least + patience(COMPUTING),
            "{what}: {duration:?} for {round_trips} round trips"
        );
    }
    if let Some(taken) = made.account.taken.filter(|_| made.row != Row::Tls12FalseStart) {
        let truth = witness.client.duration;
        assert_time!(
            taken + tolerance(TOLERANCE) >= truth,
            "{taken:?} by the client's own clock, not {truth:?}"
        );
    }
    witness
}

/// Checks `tls.held_us`, which the end of the last flight has: TCP may hold the client's Finished back until
/// the server has acknowledged what lies before it (Nagle's algorithm), while the library is already done.
#[track_caller]
fn check_held(tls: &Record, side: Side, row: Row, handshake: Handshake) {
    let last = match row {
        Row::Tls12FalseStart => None,
        Row::Tls12Full => Some(Side::Server),
        _ => Some(Side::Client),
    };
    if last != Some(side) {
        tls.assert_unknown("tls.held_us");
        return;
    }
    let held = tls.micros("tls.held_us").unwrap_or_else(|| panic!("tls.held_us is missing in {tls}"));
    let most = handshake.duration.saturating_sub(RTT * handshake.round_trips) + tolerance(TOLERANCE);
    assert_time!(held <= most, "tls.held_us is {held:?}, more than {most:?}, in {tls}");
}

/// Checks the `tls` record of a completed handshake.
#[track_caller]
fn check_end(ends: &Ends, side: Side, library: Option<Library>, truth: &Witness) {
    let row = truth.row;
    let tls = ends.tls(side);
    let handshake = truth.handshake(side);
    tls.assert_is("tls.outcome", "completed");
    tls.assert_is("tls.version", row.version());
    tls.assert_is("tls.class", row.class());
    tls.assert_count("tls.round_trips", usize::try_from(handshake.round_trips).unwrap());
    tls.assert_within("tls.duration_us", handshake.duration, tolerance(TOLERANCE));
    match truth.group {
        Some(group) => tls.assert_is("tls.group", group),
        None => tls.assert_unknown("tls.group"),
    }
    match truth.signature {
        Some(signature) => tls.assert_is("tls.signature", signature),
        None => tls.assert_unknown("tls.signature"),
    }
    check_certificate(tls, row);
    tls.assert_unknown("tls.alert");
    if let Some(library) = library {
        tls.assert_is("tls.library", library.name());
        check_held(tls, side, row, handshake);
        check_computing(tls, library, side == Side::Client && row.offers_early_data());
    } else {
        tls.assert_unknown("tls.library");
        tls.assert_unknown("tls.held_us");
        tls.assert_unknown("tls.compute_us");
    }
    tls.assert_count(
        "setup.round_trips",
        usize::try_from(row.setup_round_trips(truth.hello_in_syn)).unwrap(),
    );
    let (setup, rtt) = (tls.number("setup.duration_us"), tls.number("open.rtt_us"));
    match side {
        Side::Client => tls.assert_within("setup.duration_us", truth.setup, tolerance(TOLERANCE)),
        // The server cannot always know when its Finished arrived.
        Side::Server => {
            tls.assert_within_or_unknown("setup.duration_us", truth.setup, tolerance(TOLERANCE));
        }
    }
    if let (Some(setup), Some(rtt), Some(excess)) = (setup, rtt, tls.get("setup.excess_us")) {
        let expected = i64::try_from(rtt).unwrap() * i64::from(row.setup_round_trips(truth.hello_in_syn));
        assert_eq!(
            excess.as_i64(),
            Some(i64::try_from(setup).unwrap() - expected),
            "setup.excess_us in {tls}"
        );
    }
    check_consistent(ends, side);
    check_flights(tls, side, truth);
    tls.assert_is("tls.source", if library.is_some() { "both" } else { "wire" });
}

/// Checks `tls.certificate`: only a full handshake before TLS 1.3 shows it.
#[track_caller]
fn check_certificate(tls: &Record, row: Row) {
    if !matches!(row, Row::Tls12Full | Row::Tls12FalseStart) {
        return tls.assert_unknown("tls.certificate");
    }
    tls.assert_is("tls.certificate.not_after", &Certificate::shared().not_after());
    tls.assert_is("tls.certificate.key_type", "ecdsa");
    tls.assert_is("tls.certificate.curve", "secp256r1");
    tls.assert_unknown("tls.certificate.key_bits");
    tls.assert_is("tls.certificate.signature", "ecdsa-with-SHA256");
}

/// Checks `tls.compute_us`. OpenSSL makes a hello that early data follows in a call that sends nothing: if
/// that call slept, it is unknown for how long.
#[track_caller]
fn check_computing(tls: &Record, library: Library, hello_sent_later: bool) {
    let (compute, duration) = (tls.micros("tls.compute_us"), tls.micros("tls.duration_us"));
    assert!(compute < duration, "tls.compute_us is not less than tls.duration_us in {tls}");
    match library {
        Library::Go => tls.assert_unknown("tls.compute_us"),
        // It is unknown how long a call slept for a page fault or for another thread of the program, and what
        // else the thread did if it left the call for another one.
        Library::OpenSslUncertain if compute.is_none() => {}
        Library::OpenSsl if compute.is_none() && hello_sent_later => {}
        // So is how long it slept for the peer, where the kernel has no `sock_send_length`.
        _ if compute.is_none() && is_before_6_3() => {}
        _ => assert!(compute.is_some_and(|compute| !compute.is_zero()), "tls.compute_us in {tls}"),
    }
}

fn is_before_6_3() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map(|number| number.parse::<u32>().unwrap());
    (numbers.next(), numbers.next()) < (Some(6), Some(3))
}

/// Checks `tls.flights`: each is there, and where the link carried it.
#[track_caller]
fn check_flights(tls: &Record, side: Side, truth: &Witness) {
    let Some(flights) = truth.flights(side) else { return };
    // A slow program's packets are each a burst, of which the kernel side keeps so many.
    if tls.get("tls.flights").is_none() && truth.packets > MAX_BURSTS {
        return tls.assert_unknown("tls.stalls");
    }
    let seen = flights_of(tls);
    let order = |flights: &[Flight]| flights.iter().map(|(from, ..)| *from).collect::<Vec<_>>();
    let cross = |pair: &[Flight]| pair[1].1.saturating_sub(pair[0].2) < CROSSING;
    assert_time!(
        order(&seen) == order(flights) || !flights.windows(2).any(cross),
        "segments cross, which makes the flights {flights:?}, in {tls}"
    );
    assert_eq!(order(&seen), order(flights), "the flights {flights:?}, in {tls}");
    for ((_, first, last), (_, true_first, true_last)) in seen.iter().zip(flights) {
        let near = |a: Duration, b: Duration| a.abs_diff(b) <= tolerance(TOLERANCE);
        assert_time!(
            near(*first, *true_first) && near(*last, *true_last),
            "a flight from {first:?} to {last:?}, not from {true_first:?} to {true_last:?}, in {tls}"
        );
    }
}

/// `tls.flights`.
#[track_caller]
pub(crate) fn flights_of(tls: &Record) -> Vec<Flight> {
    let flights = tls.get("tls.flights").and_then(Value::as_array);
    let flight = |flight: &Value| {
        let at = |name: &str| Duration::from_micros(flight[name].as_u64().unwrap());
        let from = if flight["from"] == "client" { Side::Client } else { Side::Server };
        (from, at("first_us"), at("last_us"))
    };
    flights.unwrap_or_else(|| panic!("tls.flights is missing in {tls}")).iter().map(flight).collect()
}

/// All records of an end have one id, and the `close` record repeats the sections of the others.
#[track_caller]
pub(crate) fn check_consistent(ends: &Ends, side: Side) {
    let (open, tls, close) = (ends.open(side), ends.tls(side), ends.close(side));
    assert_eq!([open.id(), close.id()], [tls.id(); 2], "the id differs between records");
    assert_eq!(opening(tls), opening(open), "the `open` section differs between records");
    assert_eq!(tls.get("tls"), close.get("tls"), "the `tls` section differs between records");
    assert_eq!(tls.get("setup"), close.get("setup"), "the `setup` section differs between records");
    open.assert_unknown("tls");
    tls.assert_unknown("close");
}
