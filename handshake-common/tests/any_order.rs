//! Events in any order, any of them lost, of a socket that holds any values: no panic, no record twice, no
//! duration longer than the time that passed, no number for what was not seen.

mod socket;

use handshake_common::{
    Connection, ConnectionFlags, Phase, Role,
    tcp::{
        close, open,
        state::{self, DueRecords},
        states,
    },
    totals,
};
use proptest::prelude::*;
use socket::Socket;

#[derive(Clone, Debug)]
enum Event {
    Connect,
    Transition(u32, u32),
    SynRetransmitted(u32),
    ResetReceived(u32),
    ResetSent,
    Destroyed,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        1 => Just(Event::Connect),
        8 => (1_u32..=12, 1_u32..=12).prop_map(|(old, new)| Event::Transition(old, new)),
        1 => any::<u32>().prop_map(Event::SynRetransmitted),
        1 => (0_u32..=12).prop_map(Event::ResetReceived),
        1 => Just(Event::ResetSent),
        1 => Just(Event::Destroyed),
    ]
}

prop_compose! {
    fn socket_of_any_values()(
        bools in any::<[bool; 10]>(),
        err in prop_oneof![Just(0), Just(110), Just(111), Just(104), any::<u32>()],
        numbers in any::<[u32; 3]>(),
        clocks in any::<[u64; 4]>(),
        syn_facts in any::<u32>(),
    ) -> Socket {
        Socket {
            err,
            done: bools[0],
            receive_shutdown: bools[1],
            holds_final_ack: bools[2],
            unsent: bools[3],
            all_acked: bools[4],
            owes_ack: bools[5],
            syn_data_acked: bools[6],
            usec_timestamps: bools[7],
            idle: bools[8],
            lacks_ends: bools[9],
            srtt_us: numbers[0],
            total_retrans: numbers[1] % 4,
            data_segs_in: numbers[2] % 4,
            bytes_acked: clocks[0] % 3,
            last_sent_ns: clocks[1],
            segment_clock_ns: clocks[2] % 3,
            newest_acked_sent_us: clocks[3],
            syn_facts,
            soft_err: err,
            child_made_ns: clocks[1],
        }
    }
}

/// The records that one connection may still give.
#[derive(Default)]
struct Given {
    opens: u32,
    closes: u32,
}

/// Whether the kernel side would keep state at all for a socket that has none.
fn follow(connection: &mut Option<Connection>, old: u32) -> bool {
    if connection.is_none() && state::is_followed(old) {
        let mut fresh = Connection { id: 1, ..Connection::default() };
        state::adopt(&mut fresh, old);
        *connection = Some(fresh);
    }
    connection.is_some()
}

fn check(connection: &Connection, begin: u64, now: u64) -> Result<(), TestCaseError> {
    let passed_us = (now - begin) / 1000;
    prop_assert!(totals::open_slot(connection) < totals::SLOTS);
    prop_assert!(totals::close_slot(connection) < totals::SLOTS);
    for measured in
        [close::duration_us(connection), close::ack_wait_us(connection), close::app_wait_us(connection)]
    {
        prop_assert!(
            measured.is_none_or(|us| us <= passed_us),
            "{measured:?} of {passed_us} µs: {connection:?}"
        );
    }
    if connection.role() == Some(Role::Client) {
        let opening = open::duration_us(connection);
        prop_assert!(
            opening.is_none_or(|us| us <= passed_us),
            "{opening:?} of {passed_us} µs: {connection:?}"
        );
    }
    if connection.flags.contains(ConnectionFlags::PREEXISTING) {
        prop_assert_eq!(open::duration_us(connection), None);
        prop_assert_eq!(close::lifetime_us(connection), None);
    }
    if connection.our_close_ns == 0 {
        prop_assert_eq!(close::ack_wait_us(connection), None);
    }
    if connection.peer_fin_ns == 0 {
        prop_assert_eq!(close::duration_us(connection), None);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]
    #[test]
    fn any_order_of_events(
        events in prop::collection::vec((event(), socket_of_any_values(), 0_u64..10_000_000_000), 1..24)
    ) {
        let begin = 1_000_000_000_000;
        let mut now = begin;
        let mut connection: Option<Connection> = None;
        let mut given = Given::default();
        for (event, sock, gap) in events {
            now += gap;
            let due = match event {
                Event::Connect => {
                    let mut due = DueRecords::empty();
                    if let Some(before) = &mut connection {
                        due = state::destroyed(before);
                        given.opens += u32::from(due.contains(DueRecords::OPEN));
                        given.closes += u32::from(due.contains(DueRecords::CLOSE));
                        prop_assert!(given.opens <= 1 && given.closes <= 1, "{before:?}");
                        check(before, begin, now)?;
                    }
                    state::begin_client(connection.get_or_insert_default(), now);
                    given = Given::default();
                    let _ = due;
                    continue;
                }
                Event::Transition(old, new) if old != new && follow(&mut connection, old) => {
                    state::transition(connection.as_mut().unwrap(), &sock, old, new, now)
                }
                Event::ResetReceived(at) if follow(&mut connection, at) => {
                    state::reset_received(connection.as_mut().unwrap(), &sock, at);
                    DueRecords::empty()
                }
                Event::SynRetransmitted(stamp) => {
                    if let Some(connection) = &mut connection {
                        state::syn_retransmitted(connection, &sock, stamp, now);
                    }
                    DueRecords::empty()
                }
                Event::ResetSent => connection.as_mut().map_or(DueRecords::empty(), state::reset_sent),
                Event::Destroyed => {
                    let due = connection.as_mut().map_or(DueRecords::empty(), state::destroyed);
                    if let Some(gone) = connection.take() {
                        given.opens += u32::from(due.contains(DueRecords::OPEN));
                        given.closes += u32::from(due.contains(DueRecords::CLOSE));
                        prop_assert!(given.opens <= 1 && given.closes <= 1, "{gone:?}");
                        prop_assert!(given.opens + given.closes >= 1, "gone without a trace: {gone:?}");
                        check(&gone, begin, now)?;
                    }
                    given = Given::default();
                    continue;
                }
                _ => DueRecords::empty(),
            };
            if let Some(connection) = &connection {
                given.opens += u32::from(due.contains(DueRecords::OPEN));
                given.closes += u32::from(due.contains(DueRecords::CLOSE));
                prop_assert!(given.opens <= 1 && given.closes <= 1, "twice: {connection:?}");
                prop_assert!(!due.contains(DueRecords::CLOSE) || connection.is(Phase::Done));
                check(connection, begin, now)?;
            }
        }
    }

    #[test]
    fn any_bytes_are_a_record_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        if let Some(connection) = Connection::from_bytes(&bytes) {
            prop_assert!(totals::close_slot(&connection) < totals::SLOTS);
            let _ = (open::duration_us(&connection), open::rtt_us(&connection), close::duration_us(&connection));
        }
    }
}

/// A server's connection that never became ESTABLISHED is not published as one.
#[test]
fn a_listener_is_no_connection() {
    assert!(!state::is_followed(states::LISTEN));
    assert!(!state::is_followed(states::CLOSE));
}
