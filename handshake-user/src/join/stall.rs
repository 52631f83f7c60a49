//! What held a TLS handshake up, by the times at which its packets passed this end. Pure.
//!
//! A gap that the network explains, the round trip before an answer, is no stall. Of the others only what the
//! packets, the library and the kernel's own state prove has a cause; whose bytes were waited for is certain
//! in any case.

use handshake_common::{
    Connection, FastOpen, Role,
    tcp::open,
    tls::wire::{Burst, BurstFlags},
};

use super::view::TlsView;
use crate::event::StallCause;

/// Shorter gaps are none: the shortest time by which an ACK is delayed (`TCP_DELACK_MIN`), less the scatter
/// of what it is found by.
const LEAST_NS: u64 = 35_000_000;
/// The longest time by which an ACK is delayed (`TCP_DELACK_MAX`), with the same scatter.
const MAX_DELAY_NS: u64 = 210_000_000;
/// What TCP held back leaves in the very run that handles the ACK.
const AT_ONCE_NS: u64 = 1_000_000;
/// So few bytes are less than a segment, and fill no window.
const SMALL: u32 = 1000;

/// Bytes that came, or left, later than the network explains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stall {
    /// Who caused it; without a cause, the end whose bytes were waited for.
    pub(super) end: Role,
    /// `None`: it cannot be told.
    pub(super) cause: Option<StallCause>,
    pub(super) duration_ns: u64,
    /// When those bytes passed this end, since the ClientHello.
    pub(super) until_ns: u64,
}

/// What the opening says about the network.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Opening {
    pub(super) rtt_ns: Option<u64>,
    /// The SYN carried data, which may have to be sent again.
    pub(super) syn_data: bool,
    /// The congestion window may begin with one segment.
    pub(super) is_slow: bool,
}

impl Opening {
    pub(super) fn of(connection: &Connection) -> Self {
        let fast_open = open::fast_open(connection);
        Self {
            rtt_ns: open::rtt_us(connection).map(|us| us.saturating_mul(1000)),
            syn_data: matches!(fast_open, Some(FastOpen::DataAccepted | FastOpen::DataRejected)),
            is_slow: connection.syn_retransmits > 0,
        }
    }
}

/// The stalls in the order in which they ended. Returns `None` if the packets were not seen.
pub(super) fn stalls(tls: &TlsView, opening: Opening) -> Option<Vec<Stall>> {
    let local = tls.role?;
    let opening = Opening { syn_data: opening.syn_data || tls.hello_in_syn == Some(true), ..opening };
    let end_ns = tls.ended_ns.zip(tls.start_ns).map_or(u64::MAX, |(end, start)| end.saturating_sub(start));
    let mut search =
        Search { bursts: tls.bursts.as_deref()?, local, opening, found: Vec::new(), program: Vec::new() };
    let data: Vec<usize> = (0..search.bursts.len()).filter(|&at| !is_bare(search.bursts[at])).collect();
    for pair in data.windows(2) {
        search.between(pair[0], pair[1]);
    }
    search.share_out(tls.compute.map(|time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)));
    let mut found = search.found;
    // The last record's time is that of its packet.
    found.retain(|stall| stall.until_ns <= end_ns.saturating_add(AT_ONCE_NS));
    found.sort_by_key(|stall| stall.until_ns);
    Some(found)
}

const fn is_bare(burst: Burst) -> bool {
    burst.flags.contains(BurstFlags::BARE)
}

struct Search<'a> {
    bursts: &'a [Burst],
    local: Role,
    opening: Opening,
    found: Vec<Stall>,
    /// The gaps before bytes that this end's program was free to write: their lengths, and what follows.
    program: Vec<(u64, usize)>,
}

