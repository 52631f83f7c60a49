//! Closings whose rest is told by looks at minisockets that these tests make up.

use handshake_common::{Initiator, Kind, Stage, tcp::minisocket::A_SEGMENT};

use super::*;
use crate::join::build::tests::{client, closed_with_unseen_fin};

const MS: u64 = 1_000_000;
const S: u64 = 1000 * MS;
const TICK: u64 = 4 * MS;

/// What was told, without the connection.
type Told = (Connection, TimeWait);

/// A ledger that knows its clock: jiffy 0 was at 0.
fn waits() -> TimeWaits {
    let mut waits = TimeWaits::new(TICK, true);
    waits.clock.observe(0, 0);
    waits
}

/// Closed at 2.05 s, in FIN_WAIT2.
fn late() -> Connection {
    closed_with_unseen_fin()
}

/// The same connection, closed by the FIN that came to its socket.
fn in_time() -> Connection {
    let mut raw = late();
    raw.flags.remove(ConnectionFlags::PEER_FIN_UNSEEN);
    (raw.peer_fin_ns, raw.closed_ns) = (3 * S, 3 * S);
    raw
}

/// Its minisocket in TIME_WAIT, whose timer was set at this moment, seen at that one.
fn minisocket(raw: &Connection, set_ns: u64, now_ns: u64) -> Minisocket {
    let expires = set_ns / TICK + 15_000;
    Minisocket {
        now_ns,
        jiffies: now_ns / TICK,
        expires,
        timer_flags: slot(expires),
        cookie: raw.id,
        local: raw.local,
        remote: raw.remote,
        local_port: raw.local_port,
        remote_port: raw.remote_port,
        family: raw.family,
        substate: 6,
        ..Minisocket::default()
    }
}

/// The slot of a timer that was set for a minute: level 3, of 512 jiffies each.
fn slot(expires: u64) -> u32 {
    u32::try_from(3 * 64 + ((expires >> 9) + 1) % 64).unwrap() << 22
}

/// When such a timer fires.
fn fires_ns(set_ns: u64) -> u64 {
    (((set_ns / TICK + 15_000) >> 9) + 1) * 512 * TICK
}

fn fin_wait2(raw: &Connection, set_ns: u64, now_ns: u64) -> Minisocket {
    Minisocket { substate: 5, ..minisocket(raw, set_ns, now_ns) }
}

fn look(raw: &Connection, began_ns: u64, minisockets: Vec<Minisocket>) -> Look {
    let namespace = NamespaceLook { began_ns, minisockets, is_cut: false, overflows: Some(0) };
    Look { namespaces: HashMap::from([(raw.netns, namespace)]), ..Look::default() }
}

fn looked(waits: &mut TimeWaits, look: &Look, now_ns: u64) -> Vec<Told> {
    let mut told = Vec::new();
    waits.looked(look, now_ns, &mut |news| told.push((*news.connection, news.time_wait)));
    told
}

fn hooked(
    waits: &mut TimeWaits,
    raw: &Connection,
    step: MinisocketStep,
    segment: u16,
    tw: Minisocket,
) -> Vec<Told> {
    let news = MinisocketNews {
        kind: Kind::Minisocket.code(),
        step: step.code(),
        segment,
        netns: raw.netns,
        minisocket: tw,
    };
    let mut told = Vec::new();
    waits.hooked(&news, &mut |news| told.push((*news.connection, news.time_wait)));
    told
}

fn opened(waits: &mut TimeWaits, raw: &Connection) -> Vec<Told> {
    let mut told = Vec::new();
    waits.opened(raw, &mut |news| told.push((*news.connection, news.time_wait)));
    told
}

fn ends(told: &[Told]) -> Vec<Option<TimeWaitEnd>> {
    told.iter().map(|(_, time_wait)| time_wait.end).collect()
}

#[test]
fn nothing_is_looked_at_while_nothing_is_owed() {
    let mut waits = waits();
    assert_eq!(waits.wanted(u64::MAX), None);
    let mut passive = in_time();
    passive.flags = ConnectionFlags::ACKED_BEFORE_CLOSE;
    waits.closed(&passive, 3 * S);
    let mut reset = late();
    reset.flags.insert(ConnectionFlags::RESET_RECEIVED);
    waits.closed(&reset, 3 * S);
    assert_eq!(waits.wanted(u64::MAX), None);
}

