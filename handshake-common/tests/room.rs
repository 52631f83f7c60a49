//! A connection for which the table has a free entry at some of its steps and none at others: if its
//! beginning was counted, so is its end, and no gauge keeps counting it.

mod socket;

use handshake_common::{
    Connection, ConnectionFlags, Role,
    tcp::{
        state::{self, DueRecords},
        states::{
            CLOSE, CLOSE_WAIT, CLOSING, ESTABLISHED, FIN_WAIT1, FIN_WAIT2, LAST_ACK, SYN_RECV, SYN_SENT,
        },
    },
};
use proptest::prelude::*;
use socket::Socket;

const ROLES: [Option<Role>; 3] = [Some(Role::Client), Some(Role::Server), None];

/// The kernel side's counters from which the gauge is computed, by role.
#[derive(Debug, Default)]
struct Counted {
    begun: i64,
    unkept: i64,
    late: i64,
    opened: [i64; 3],
    ended_openings: [i64; 3],
    unopened: [i64; 3],
    unfollowed: [i64; 3],
    closing: [i64; 3],
    closed: [i64; 3],
    state_full: i64,
}

fn slot(role: Option<Role>) -> usize {
    ROLES.iter().position(|&it| it == role).unwrap()
}

impl Counted {
    /// `emit::publish`.
    fn publish(&mut self, connection: &Connection, due: DueRecords) {
        let at = slot(connection.role());
        let flags = connection.flags;
        self.closing[at] += i64::from(due.contains(DueRecords::CLOSING));
        if due.contains(DueRecords::OPEN) {
            self.ended_openings[at] += 1;
            self.opened[at] += i64::from(flags.contains(ConnectionFlags::ESTABLISHED));
            self.late += i64::from(flags.contains(ConnectionFlags::PREEXISTING));
        }
        if due.contains(DueRecords::CLOSE) {
            self.closed[at] += 1;
            let opened =
                flags.contains(ConnectionFlags::ESTABLISHED) || flags.contains(ConnectionFlags::PREEXISTING);
            self.unopened[at] += i64::from(!opened);
        }
    }

    /// The values of the gauge: opening, established by role, closing by role.
    fn gauge(&self) -> (i64, [i64; 3], [i64; 3]) {
        let followed = (self.begun - self.unkept) - (self.ended_openings[0] - self.late);
        let opening = followed + (self.unkept - self.late).max(0);
        let mut established = [0; 3];
        for (at, established) in established.iter_mut().enumerate().take(2) {
            *established = self.opened[at] + self.unopened[at] - self.unfollowed[at] - self.closing[at];
        }
        established[2] = self.unfollowed.iter().sum::<i64>() - self.closing[2];
        let mut closing = self.closing;
        closing.iter_mut().zip(self.closed).for_each(|(closing, closed)| *closing -= closed);
        (opening, established, closing)
    }
}

/// The steps of `inet_sock_set_state` on the kernel side, for one socket.
#[derive(Default)]
struct Followed {
    kept: Option<Connection>,
    counted: Counted,
}

impl Followed {
    fn connect(&mut self, room: bool, now: u64) {
        let mut connection = Connection::default();
        state::begin_client(&mut connection, now);
        self.counted.begun += 1;
        self.keep(connection, room);
        self.counted.unkept += i64::from(!room);
    }

    fn keep(&mut self, connection: Connection, room: bool) {
        if room {
            self.kept = Some(connection);
        } else {
            self.counted.state_full += 1;
        }
    }

    fn set_state(&mut self, old: u32, new: u32, room: bool, sock: &Socket, now: u64) {
        if self.kept.is_none() && old == SYN_RECV && new == ESTABLISHED {
            let mut connection = Connection::default();
            state::adopt(&mut connection, old);
            let due = state::transition(&mut connection, sock, old, new, now);
            self.counted.publish(&connection, due);
            self.keep(connection, room);
            self.counted.unfollowed[1] += i64::from(!room);
            return;
        }
        self.adopt(old, room);
        match &mut self.kept {
            Some(connection) => {
                let due = state::transition(connection, sock, old, new, now);
                self.counted.publish(connection, due);
            }
            None => self.pass(old, new, sock, now),
        }
    }

    fn pass(&mut self, old: u32, new: u32, sock: &Socket, now: u64) {
        if state::skips_established(old, new) {
            self.counted.ended_openings[1] += 1;
            self.counted.unfollowed[2] += 1;
            self.counted.closing[2] += 1;
            self.counted.state_full += 1;
            return;
        }
        let mut connection = Connection::default();
        state::adopt(&mut connection, old);
        let due = state::passing(&mut connection, sock, old, new, now);
        self.counted.publish(&connection, due);
        if new == ESTABLISHED {
            self.counted.unfollowed[slot(connection.role())] += 1;
        }
    }

