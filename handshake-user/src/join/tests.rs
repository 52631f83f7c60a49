use handshake_common::{
    Kind, Library, Role, TlsOutcome,
    tls::{
        library::{
            key::Key,
            session::{Session, SessionFlags},
        },
        wire::{HelloFragment, Wire},
    },
};

use super::build::tests::{Epoch, client, closed_with_unseen_fin};
use super::*;
use crate::event::testing::us;

const RANDOM: [u8; 32] = [7; 32];
/// How long a view of the wire waits: `client()` has a round trip of 50.646 ms.
const WIRE_TIMEOUT_NS: u64 = OPTIONAL_VIEW_TIMEOUT_NS + 50_646_000;
const UNDER_WAY: Key = Key { tgid: 9, ..Key::NONE };

fn handshake(connection: Connection) -> LibraryHandshake {
    let mut session =
        Session { pid: client().pid, object: 0x5000, role: Role::Client.code(), ..Session::default() };
    (session.begun_ns, session.library, session.random) = (1_051_000_000, 1, RANDOM);
    session.end(TlsOutcome::Completed, 1_102_000_000);
    LibraryHandshake { connection, session }
}

fn library(connection: Connection) -> RawRecord<'static> {
    RawRecord::LibraryHandshake(handshake(connection))
}

/// The ClientHello that the wire handshakes begin with, as one record.
fn client_hello() -> Vec<u8> {
    let mut hello = vec![22, 3, 1, 0, 45, 1, 0, 0, 41, 3, 3];
    hello.extend(RANDOM);
    hello.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
    hello
}

fn fragment(bytes: &[u8]) -> RawRecord<'_> {
    let length = bytes.len().try_into().unwrap();
    let fragment = HelloFragment {
        sender: Role::Client.code(),
        number: 5,
        seq: 100,
        length,
        ..HelloFragment::default()
    };
    RawRecord::HelloFragment(fragment, bytes)
}

fn wire(connection: Connection) -> RawRecord<'static> {
    let mut wire = Wire { role: Role::Client.code(), hello_ns: 1_051_100_000, ..Wire::default() };
    (wire.client.hello_count, wire.client.hellos[0]) = (1, 100);
    let connection = Connection { stage: Kind::Wire.code(), wire: WirePhase::Reported as u8, ..connection };
    RawRecord::WireHandshake(WireHandshake { connection, number: 5, hello_in_syn: 0, wire })
}

fn under_way() -> Connection {
    Connection { wire: WirePhase::Handshaking as u8, ..client() }
}