#[test]
fn looks_are_ten_seconds_apart_and_end_with_what_is_owed() {
    let (mut waits, raw) = (waits(), late());
    waits.closed(&raw, 3 * S);
    assert_eq!(waits.wanted(4 * S), None);
    assert_eq!(waits.wanted(5 * S), Some(vec![Wanted { netns: raw.netns, pid: raw.pid }]));
    assert_eq!(waits.wanted(u64::MAX), None, "one is under way");
    looked(&mut waits, &look(&raw, 5 * S, vec![minisocket(&raw, 3 * S, 5 * S)]), 5 * S);
    assert_eq!(waits.wanted(14 * S), None);
    assert!(waits.wanted(15 * S).is_some());
    looked(&mut waits, &look(&raw, 70 * S, vec![]), 70 * S);
    assert_eq!(waits.wanted(u64::MAX), None);
    // The next one comes soon after: the interval holds.
    waits.closed(&raw, 71 * S);
    assert_eq!(waits.wanted(79 * S), None);
    assert!(waits.wanted(80 * S).is_some());
}

#[test]
fn late_fin_is_told_once_and_then_the_end() {
    let (mut waits, raw) = (waits(), late());
    waits.closed(&raw, 3 * S);
    let told = looked(&mut waits, &look(&raw, 5 * S, vec![fin_wait2(&raw, 2 * S, 5 * S)]), 5 * S);
    assert_eq!(told, []);
    let seen = Minisocket { entry_stamp_ms: 7_123, ..minisocket(&raw, 7_123 * MS, 15 * S) };
    let told = looked(&mut waits, &look(&raw, 15 * S, vec![seen]), 15 * S);
    let [(connection, time_wait)] = told[..] else { panic!("{told:?}") };
    assert_eq!((connection.peer_fin_ns, time_wait.end), (7_123 * MS + MS / 2, None));
    assert_eq!(time_wait.grain_ns, MS);
    assert_eq!(close::app_wait_us(&connection), Some(7_123_500 - 2_050_000));
    let told = looked(&mut waits, &look(&raw, 25 * S, vec![seen]), 25 * S);
    assert_eq!(told, [], "told already");
    let told = looked(&mut waits, &look(&raw, 75 * S, vec![]), 75 * S);
    assert_eq!(ends(&told), [Some(TimeWaitEnd::RanOut)]);
    let fires = fires_ns(7_123 * MS);
    assert_eq!(told[0].1.duration_ns, Some(fires - 7_123 * MS - MS / 2));
    assert_eq!((told[0].1.at_ns, told[0].1.grain_ns), (fires, MS + TICK));
    assert_eq!(waits.unknown(), 0);
}

#[test]
fn sighting_without_a_fin_makes_the_next_one_fine() {
    let (mut waits, raw) = (waits(), late());
    waits.closed(&raw, 3 * S);
    looked(&mut waits, &look(&raw, 5 * S, vec![fin_wait2(&raw, 2 * S, 5 * S)]), 5 * S);
    // No time stamps; the FIN came a jiffy after the look.
    let told = looked(&mut waits, &look(&raw, 15 * S, vec![minisocket(&raw, 5 * S + TICK, 15 * S)]), 15 * S);
    assert_eq!(told[0].1.grain_ns, TICK);
    assert_eq!(told[0].0.peer_fin_ns, 5 * S + TICK + TICK / 2);
}

#[test]
fn fin_that_never_comes_is_told_when_the_wait_is_over() {
    let (mut waits, raw) = (waits(), late());
    waits.closed(&raw, 3 * S);
    looked(&mut waits, &look(&raw, 55 * S, vec![fin_wait2(&raw, 2 * S, 55 * S)]), 55 * S);
    let told = looked(&mut waits, &look(&raw, 65 * S, vec![]), 65 * S);
    assert_eq!(ends(&told), [Some(TimeWaitEnd::NoFin)]);
    assert_eq!(told[0].1.duration_ns, None);
}

