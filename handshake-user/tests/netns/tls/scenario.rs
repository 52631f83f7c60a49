//! Two programs, one or more connections, and the check of what was said about each of them.

use std::time::Duration;

use super::{
    programs::{Account, Library, Peers, server_address},
    row::Row,
    settings::Settings,
    witness::Witness,
};
use crate::{
    case::{Case, Ends, Expect, RTT, ms, pause},
    record::Record,
    testbed::{
        capture::Connection,
        packet::{Packet, Side},
    },
};

/// How far a time may be from the link's, for what programs and a busy machine do between a packet and its
/// handling.
pub(crate) const TOLERANCE: Duration = Duration::from_millis(10);
/// No longer than this do both ends together compute in a handshake: Java compiles its own code meanwhile.
const COMPUTING: Duration = Duration::from_secs(2);

/// One connection that was made, and what must have happened.
pub(crate) struct Made {
    pub(crate) row: Row,
    pub(crate) account: Account,
}

/// Both programs meet so often as there are rows, and each meeting goes as its row says.
#[track_caller]
pub(crate) fn meet(peers: &Peers, settings: Settings, rows: &[Row]) {
    let case = Case::new();
    let address = server_address(&case.bed);
    let _server = (peers.server)(&case.bed, address, settings);
    let mut client = (peers.client)(&case.bed, address, settings);
    let accounts = client.connect(rows.len());
    check(&case, peers, made(rows, accounts));
}

/// The same where the server of the last meeting is started anew, with other settings.
#[track_caller]
pub(crate) fn meet_and_restart(peers: &Peers, before: Settings, after: Settings, rows: &[Row]) {
    let case = Case::new();
    let address = server_address(&case.bed);
    let server = (peers.server)(&case.bed, address, before);
    let mut client = (peers.client)(&case.bed, address, before);
    let mut accounts = client.connect(rows.len() - 1);
    // What is under way would be reset.
    case.bed.wait_until_quiet();
    drop(server);
    let _server = (peers.server)(&case.bed, address, after);
    accounts.extend(client.connect(1));
    check(&case, peers, made(rows, accounts));
}

pub(crate) fn made(rows: &[Row], accounts: Vec<Account>) -> Vec<Made> {
    rows.iter().zip(accounts).map(|(&row, account)| Made { row, account }).collect()
}

/// Until that side has sent something on so many connections.
#[track_caller]
pub(crate) fn await_data_of(case: &Case, side: Side, count: usize) {
    for _ in 0..1000 {
        let capture = case.bed.capture();
        let connections = capture.connections().into_iter();
        if connections.filter(|&connection| capture.of(connection).count(side, Packet::has_data) > 0).count()
            == count
        {
            return;
        }
        pause(10);
    }
    panic!("the {side:?} has not sent anything on {count} connections");
}