impl Search<'_> {
    /// Looks at the gap between two bursts with payload that have no such burst between them.
    fn between(&mut self, at: usize, next: usize) {
        let (before, after) = (self.bursts[at], self.bursts[next]);
        let gap = after.first_ns().saturating_sub(before.last_ns());
        let is_first_flight = self.bursts[..=next].iter().all(|burst| burst.sender() == Role::Client);
        if gap < LEAST_NS || (is_first_flight && self.opening.syn_data) {
            return;
        }
        match (before.sender() == self.local, after.sender() == self.local) {
            (true, true) if after.flags.contains(BurstFlags::AGAIN) => self.sent_again(at, next, gap),
            (_, true) => self.own(at, next, gap),
            (true, false) => {
                let excess = self.opening.rtt_ns.and_then(|rtt| gap.checked_sub(rtt));
                if let Some(excess) = excess.filter(|&excess| excess >= LEAST_NS) {
                    self.push(self.local.peer(), None, excess, next);
                }
            }
            (false, false) => self.peers_part(at, next, gap),
        }
    }

    /// This end sent again what it had sent: lost, unless what followed came too soon to answer it.
    fn sent_again(&mut self, at: usize, next: usize, gap: u64) {
        let again = self.bursts[next];
        let arrived =
            self.bursts[at + 1..next].iter().any(|burst| burst.flags.contains(BurstFlags::ACKS_ALL));
        let mut behind = self.bursts[next + 1..].iter();
        let answer = behind.find(|burst| burst.sender() != self.local);
        let answers = answer
            .zip(self.opening.rtt_ns)
            .is_some_and(|(answer, rtt)| answer.first_ns().saturating_sub(again.last_ns()) >= rtt - rtt / 8);
        if !arrived && answers {
            self.push(self.local, Some(StallCause::Retransmission), gap, next);
        }
    }

    /// This end sent late what it had not sent before: TCP held it, or its program had not written it.
    fn own(&mut self, at: usize, next: usize, gap: u64) {
        let (before, after) = (self.bursts[at], self.bursts[next]);
        let holds = |burst: &&Burst| burst.flags.contains(BurstFlags::UNSENT);
        if let Some(ack) = self.bursts[at + 1..next].iter().rfind(holds).copied() {
            let released = after.first_ns().saturating_sub(ack.last_ns()) <= AT_ONCE_NS;
            let nagle = released && self.is_small(at) && !self.opening.is_slow;
            if !nagle {
                return self.push(self.local, None, gap, next);
            }
            let wait = ack.first_ns().saturating_sub(before.last_ns());
            let delay = self.opening.rtt_ns.and_then(|rtt| wait.checked_sub(rtt));
            return self.held(self.local, gap, delay.unwrap_or(0), next);
        }
        if before.sender() == self.local && !self.was_awaited(next) {
            return;
        }
        self.program.push((gap, next));
    }

    /// The other end sent in parts.
    fn peers_part(&mut self, at: usize, next: usize, gap: u64) {
        let (before, after) = (self.bursts[at], self.bursts[next]);
        let peer = self.local.peer();
        let rtt = self.opening.rtt_ns;
        if after.flags.contains(BurstFlags::AGAIN) {
            let hole = self.bursts[..next]
                .iter()
                .any(|burst| burst.sender() == peer && burst.flags.contains(BurstFlags::AHEAD));
            // The other end learns of the hole half a round trip after it, and fills it half of one later.
            let is_lost = hole && rtt.is_some_and(|rtt| gap >= rtt - rtt / 8);
            return self.push(peer, is_lost.then_some(StallCause::Retransmission), gap, next);
        }
        let ack = self.bursts[at + 1..next].iter().find(|burst| burst.sender() == self.local);
        let delay = ack.zip(rtt).and_then(|(ack, rtt)| {
            let delay = ack.first_ns().saturating_sub(before.last_ns());
            let answer = after.first_ns().saturating_sub(ack.first_ns());
            let is_answer = answer.abs_diff(rtt) <= (rtt / 8).max(2 * AT_ONCE_NS);
            (is_answer && is_delay(delay) && self.is_small(at)).then_some(delay)
        });
        match delay {
            Some(delay) => self.held(peer, gap, delay, next),
            None => self.push(peer, None, gap, next),
        }
    }

    /// Nagle's algorithm of this end held bytes until an ACK, of whose time the other end delayed a part.
    fn held(&mut self, end: Role, gap: u64, delay: u64, next: usize) {
        let delay = if is_delay(delay) { delay } else { 0 };
        self.push(end, Some(StallCause::Nagle), gap - delay, next);
        if delay > 0 {
            self.push(end.peer(), Some(StallCause::DelayedAck), delay, next);
        }
    }

    /// Whether all that the sender of this burst had sent since the other end last spoke is less than a
    /// segment.
    fn is_small(&self, at: usize) -> bool {
        let sender = self.bursts[at].sender();
        let data = self.bursts[..=at].iter().rev().filter(|burst| !is_bare(**burst));
        let mut bytes = 0_u32;
        for burst in data.take_while(|burst| burst.sender() == sender) {
            let Some(most) = burst.most_bytes() else { return false };
            bytes = bytes.saturating_add(most);
        }
        bytes <= SMALL
    }

    /// Whether the other end's next bytes can be an answer to this burst, or need not come at all: otherwise
    /// it is not what the handshake waited for.
    fn was_awaited(&self, at: usize) -> bool {
        let sent = self.bursts[at];
        let mut behind = self.bursts[at + 1..].iter();
        match behind.find(|burst| burst.sender() != self.local && !is_bare(**burst)) {
            Some(answer) => self
                .opening
                .rtt_ns
                .is_some_and(|rtt| answer.first_ns().saturating_sub(sent.last_ns()) >= rtt - rtt / 8),
            None => true,
        }
    }

    /// Says of the program's gaps what the library's computing time proves: all of them, none, or a part of
    /// the only one.
    fn share_out(&mut self, compute: Option<u64>) {
        let program = std::mem::take(&mut self.program);
        let total: u64 = program.iter().map(|&(gap, _)| gap).sum();
        let most = total - total / 10;
        for &(gap, next) in &program {
            match compute {
                Some(compute) if compute >= most => {
                    self.push(self.local, Some(StallCause::Computing), gap, next);
                }
                Some(compute) if compute <= total / 10 => {
                    self.push(self.local, Some(StallCause::Waiting), gap, next);
                }
                Some(compute) if program.len() == 1 => {
                    for (cause, part) in
                        [(StallCause::Computing, compute), (StallCause::Waiting, gap - compute)]
                    {
                        if part >= LEAST_NS {
                            self.push(self.local, Some(cause), part, next);
                        }
                    }
                }
                _ => self.push(self.local, None, gap, next),
            }
        }
    }

    fn push(&mut self, end: Role, cause: Option<StallCause>, duration_ns: u64, next: usize) {
        let until_ns = self.bursts[next].first_ns();
        self.found.push(Stall { end, cause, duration_ns, until_ns });
    }
}