#[test]
fn end_before_its_time_is_a_reset_only_where_nothing_else_can_be() {
    let gone = |raw: &Connection, lost: u64| {
        let mut waits = waits();
        waits.closed(raw, 3 * S);
        looked(&mut waits, &look(raw, 5 * S, vec![minisocket(raw, 3 * S, 5 * S)]), 5 * S);
        let told = looked(&mut waits, &Look { lost, ..look(raw, 15 * S, vec![]) }, 15 * S);
        (ends(&told), waits.unknown())
    };
    assert_eq!(gone(&in_time(), 0), (vec![Some(TimeWaitEnd::Reset)], 0));
    assert_eq!(gone(&in_time(), 1), (vec![], 1), "a record was lost: perhaps the ends were reused");
    let server = Connection { role: Role::Server.code(), ..in_time() };
    assert_eq!(gone(&server, 0), (vec![], 1), "a SYN ends it, too");
}

#[test]
fn minisocket_that_was_never_made_is_cut_off() {
    let cut_off = |overflows: Option<u64>, before: Option<u64>| {
        let (mut waits, raw) = (waits(), in_time());
        if let Some(before) = before {
            waits.overflows.insert(raw.netns, before);
        }
        waits.closed(&raw, 3 * S);
        let mut look = look(&raw, 5 * S, vec![]);
        look.namespaces.get_mut(&raw.netns).unwrap().overflows = overflows;
        ends(&looked(&mut waits, &look, 5 * S))
    };
    assert_eq!(cut_off(Some(8), Some(7)), [Some(TimeWaitEnd::CutOff)]);
    assert_eq!(cut_off(Some(7), Some(7)), [Some(TimeWaitEnd::Reset)]);
    assert_eq!(cut_off(Some(0), None), [Some(TimeWaitEnd::Reset)], "none since the boot");
    assert_eq!(cut_off(Some(7), None), [], "they may be from before");
    assert_eq!(cut_off(None, Some(7)), []);
}

#[test]
fn new_connection_on_the_same_ends_is_named() {
    let (mut waits, raw) = (waits(), in_time());
    waits.closed(&raw, 3 * S);
    let other = Connection { remote_port: 444, ..client() };
    assert_eq!(opened(&mut waits, &other), []);
    let next = Connection { id: 0x2000, syn_ns: 5 * S, open_ns: 6 * S, ..client() };
    let told = opened(&mut waits, &next);
    assert_eq!(ends(&told), [Some(TimeWaitEnd::Reused)]);
    assert_eq!((told[0].1.duration_ns, told[0].1.reused_by), (Some(2 * S), Some((0x2000, 0))));
    assert_eq!(told[0].1.grain_ns, 0);
    assert_eq!(opened(&mut waits, &next), [], "it is over");
}

#[test]
fn server_takes_the_ends_at_its_first_syn_ack_where_that_is_known() {
    let server = |raw: Connection| Connection { role: Role::Server.code(), ..raw };
    let lasted = |next: Connection| {
        let mut waits = waits();
        waits.closed(&server(in_time()), 3 * S);
        let told = opened(&mut waits, &next);
        (ends(&told), told[0].1.duration_ns)
    };
    let next = server(Connection { id: 0x2000, open_ns: 6 * S, syn_ns: 0, ..client() });
    assert_eq!(lasted(next), (vec![Some(TimeWaitEnd::Reused)], Some(3 * S - 50_646_000)));
    let unsure = Connection { srtt_us: 0, ..next };
    assert_eq!(lasted(unsure), (vec![Some(TimeWaitEnd::Reused)], None));
}

#[test]
fn ends_that_are_used_after_its_time_were_free() {
    let (mut waits, raw) = (waits(), in_time());
    waits.closed(&raw, 3 * S);
    looked(&mut waits, &look(&raw, 5 * S, vec![minisocket(&raw, 3 * S, 5 * S)]), 5 * S);
    let next = Connection { id: 0x2000, syn_ns: 66 * S, open_ns: 67 * S, ..client() };
    assert_eq!(ends(&opened(&mut waits, &next)), [Some(TimeWaitEnd::RanOut)]);
}