/// Checks every connection of this bed, oldest first. What was seen of the last one, and said.
#[track_caller]
pub(crate) fn check(case: &Case, peers: &Peers, made: Vec<Made>) -> (Witness, Ends) {
    case.bed.wait_until_quiet();
    let connections = case.bed.capture().connections();
    assert_eq!(connections.len(), made.len(), "connections on the link; the client says {:?}", {
        made.iter().map(|made| &made.account).collect::<Vec<_>>()
    });
    let mut last = None;
    for (connection, made) in connections.into_iter().zip(made) {
        assert_eq!(made.account.failure, None, "the client's own words");
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

/// What the link saw, which must be what the scenario is meant to be.
#[track_caller]
fn witness(case: &Case, connection: Connection, made: &Made) -> Witness {
    let witness = Witness::of(&case.bed.capture().of(connection));
    assert_eq!(witness.row, made.row, "the way that the handshake went on the link");
    let setup = witness.row.setup_round_trips(witness.hello_in_syn);
    for (what, actual, round_trips, duration) in [
        ("client", witness.client.round_trips, made.row.client_round_trips(), witness.client.duration),
        ("server", witness.server.round_trips, made.row.server_round_trips(), witness.server.duration),
        ("setup", setup, setup, witness.setup),
    ] {
        assert_eq!(actual, round_trips, "round trips of the {what}");
        let least = RTT * round_trips;
        assert_time!(
            least <= duration + ms(1) && duration <= least + COMPUTING,
            "{what}: {duration:?} for {round_trips} round trips"
        );
    }
    if let Some(taken) = made.account.taken.filter(|_| made.row != Row::Tls12FalseStart) {
        let truth = witness.client.duration;
        assert_time!(taken + TOLERANCE >= truth, "{taken:?} by the client's own clock, not {truth:?}");
    }
    witness
}

/// A time is the link's. But GnuTLS does not ask for its Finished to be sent at once: TCP may hold it until the server has
/// acknowledged what came before (Nagle), and meanwhile the client's handshake is complete.
#[track_caller]
fn assert_time(
    tls: &Record,
    path: &str,
    truth: Duration,
    round_trips: u32,
    side: Side,
    library: Option<Library>,
) {
    if side == Side::Client && library == Some(Library::GnuTls) {
        let told = tls.micros(path).unwrap_or_else(|| panic!("{path} is missing in {tls}"));
        let range = RTT * round_trips..=truth + TOLERANCE;
        assert_time!(range.contains(&told), "{path} is {told:?}, not within {range:?}, in {tls}");
    } else {
        tls.assert_within(path, truth, TOLERANCE);
    }
}

/// What the tracer says of a handshake that was completed.
#[track_caller]
fn check_end(ends: &Ends, side: Side, library: Option<Library>, truth: &Witness) {
    let row = truth.row;
    let tls = ends.tls(side);
    let handshake = truth.handshake(side);
    tls.assert_is("tls.outcome", "completed");
    tls.assert_is("tls.version", row.version());
    tls.assert_is("tls.class", row.class());
    tls.assert_count("tls.round_trips", usize::try_from(handshake.round_trips).unwrap());
    assert_time(tls, "tls.duration_us", handshake.duration, handshake.round_trips, side, library);
    tls.assert_unknown("tls.alert");
    if let Some(library) = library {
        tls.assert_is("tls.library", library.name());
        check_computing(tls, library, side == Side::Client && row.offers_early_data());
    } else {
        tls.assert_unknown("tls.library");
        tls.assert_unknown("tls.compute_us");
    }
    tls.assert_count(
        "setup.round_trips",
        usize::try_from(row.setup_round_trips(truth.hello_in_syn)).unwrap(),
    );
    let (setup, rtt) = (tls.number("setup.duration_us"), tls.number("open.rtt_us"));
    match side {
        Side::Client => {
            let round_trips = row.setup_round_trips(truth.hello_in_syn);
            assert_time(tls, "setup.duration_us", truth.setup, round_trips, side, library);
        }
        // It sees half of the way only, and may not know.
        Side::Server => tls.assert_within_or_unknown("setup.duration_us", truth.setup, TOLERANCE),
    }
    if let (Some(setup), Some(rtt), Some(excess)) = (setup, rtt, tls.get("setup.excess_us")) {
        let explained = i64::try_from(rtt).unwrap() * i64::from(row.setup_round_trips(truth.hello_in_syn));
        assert_eq!(
            excess.as_i64(),
            Some(i64::try_from(setup).unwrap() - explained),
            "setup.excess_us in {tls}"
        );
    }
    check_story(ends, side);
    tls.assert_is("tls.source", if library.is_some() { "both" } else { "wire" });
}

/// The time that the library computed. OpenSSL makes a hello with early data behind it in a call that sends nothing: if that
/// slept, nothing tells for how long.
#[track_caller]
fn check_computing(tls: &Record, library: Library, hello_is_sent_later: bool) {
    let (compute, duration) = (tls.micros("tls.compute_us"), tls.micros("tls.duration_us"));
    assert!(compute < duration, "more computing than time in {tls}");
    match library {
        Library::Go => tls.assert_unknown("tls.compute_us"),
        // A call that slept, for a page of a certificate's file or a thread of the program's, does not say how long; nor does one that
        // was left for another.
        Library::OpenSslInDoubt if compute.is_none() => {}
        Library::OpenSsl if compute.is_none() && hello_is_sent_later => {}
        _ => assert!(compute.is_some_and(|compute| !compute.is_zero()), "tls.compute_us in {tls}"),
    }
}

/// One connection, one id; and the closing record repeats what was said of the handshake.
#[track_caller]
pub(crate) fn check_story(ends: &Ends, side: Side) {
    let (open, tls, close) = (ends.open(side), ends.tls(side), ends.close(side));
    assert_eq!([open.id(), close.id()], [tls.id(); 2], "one connection, one id");
    assert_eq!(tls.get("open"), open.get("open"), "the opening, told twice");
    assert_eq!(tls.get("tls"), close.get("tls"), "the handshake, told twice");
    assert_eq!(tls.get("setup"), close.get("setup"), "the setup, told twice");
    open.assert_unknown("tls");
    tls.assert_unknown("close");
}