fn events_of(joiner: &mut Joiner, raws: &[RawRecord<'_>], now_ns: u64) -> Vec<ConnectionEvent> {
    let mut events = Vec::new();
    for raw in raws {
        joiner.take(raw, now_ns, &mut Epoch, |event| events.push(event));
    }
    joiner.expire(now_ns, &mut Epoch, |event| events.push(event));
    events
}

fn sources(events: &[ConnectionEvent]) -> Vec<(Stage, Option<TlsSource>)> {
    events.iter().map(|event| (event.stage, event.tls.as_ref().map(|tls| tls.source))).collect()
}

const BOTH: (Stage, Option<TlsSource>) = (Stage::Tls, Some(TlsSource::Both));

#[test]
fn close_event_holds_open_and_tls() {
    let mut joiner = Joiner::new(WireCoverage::None);
    let raws =
        [RawRecord::Connection(client()), library(client()), RawRecord::Connection(closed_with_unseen_fin())];
    let events = events_of(&mut joiner, &raws, 0);
    assert_eq!(
        events.iter().map(|event| event.stage).collect::<Vec<_>>(),
        [Stage::Open, Stage::Tls, Stage::Close]
    );
    assert_eq!(events[2].tls, events[1].tls);
    assert_eq!(events[2].setup, events[1].setup);
    assert!(joiner.reported.is_empty());
}

#[test]
fn close_waits_for_the_handshake_of_its_socket() {
    let mut joiner = Joiner::new(WireCoverage::None);
    let closed = Connection { tls_session: UNDER_WAY, ..closed_with_unseen_fin() };
    assert_eq!(events_of(&mut joiner, &[RawRecord::Connection(closed)], 0), []);
    let events = events_of(&mut joiner, &[library(client())], 1);
    assert_eq!(events.len(), 2);
    assert!(events[1].stage == Stage::Close && events[1].tls.is_some());
    assert_eq!(events_of(&mut joiner, &[RawRecord::Connection(closed)], 2), []);
    assert_eq!(events_of(&mut joiner, &[], 2 + VIEW_TIMEOUT_NS).len(), 1, "but not for ever");
}

#[test]
fn datagrams_are_no_connection() {
    let mut raw = handshake(Connection::default());
    raw.session.flags = SessionFlags::VERSION_READ;
    for version in [0xfeff, 0xfefd, 0xfefc, 0xffff, 0x0100] {
        raw.session.version = version;
        assert_eq!(
            events_of(&mut Joiner::new(WireCoverage::None), &[RawRecord::LibraryHandshake(raw)], u64::MAX),
            [],
            "{version:#x}"
        );
    }
    raw.session.version = 0x0303;
    assert_eq!(
        events_of(&mut Joiner::new(WireCoverage::None), &[RawRecord::LibraryHandshake(raw)], u64::MAX).len(),
        1
    );
}

#[test]
fn handshake_that_may_have_begun_before_the_program_is_not_timed() {
    let old = Connection { flags: ConnectionFlags::PREEXISTING, ..client() };
    let event = |connection, library: Library, wire| {
        let mut raw = handshake(connection);
        raw.session.library = library.code();
        let mut joiner = Joiner::new(wire);
        let events = events_of(&mut joiner, &[RawRecord::LibraryHandshake(raw)], u64::MAX);
        events.into_iter().next().map(|event| event.tls.unwrap().duration.is_some())
    };
    assert_eq!(event(client(), Library::GnuTls, WireCoverage::All), Some(true));
    assert_eq!(event(old, Library::GnuTls, WireCoverage::All), None, "no ClientHello was seen");
    assert_eq!(event(old, Library::GnuTls, WireCoverage::None), Some(false), "nor could it be");
    assert_eq!(event(old, Library::OpenSsl, WireCoverage::All), Some(true), "its own state tells");
    let seen = Connection { wire: WirePhase::Reported as u8, ..old };
    assert_eq!(event(seen, Library::GnuTls, WireCoverage::All), Some(true));
}

#[test]
fn two_views_are_one_record_whichever_comes_first() {
    let hello = client_hello();
    let from_wire = [fragment(&hello), wire(Connection { tls_session: UNDER_WAY, ..client() })];
    for library_first in [true, false] {
        let mut joiner = Joiner::new(WireCoverage::All);
        let library = [library(under_way())];
        let (first, second): (&[RawRecord<'_>], &[RawRecord<'_>]) =
            if library_first { (&library, &from_wire) } else { (&from_wire, &library) };
        assert_eq!(events_of(&mut joiner, first, 0), [], "it waits");
        let events = events_of(&mut joiner, second, 1);
        assert_eq!(sources(&events), [BOTH]);
        assert_eq!(events[0].tls.as_ref().unwrap().start, us(51_100), "the wire's");
        assert_eq!(events[0].process.as_ref().unwrap().pid, client().pid);
        let closing = events_of(&mut joiner, &[RawRecord::Connection(closed_with_unseen_fin())], 2);
        assert_eq!(sources(&closing), [(Stage::Close, Some(TlsSource::Both))]);
        assert_eq!(events_of(&mut joiner, &[], u64::MAX), []);
    }
}

#[test]
fn a_library_without_a_socket_is_found_by_its_client_hello() {
    let hello = client_hello();
    let from_wire = [fragment(&hello), wire(client())];
    for library_first in [true, false] {
        let mut joiner = Joiner::new(WireCoverage::All);
        let library = [library(Connection::default())];
        let (first, second): (&[RawRecord<'_>], &[RawRecord<'_>]) =
            if library_first { (&library, &from_wire) } else { (&from_wire, &library) };
        assert_eq!(events_of(&mut joiner, first, 0), []);
        let events = events_of(&mut joiner, second, OPTIONAL_VIEW_TIMEOUT_NS - 1);
        assert_eq!(sources(&events), [BOTH]);
        assert!(events[0].local.is_some());
        assert_eq!(events[0].id, "1007".into());
    }
}

/// socat relays what another process sends through a Unix socket.
#[test]
fn a_library_without_a_socket_is_not_that_of_another_process_that_dials() {
    let hello = client_hello();
    let from_wire = [fragment(&hello), wire(client())];
    let mut other = handshake(Connection::default());
    other.session.pid = client().pid + 1;
    let library = [RawRecord::LibraryHandshake(other)];
    let orders: [[&[RawRecord<'_>]; 3]; 3] = [
        [&library, &from_wire, &[]],
        [&from_wire, &library, &[]],
        [&from_wire[..1], &library, &from_wire[1..]],
    ];
    for order in orders {
        let mut joiner = Joiner::new(WireCoverage::All);
        let mut events = Vec::new();
        for raws in order {
            events.extend(events_of(&mut joiner, raws, 0));
        }
        events.extend(events_of(&mut joiner, &[], WIRE_TIMEOUT_NS));
        let mut sources = sources(&events);
        sources.sort();
        assert_eq!(sources, [(Stage::Tls, Some(TlsSource::Library)), (Stage::Tls, Some(TlsSource::Wire))]);
        let relayed = events.iter().find(|event| event.local.is_some()).unwrap();
        assert_eq!(relayed.tls.as_ref().unwrap().library, None);
    }
    // Told by the wire already: another process is no late report of it.
    let mut joiner = Joiner::new(WireCoverage::All);
    assert_eq!(events_of(&mut joiner, &from_wire, 0), []);
    assert_eq!(events_of(&mut joiner, &[], WIRE_TIMEOUT_NS).len(), 1);
    events_of(&mut joiner, &library, WIRE_TIMEOUT_NS);
    assert_eq!(events_of(&mut joiner, &[], u64::MAX).len(), 1);
}

/// The server answers the client's Finished with a record of the length of an alert.
#[test]
fn a_handshake_that_the_server_may_have_refused_has_no_certain_outcome() {
    let finished = |doubted| {
        let RawRecord::WireHandshake(mut raw) = wire(client()) else { unreachable!() };
        raw.wire.doubted = doubted;
        raw.wire.ending = handshake_common::tls::wire::Ending::Closed as u8;
        RawRecord::WireHandshake(raw)
    };
    let outcome = |event: &ConnectionEvent| event.tls.as_ref().unwrap().outcome;
    let seen = Some(TlsOutcome::Abandoned);
    // The answer comes within a round trip, for which the record waits.
    let mut joiner = Joiner::new(WireCoverage::All);
    assert_eq!(events_of(&mut joiner, &[finished(0)], 0), []);
    let in_time = OPTIONAL_VIEW_TIMEOUT_NS + open::rtt_us(&client()).unwrap() * 1000 - 1;
    assert_eq!(events_of(&mut joiner, &[finished(1)], in_time), []);
    let told = events_of(&mut joiner, &[], in_time + 1);
    assert_eq!((told.len(), outcome(&told[0])), (1, None));
    // Or late, and then the close record knows better.
    let mut joiner = Joiner::new(WireCoverage::All);
    events_of(&mut joiner, &[finished(0)], 0);
    let told = events_of(&mut joiner, &[], VIEW_TIMEOUT_NS);
    assert_eq!((told.len(), outcome(&told[0])), (1, seen));
    assert_eq!(events_of(&mut joiner, &[finished(1)], VIEW_TIMEOUT_NS), []);
    let closed = events_of(&mut joiner, &[RawRecord::Connection(closed_with_unseen_fin())], VIEW_TIMEOUT_NS);
    assert_eq!((closed.len(), outcome(&closed[0])), (1, None));
}

#[test]
fn the_two_ends_of_one_handshake_on_one_host_stay_apart() {
    let mut joiner = Joiner::new(WireCoverage::All);
    let mut server = handshake(Connection::default());
    server.session.role = Role::Server.code();
    let hello = client_hello();
    let raws = [RawRecord::LibraryHandshake(server), fragment(&hello), wire(client())];
    assert_eq!(events_of(&mut joiner, &raws, 0), []);
    let events = events_of(&mut joiner, &[], WIRE_TIMEOUT_NS);
    let mut sources = sources(&events);
    sources.sort_by_key(|(_, source)| *source);
    assert_eq!(sources, [(Stage::Tls, Some(TlsSource::Library)), (Stage::Tls, Some(TlsSource::Wire))]);
}

#[test]
fn a_library_without_a_socket_that_is_late_tells_nothing_new() {
    let hello = client_hello();
    let mut joiner = Joiner::new(WireCoverage::All);
    assert_eq!(events_of(&mut joiner, &[fragment(&hello), wire(client())], 0), []);
    let events = events_of(&mut joiner, &[], WIRE_TIMEOUT_NS);
    assert_eq!(sources(&events), [(Stage::Tls, Some(TlsSource::Wire))]);
    let mut late = handshake(Connection::default());
    assert_eq!(events_of(&mut joiner, &[RawRecord::LibraryHandshake(late)], WIRE_TIMEOUT_NS + 1), []);
    assert_eq!(events_of(&mut joiner, &[], u64::MAX), []);
    // The other end of it may be on this host too.
    late.session.role = Role::Server.code();
    assert_eq!(events_of(&mut joiner, &[RawRecord::LibraryHandshake(late)], 0), []);
    assert_eq!(events_of(&mut joiner, &[], u64::MAX).len(), 1);
}

#[test]
fn two_connections_with_one_client_hello_are_two() {
    let hello = client_hello();
    let mut joiner = Joiner::new(WireCoverage::All);
    let other = |connection: Connection| Connection { id: connection.id + 1, ..connection };
    let raws = [fragment(&hello), wire(client()), fragment(&hello), wire(other(client()))];
    assert_eq!(events_of(&mut joiner, &raws, 0), []);
    // Which of them it is, the ClientHello does not say.
    let mut all = events_of(&mut joiner, &[library(Connection::default())], 1);
    let closed = closed_with_unseen_fin();
    all.extend(events_of(
        &mut joiner,
        &[RawRecord::Connection(closed), RawRecord::Connection(other(closed))],
        2,
    ));
    all.extend(events_of(&mut joiner, &[], u64::MAX));
    let wire = Some(TlsSource::Wire);
    let mut sources = sources(&all);
    sources.sort();
    let alone = (Stage::Tls, Some(TlsSource::Library));
    assert_eq!(
        sources,
        [(Stage::Close, wire), (Stage::Close, wire), alone, (Stage::Tls, wire), (Stage::Tls, wire)]
    );
}

#[test]
fn a_view_that_stays_alone_is_told_when_its_time_is_over() {
    let mut joiner = Joiner::new(WireCoverage::All);
    assert_eq!(events_of(&mut joiner, &[wire(client())], 0), []);
    assert_eq!(events_of(&mut joiner, &[], WIRE_TIMEOUT_NS - 1), []);
    assert_eq!(sources(&events_of(&mut joiner, &[], WIRE_TIMEOUT_NS)), [(Stage::Tls, Some(TlsSource::Wire))]);
    assert_eq!(
        events_of(&mut joiner, &[library(client())], WIRE_TIMEOUT_NS + 1),
        [],
        "too late: it was told"
    );

    let mut joiner = Joiner::new(WireCoverage::All);
    assert_eq!(events_of(&mut joiner, &[library(under_way())], 0), []);
    assert_eq!(
        sources(&events_of(&mut joiner, &[], VIEW_TIMEOUT_NS)),
        [(Stage::Tls, Some(TlsSource::Library))]
    );
    assert_eq!(events_of(&mut joiner, &[wire(client())], VIEW_TIMEOUT_NS + 1), [], "too late: it was told");
}

#[test]
fn a_closing_does_not_overtake_its_handshake() {
    let mut joiner = Joiner::new(WireCoverage::All);
    let closed = Connection { wire: WirePhase::Reported as u8, ..closed_with_unseen_fin() };
    assert_eq!(events_of(&mut joiner, &[wire(client()), RawRecord::Connection(closed)], 0), []);
    let events = events_of(&mut joiner, &[], OPTIONAL_VIEW_TIMEOUT_NS);
    assert_eq!(
        sources(&events),
        [(Stage::Tls, Some(TlsSource::Wire)), (Stage::Close, Some(TlsSource::Wire))]
    );

    // The wire has nothing to tell any more.
    let mut joiner = Joiner::new(WireCoverage::All);
    let events =
        events_of(&mut joiner, &[library(under_way()), RawRecord::Connection(closed_with_unseen_fin())], 0);
    assert_eq!(
        sources(&events),
        [(Stage::Tls, Some(TlsSource::Library)), (Stage::Close, Some(TlsSource::Library))]
    );
}

#[test]
fn a_handshake_without_a_socket_stands_alone() {
    let mut joiner = Joiner::new(WireCoverage::None);
    let [event] = &events_of(&mut joiner, &[library(Connection::default())], 0)[..] else { panic!() };
    assert!(event.local.is_none() && event.setup.is_none());
    assert_eq!(event.process.as_ref().unwrap().pid, client().pid);
    assert!(event.id.to_string().starts_with("tls-") && event.id != "tls-0".into());
    assert!(joiner.reported.is_empty());
}

#[test]
fn only_who_sees_all_can_say_that_there_was_no_tls() {
    let lost = Connection { wire: WirePhase::Reported as u8, ..closed_with_unseen_fin() };
    let unsure = Connection { wire: WirePhase::Unsure as u8, ..closed_with_unseen_fin() };
    for (sight, closed, expected) in [
        (WireCoverage::All, closed_with_unseen_fin(), Some(1)),
        (WireCoverage::All, lost, None),
        (WireCoverage::All, unsure, None),
        (WireCoverage::Some, closed_with_unseen_fin(), None),
        (WireCoverage::None, closed_with_unseen_fin(), None),
    ] {
        let events = events_of(&mut Joiner::new(sight), &[RawRecord::Connection(closed)], 0);
        assert_eq!(events[0].setup.and_then(|setup| setup.round_trips), expected, "{sight:?}");
    }
}

#[test]
fn memory_is_bounded_and_what_is_evicted_is_counted() {
    let mut joiner = Joiner::new(WireCoverage::None);
    let most = MAX_REPORTED as u64;
    for id in 1..=most + 10 {
        joiner.take(&library(Connection { id, ..client() }), 0, &mut Epoch, |_| ());
    }
    assert_eq!(joiner.reported.len(), MAX_REPORTED);
    assert_eq!(joiner.evicted(), 10);
    for id in 1..=most * 2 {
        let closed = Connection { id, ..closed_with_unseen_fin() };
        joiner.take(&library(Connection { id, ..client() }), 0, &mut Epoch, |_| ());
        joiner.take(&RawRecord::Connection(closed), 0, &mut Epoch, |_| ());
    }
}