#[test]
fn minisocket_of_another_cookie_is_another_connection() {
    let (mut waits, raw) = (waits(), in_time());
    waits.closed(&raw, 3 * S);
    let other = Minisocket { cookie: 0x2000, ..minisocket(&raw, 4 * S, 5 * S) };
    let told = looked(&mut waits, &look(&raw, 5 * S, vec![other]), 5 * S);
    assert_eq!(ends(&told), [Some(TimeWaitEnd::Reset)], "its ends are free for another");
    let mut unnamed = TimeWaits::new(TICK, false);
    unnamed.closed(&raw, 3 * S);
    assert_eq!(looked(&mut unnamed, &look(&raw, 5 * S, vec![other]), 5 * S), [], "ids are not cookies");
    assert_eq!(unnamed.owed.len(), 1);
}

#[test]
fn closing_during_the_look_waits_for_the_next() {
    let (mut waits, raw) = (waits(), in_time());
    waits.closed(&raw, 3 * S);
    assert_eq!(looked(&mut waits, &look(&raw, 3 * S, vec![]), 4 * S), []);
    assert_eq!(waits.owed.len(), 1);
}

#[test]
fn namespace_that_cannot_be_looked_into_is_forgotten_in_the_end() {
    let (mut waits, raw) = (waits(), in_time());
    waits.closed(&raw, 3 * S);
    looked(&mut waits, &Look::default(), 100 * S);
    assert_eq!((waits.owed.len(), waits.unknown()), (1, 0));
    looked(&mut waits, &Look::default(), 190 * S);
    assert_eq!((waits.owed.len(), waits.unknown()), (0, 1));
}

#[test]
fn number_of_connections_is_bounded() {
    let mut waits = waits();
    for number in 0..u32::try_from(MAX_OWED).unwrap() + 5 {
        let mut raw = in_time();
        raw.id = u64::from(number);
        raw.remote[..4].copy_from_slice(&number.to_be_bytes());
        waits.closed(&raw, 3 * S);
    }
    assert_eq!((waits.owed.len(), waits.refused()), (MAX_OWED, 5));
}

#[test]
fn simultaneous_close_enters_with_the_ack_of_its_fin() {
    let (mut waits, mut raw) = (waits(), in_time());
    raw.flags = ConnectionFlags::ESTABLISHED.union(ConnectionFlags::CLOSING);
    (raw.initiator, raw.stage) = (Initiator::Both.code(), Stage::Close.code());
    (raw.peer_fin_ns, raw.fin_acked_ns) = (2_900 * MS, 3 * S);
    waits.closed(&raw, 3 * S);
    let next = Connection { id: 0x2000, syn_ns: 5 * S, ..client() };
    assert_eq!(opened(&mut waits, &next)[0].1.duration_ns, Some(2 * S));
}

#[test]
fn hooks_tell_fin_and_end_to_the_nanosecond() {
    let (mut waits, raw) = (waits(), late());
    waits.closed(&raw, 3 * S);
    let came = 7_123_456_789;
    let told = hooked(&mut waits, &raw, MinisocketStep::Fin, 0, minisocket(&raw, 2 * S, came));
    assert_eq!((told[0].0.peer_fin_ns, told[0].1.grain_ns, told[0].1.end), (came, 0, None));
    assert_eq!(hooked(&mut waits, &raw, MinisocketStep::Fin, 0, minisocket(&raw, 8 * S, 9 * S)), []);
    let seen = Minisocket { entry_stamp_ms: 7_123, ..minisocket(&raw, 7_123 * MS, 15 * S) };
    assert_eq!(looked(&mut waits, &look(&raw, 15 * S, vec![seen]), 15 * S), [], "told already");
    let fires = fires_ns(7_123 * MS);
    let end = minisocket(&raw, 7_123 * MS, fires + 100);
    let told = hooked(&mut waits, &raw, MinisocketStep::End, 0, end);
    assert_eq!(ends(&told), [Some(TimeWaitEnd::RanOut)]);
    assert_eq!((told[0].1.duration_ns, told[0].1.grain_ns), (Some(fires + 100 - came), 0));
    assert!(waits.owed.is_empty() && waits.wanted(u64::MAX).is_none());
}