fn is_delay(ns: u64) -> bool {
    (LEAST_NS..=MAX_DELAY_NS).contains(&ns)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use handshake_common::{TlsClass, TlsVersion};

    use super::*;
    use crate::join::view::tests::completed;

    const RTT: u64 = 50_000_000;
    const OPENING: Opening = Opening { rtt_ns: Some(RTT), syn_data: false, is_slow: false };
    const NEW: BurstFlags = BurstFlags::NEW;
    const AGAIN: BurstFlags = BurstFlags::AGAIN;
    const ACK: BurstFlags = BurstFlags::BARE.union(BurstFlags::ACKS_ALL);
    const ACK_UNSENT: BurstFlags = ACK.union(BurstFlags::UNSENT);

    use Role::{Client, Server};
    use StallCause::{Computing, DelayedAck, Nagle, Retransmission, Waiting};

    type Sent = (Role, u64, BurstFlags, u8);

    /// Bursts at these milliseconds, with so many units of 64 bytes.
    fn view(role: Role, sent: &[Sent], compute: Option<u64>) -> TlsView {
        let burst = |&(from, ms, flags, size): &Sent| {
            let side = if from == Server { BurstFlags::FROM_SERVER } else { BurstFlags::empty() };
            let at = u32::try_from((ms * 1_000_000) >> 10).unwrap();
            Burst { at, took: 0, flags: flags.union(side), size }
        };
        TlsView {
            bursts: Some(sent.iter().map(burst).collect()),
            compute: compute.map(Duration::from_millis),
            ended_ns: None,
            ..completed(role, TlsVersion::Tls13, TlsClass::Full)
        }
    }

    /// The stalls, in ms.
    fn found_with(tls: &TlsView, opening: Opening) -> Vec<(Role, Option<StallCause>, u64)> {
        let ms = |ns: u64| (ns + 500_000) / 1_000_000;
        let found = stalls(tls, opening).unwrap();
        found.into_iter().map(|stall| (stall.end, stall.cause, ms(stall.duration_ns))).collect()
    }

    fn found(role: Role, sent: &[Sent], compute: Option<u64>) -> Vec<(Role, Option<StallCause>, u64)> {
        found_with(&view(role, sent, compute), OPENING)
    }

    #[test]
    fn what_the_network_explains_is_no_stall() {
        let full = [(Client, 0, NEW, 5), (Server, 51, NEW, 20), (Client, 53, NEW, 2)];
        assert_eq!(found(Client, &full, Some(1)), []);
        assert_eq!(
            found(Server, &[(Client, 0, NEW, 5), (Server, 1, NEW, 20), (Client, 52, NEW, 2)], None),
            []
        );
        let unseen = TlsView { bursts: None, ..view(Client, &full, None) };
        assert_eq!(stalls(&unseen, OPENING), None);
    }

    #[test]
    fn held_until_an_ack_by_nagle_if_tcp_had_it_and_little_was_on_its_way() {
        let held = |ack: BurstFlags, ack_ms: u64, part: u8, last_ms: u64| {
            let sent = [
                (Client, 0, NEW, 5),
                (Server, 52, NEW, 20),
                (Client, 53, NEW, part),
                (Server, ack_ms, ack, 0),
                (Client, last_ms, NEW, 2),
            ];
            found(Client, &sent, Some(1))
        };
        assert_eq!(
            held(ACK_UNSENT, 145, 1, 145),
            [(Client, Some(Nagle), 50), (Server, Some(DelayedAck), 42)]
        );
        assert_eq!(held(ACK_UNSENT, 104, 1, 104), [(Client, Some(Nagle), 51)], "an ACK at once");
        assert_eq!(held(ACK, 145, 1, 145), [(Client, Some(Waiting), 92)], "the program had not written it");
        assert_eq!(held(ACK_UNSENT, 145, 200, 145), [(Client, None, 92)], "a window may have been full");
        assert_eq!(held(ACK_UNSENT, 145, 1, 170), [(Client, None, 117)], "the ACK did not release it");
        let sent = [
            (Client, 0, NEW, 5),
            (Server, 52, NEW, 20),
            (Client, 53, NEW, 1),
            (Server, 145, ACK_UNSENT, 0),
            (Client, 145, NEW, 2),
        ];
        let slow = Opening { is_slow: true, ..OPENING };
        assert_eq!(found_with(&view(Client, &sent, None), slow), [(Client, None, 92)], "cwnd may be 1");
    }

    #[test]
    fn parts_of_the_peer_are_nagles_if_they_answer_an_ack_that_this_end_delayed() {
        let parts = |ack_ms: u64, last_ms: u64| {
            let sent = [
                (Client, 0, NEW, 5),
                (Server, 1, NEW, 20),
                (Client, 53, NEW, 1),
                (Server, ack_ms, ACK, 0),
                (Client, last_ms, NEW, 2),
            ];
            found(Server, &sent, Some(1))
        };
        assert_eq!(parts(95, 146), [(Client, Some(Nagle), 51), (Server, Some(DelayedAck), 42)]);
        assert_eq!(parts(95, 170), [(Client, None, 117)], "not a round trip later");
        assert_eq!(parts(54, 104), [(Client, None, 51)], "the ACK was not delayed");
    }

    #[test]
    fn retransmission_is_told_unless_what_followed_came_too_soon_to_answer_it() {
        let again = |ack: Option<Sent>, answer_ms: u64| {
            let mut sent = vec![(Client, 0, NEW, 5), (Client, 250, AGAIN, 5)];
            if let Some(ack) = ack {
                sent.insert(1, ack);
            }
            sent.extend([(Server, answer_ms, NEW, 20), (Client, answer_ms + 1, NEW, 2)]);
            found(Client, &sent, None)
        };
        assert_eq!(again(None, 301), [(Client, Some(Retransmission), 250)]);
        assert_eq!(again(None, 270), [], "the first one had arrived");
        assert_eq!(again(Some((Server, 100, ACK, 0)), 301), [], "it was acknowledged");
    }

    #[test]
    fn hole_that_the_peer_fills_was_a_loss() {
        let filled = |first: BurstFlags| {
            let sent = [
                (Client, 0, NEW, 5),
                (Server, 51, NEW | first, 20),
                (Server, 105, AGAIN, 20),
                (Client, 106, NEW, 2),
            ];
            found(Client, &sent, None)
        };
        assert_eq!(filled(BurstFlags::AHEAD), [(Server, Some(Retransmission), 54)]);
        assert_eq!(filled(BurstFlags::empty()), [(Server, None, 54)]);
    }

    #[test]
    fn answer_of_this_end_took_what_its_library_computed_and_the_program_the_rest() {
        let slow = |compute| {
            found(Server, &[(Client, 0, NEW, 5), (Server, 150, NEW, 20), (Client, 201, NEW, 2)], compute)
        };
        assert_eq!(slow(Some(149)), [(Server, Some(Computing), 150)]);
        assert_eq!(slow(Some(2)), [(Server, Some(Waiting), 150)]);
        assert_eq!(slow(Some(60)), [(Server, Some(Computing), 60), (Server, Some(Waiting), 90)]);
        assert_eq!(slow(None), [(Server, None, 150)]);
        let twice =
            [(Client, 0, NEW, 5), (Server, 100, NEW, 2), (Client, 151, NEW, 5), (Server, 251, NEW, 9)];
        assert_eq!(found(Server, &twice, Some(100)), [(Server, None, 100), (Server, None, 100)]);
    }

    #[test]
    fn late_answer_of_the_peer_is_its_but_has_no_cause() {
        let sent = [(Client, 0, NEW, 5), (Server, 201, NEW, 20), (Client, 202, NEW, 2)];
        assert_eq!(found(Client, &sent, Some(1)), [(Server, None, 151)]);
        let unknown = Opening { rtt_ns: None, ..OPENING };
        assert_eq!(found_with(&view(Client, &sent, Some(1)), unknown), []);
    }

    #[test]
    fn data_behind_a_flight_that_the_client_did_not_wait_for_is_no_stall() {
        let sent = |answer_ms| {
            [(Client, 0, NEW, 5), (Server, 1, NEW, 20), (Server, 41, NEW, 2), (Client, answer_ms, NEW, 2)]
        };
        assert_eq!(found(Server, &sent(53), Some(1)), []);
        assert_eq!(found(Server, &sent(93), Some(1)), [(Server, Some(Waiting), 40)]);
    }

    #[test]
    fn hello_sent_again_behind_a_syn_that_carried_it_is_no_stall() {
        let sent =
            [(Client, 0, NEW, 5), (Client, 51, AGAIN, 5), (Server, 102, NEW, 20), (Client, 103, NEW, 2)];
        let syn_data = Opening { syn_data: true, ..OPENING };
        assert_eq!(found_with(&view(Client, &sent, Some(1)), syn_data), []);
    }
}