    /// A packet or a library's call may be the first to get an entry for it.
    fn adopt(&mut self, at: u32, room: bool) {
        if self.kept.is_none() && room && state::is_followed(at) {
            let mut connection = Connection::default();
            state::adopt(&mut connection, at);
            self.kept = Some(connection);
        }
    }

    fn reset(&mut self, received: bool, at: u32, room: bool, sock: &Socket) {
        if received {
            self.adopt(at, room);
        }
        let Some(connection) = &mut self.kept else { return };
        if received {
            state::reset_received(connection, sock, at);
        } else {
            let due = state::reset_sent(connection);
            self.counted.publish(connection, due);
        }
    }

    fn destroy(&mut self) {
        if let Some(mut connection) = self.kept.take() {
            let due = state::destroyed(&mut connection);
            self.counted.publish(&connection, due);
        }
    }
}

/// The states that can follow this one. (Simultaneous opens are left out.)
fn next(state: u32) -> &'static [u32] {
    match state {
        SYN_SENT => &[ESTABLISHED, CLOSE],
        SYN_RECV => &[ESTABLISHED, FIN_WAIT1, CLOSE_WAIT, CLOSE],
        ESTABLISHED => &[FIN_WAIT1, CLOSE_WAIT, CLOSE],
        FIN_WAIT1 => &[FIN_WAIT2, CLOSING, CLOSE],
        CLOSE_WAIT => &[LAST_ACK, CLOSE],
        _ => &[CLOSE],
    }
}

#[derive(Clone, Debug)]
struct Step {
    choice: prop::sample::Index,
    room: bool,
    /// A reset before the step, received or sent.
    reset: Option<bool>,
    /// Something else looks up the connection before the step.
    looked_for: Option<bool>,
    sock: Socket,
}

prop_compose! {
    fn step()(
        choice in any::<prop::sample::Index>(),
        room in any::<bool>(),
        reset in prop::option::weighted(0.2, any::<bool>()),
        looked_for in prop::option::weighted(0.2, any::<bool>()),
        done in any::<bool>(),
        all_acked in any::<bool>(),
        err in prop_oneof![Just(0), Just(104), Just(110), Just(111)],
    ) -> Step {
        Step { choice, room, reset, looked_for, sock: Socket { err, done, all_acked, ..Socket::default() } }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]
    #[test]
    fn what_is_gone_is_in_no_gauge(is_client in any::<bool>(), steps in prop::collection::vec(step(), 8)) {
        let mut followed = Followed::default();
        let mut now = 1_000_000_000;
        let mut at = if is_client { SYN_SENT } else { SYN_RECV };
        let (mut first, mut path) = (is_client, vec![at]);
        for Step { choice, room, reset, looked_for, sock } in &steps {
            now += 1_000_000;
            if std::mem::take(&mut first) {
                followed.connect(*room, now);
                continue;
            }
            if at != SYN_RECV && let Some(room) = looked_for {
                followed.adopt(at, *room);
            }
            if let Some(received) = reset {
                followed.reset(*received, at, *room, sock);
            }
            let new = *choice.get(next(at));
            followed.set_state(at, new, *room, sock, now);
            at = new;
            path.push(at);
            let (opening, established, closing) = followed.counted.gauge();
            // Entry or not, the gauge counts it once; a server's opening is not counted, and a Fast Open
            // child that is closed before it is established is counted only later.
            let skips = state::skips_established(path[0], path[1]);
            let sum = opening + established.iter().sum::<i64>() + closing.iter().sum::<i64>();
            prop_assert!(at == CLOSE || skips || sum == 1, "{path:?}: {:?}", followed.counted);
            prop_assert!(followed.counted.state_full <= 1, "{path:?}: {:?}", followed.counted);
            if at == CLOSE {
                break;
            }
        }
        prop_assert_eq!(at, CLOSE);
        followed.destroy();
        let gauge = followed.counted.gauge();
        prop_assert_eq!(gauge, (0, [0; 3], [0; 3]), "{:?}: {:?}", path, followed.counted);
        let ends: i64 = followed.counted.ended_openings.iter().sum();
        prop_assert_eq!(ends, 1, "{:?}: {:?}", path, followed.counted);
    }
}

/// The step of `connect()` was missed: an opening ends whose beginning was not counted.
#[test]
fn missed_connect_does_not_change_the_gauge_of_openings() {
    for room in [false, true] {
        let mut followed = Followed::default();
        followed.set_state(SYN_SENT, ESTABLISHED, room, &Socket::default(), 1);
        assert_eq!(followed.counted.gauge().0, 0);
        followed.set_state(ESTABLISHED, FIN_WAIT1, room, &Socket::default(), 2);
        followed.set_state(FIN_WAIT1, FIN_WAIT2, room, &Socket::default(), 3);
        followed.set_state(FIN_WAIT2, CLOSE, room, &Socket::default(), 4);
        followed.destroy();
        assert_eq!(followed.counted.gauge(), (0, [0; 3], [0; 3]));
    }
}