#[test]
fn hooks_tell_why_it_ended_before_its_time() {
    let ended = |raw: &Connection, segment: u16, tw: Minisocket| {
        let mut waits = waits();
        waits.closed(raw, 3 * S);
        let told = hooked(&mut waits, raw, MinisocketStep::End, segment, tw);
        (ends(&told), told.first().and_then(|told| told.1.duration_ns))
    };
    let raw = in_time();
    let server = Connection { role: Role::Server.code(), ..raw };
    let tw = minisocket(&raw, 3 * S, 5 * S);
    assert_eq!(ended(&raw, A_SEGMENT | RST, tw), (vec![Some(TimeWaitEnd::Reset)], Some(2 * S)));
    assert_eq!(ended(&server, A_SEGMENT | RST, tw), (vec![Some(TimeWaitEnd::Reset)], Some(2 * S)));
    assert_eq!(ended(&raw, 0, tw), (vec![], None), "a connection may tell");
    assert_eq!(ended(&raw, A_SEGMENT, tw), (vec![], None), "a late ACK is not why");
    // Data, and a SYN, while the peer's FIN is awaited: they are answered with a RST.
    let late = late();
    let waiting = fin_wait2(&late, 2 * S, 5 * S);
    assert_eq!(ended(&late, A_SEGMENT, waiting), (vec![Some(TimeWaitEnd::Reset)], None));
    assert_eq!(ended(&late, A_SEGMENT | SYN, waiting), (vec![Some(TimeWaitEnd::Reset)], None));
    let over = fin_wait2(&late, 2 * S, fires_ns(2 * S));
    assert_eq!(ended(&late, 0, over), (vec![Some(TimeWaitEnd::NoFin)], None));
}

/// Its ends were taken at 5 s.
fn taken(segment: u16) -> TimeWaits {
    let (mut waits, raw) = (waits(), in_time());
    waits.closed(&raw, 3 * S);
    let tw = minisocket(&raw, 3 * S, 5 * S);
    assert_eq!(hooked(&mut waits, &raw, MinisocketStep::End, segment, tw), []);
    assert_eq!(looked(&mut waits, &look(&raw, 15 * S, vec![]), 15 * S), [], "not gone, but taken");
    waits
}

#[test]
fn ends_that_were_taken_are_told_with_who_took_them() {
    let next = Connection { id: 0x2000, syn_ns: 0, open_ns: 66 * S, ..client() };
    for segment in [0, A_SEGMENT | SYN] {
        let told = opened(&mut taken(segment), &next);
        assert_eq!(ends(&told), [Some(TimeWaitEnd::Reused)]);
        assert_eq!((told[0].1.at_ns, told[0].1.duration_ns), (5 * S, Some(2 * S)));
        assert_eq!(told[0].1.reused_by, Some((0x2000, 0)));
    }
}

#[test]
fn ends_that_nobody_was_seen_to_take_are_told_in_the_end() {
    let nobody = |segment: u16, lost: u64| {
        let mut waits = taken(segment);
        let told = looked(&mut waits, &Look { lost, ..look(&in_time(), 190 * S, vec![]) }, 190 * S);
        (ends(&told), waits.unknown())
    };
    assert_eq!(nobody(A_SEGMENT | SYN, 1), (vec![Some(TimeWaitEnd::Reused)], 0));
    assert_eq!(nobody(0, 0), (vec![Some(TimeWaitEnd::Reset)], 0));
    assert_eq!(nobody(0, 1), (vec![], 1), "a record was lost: perhaps the ends were reused");
}

#[test]
fn news_of_another_minisocket_is_ignored() {
    let (mut waits, raw) = (waits(), in_time());
    waits.closed(&raw, 3 * S);
    let other = Minisocket { cookie: 0x2000, ..minisocket(&raw, 4 * S, 5 * S) };
    assert_eq!(hooked(&mut waits, &raw, MinisocketStep::End, 0, other), []);
    let elsewhere = Minisocket { local_port: 1, ..minisocket(&raw, 4 * S, 5 * S) };
    assert_eq!(hooked(&mut waits, &raw, MinisocketStep::End, A_SEGMENT, elsewhere), []);
    assert!(waits.owed.values().all(|owed| owed.taken.is_none()));
}
