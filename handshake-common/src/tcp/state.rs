//! The state machine: what each tracepoint adds to a [`Connection`], and which record is due.
//!
//! The kernel side calls this under the socket's lock; the tests call it with every order of events.

use bitflags::bitflags;

use super::{Sock, errno, states};
use crate::{
    connection::{Accepted, Connection, ConnectionFlags, Phase, WirePhase},
    integer::{low_16, low_32},
    tls::library::key::Key,
    vocabulary::{Initiator, Role},
};

/// What is due after an event; several can be due at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct DueRecords(u8);

bitflags! {
    impl DueRecords: u8 {
        /// The open record.
        const OPEN = 1;
        /// The closing began (for the gauge of connections).
        const CLOSING = 2;
        /// The close record.
        const CLOSE = 4;
    }
}

/// CLOSE → SYN_SENT: a client's opening begins; also on a socket that had a connection before.
#[inline(always)]
pub fn begin_client(connection: &mut Connection, now: u64) {
    // The identity and the process stay; everything else belongs to the connection before.
    let again = connection.role != 0;
    connection.generation = connection.generation.wrapping_add(u16::from(again));
    connection.role = Role::Client.code();
    connection.phase = Phase::Opening as u8;
    connection.initiator = 0;
    connection.flags = ConnectionFlags::empty();
    connection.family = 0;
    connection.error = 0;
    connection.srtt_us = 0;
    connection.syn_retransmits = 0;
    connection.syn_ns = now;
    connection.open_ns = 0;
    connection.our_close_ns = 0;
    connection.our_fin_ns = 0;
    connection.fin_acked_ns = 0;
    connection.peer_fin_ns = 0;
    connection.closed_ns = 0;
    connection.fin_acked_clock_ns = 0;
    connection.accept_wait_us = 0;
    connection.accepted = Accepted::empty();
    connection.tls_session = Key::NONE;
    connection.wire = WirePhase::Idle as u8;
}

/// Whether a socket that leaves this state has a connection to follow. Listeners have none; a server's socket
/// is followed from the step that leaves SYN_RECV.
#[inline(always)]
#[must_use]
pub const fn is_followed(old: u32) -> bool {
    matches!(
        old,
        states::SYN_SENT
            | states::SYN_RECV
            | states::ESTABLISHED
            | states::FIN_WAIT1
            | states::FIN_WAIT2
            | states::CLOSE_WAIT
            | states::LAST_ACK
            | states::CLOSING
    )
}

/// A socket of which nothing is known yet leaves `old`, which is a state that [`is_followed`].
#[inline(always)]
pub const fn adopt(connection: &mut Connection, old: u32) {
    if old == states::SYN_RECV {
        connection.role = Role::Server.code();
        return;
    }
    connection.flags = connection.flags.union(ConnectionFlags::PREEXISTING);
    if old == states::SYN_SENT {
        connection.role = Role::Client.code();
        return;
    }
    // What is closing already was counted as such: by an earlier step, or at the start.
    let phase = if old == states::ESTABLISHED { Phase::Open } else { Phase::Closing };
    connection.phase = phase as u8;
    connection.initiator = Initiator::code_of(match old {
        states::FIN_WAIT1 | states::FIN_WAIT2 => Some(Initiator::Local),
        states::CLOSE_WAIT | states::LAST_ACK => Some(Initiator::Remote),
        states::CLOSING => Some(Initiator::Both),
        _ => None,
    });
}

/// `sock:inet_sock_set_state` with `old != new`, for every step but the first of a client. The same step once
/// more, which the kernel side cannot always rule out, changes nothing.
#[inline(always)]
pub fn transition(connection: &mut Connection, sock: &impl Sock, old: u32, new: u32, now: u64) -> DueRecords {
    if connection.is(Phase::Done) || is_repeated(connection, new) {
        return DueRecords::empty();
    }
    match new {
        states::ESTABLISHED if connection.is(Phase::Opening) => {
            established(connection, sock, old, now);
            DueRecords::OPEN
        }
        states::FIN_WAIT1 => {
            our_close(connection, sock, now);
            begin_closing(connection, Initiator::Local)
        }
        states::FIN_WAIT2 => {
            our_fin_acked(connection, sock, now);
            open_if_unseen(connection, sock).union(begin_closing(connection, Initiator::Local))
        }
        states::CLOSING => {
            connection.flags.insert(ConnectionFlags::CLOSING);
            connection.peer_fin_ns = now;
            connection.initiator = Initiator::Both.code();
            open_if_unseen(connection, sock).union(begin_closing(connection, Initiator::Both))
        }
        states::CLOSE_WAIT => {
            connection.peer_fin_ns = now;
            open_if_unseen(connection, sock).union(begin_closing(connection, Initiator::Remote))
        }
        states::LAST_ACK => {
            our_close(connection, sock, now);
            let owes_ack = sock.owes_ack();
            if owes_ack {
                connection.flags.insert(ConnectionFlags::ACK_OWED_AT_CLOSE);
            }
            if !owes_ack {
                connection.flags.insert(ConnectionFlags::ACKED_BEFORE_CLOSE);
            }
            begin_closing(connection, Initiator::Remote)
        }
        states::CLOSE => closed(connection, sock, old, now),
        _ => DueRecords::empty(),
    }
}

/// Whether the connection shows that it has reached this state before. ESTABLISHED is seen in its phase.
#[inline(always)]
fn is_repeated(connection: &Connection, new: u32) -> bool {
    match new {
        states::FIN_WAIT1 | states::LAST_ACK => connection.our_close_ns != 0,
        states::FIN_WAIT2 => connection.fin_acked_ns != 0,
        states::CLOSE_WAIT | states::CLOSING => connection.peer_fin_ns != 0,
        states::CLOSE => connection.is(Phase::Ending),
        _ => false,
    }
}

/// The same for a connection without room, which was adopted for this one step and is forgotten after it:
/// nothing can wait for a reset or the end of the socket.
#[inline(always)]
pub fn passing(connection: &mut Connection, sock: &impl Sock, old: u32, new: u32, now: u64) -> DueRecords {
    let due = transition(connection, sock, old, new, now);
    if connection.is(Phase::Ending) { due.union(destroyed(connection)) } else { due }
}

/// Whether this step of a connection without room leaves open how its opening ended, although it goes on: a
/// Fast Open child that is closed by its program or its peer before the handshake ends.
#[inline(always)]
#[must_use]
pub const fn skips_established(old: u32, new: u32) -> bool {
    old == states::SYN_RECV && new != states::ESTABLISHED && new != states::CLOSE
}

/// `tcp:tcp_receive_reset`. The kernel runs the same function when data arrives after `close()`, and then it
/// is this end that sends the RST (`tcp_rcv_state_process`, FIN_WAIT1 and FIN_WAIT2).
#[inline(always)]
pub fn reset_received(connection: &mut Connection, sock: &impl Sock, state: u32) {
    let data_after_close = matches!(state, states::FIN_WAIT1 | states::FIN_WAIT2)
        && sock.receive_shutdown()
        && sock.data_segs_in() != connection.data_segs_at_close;
    connection.flags.insert(if data_after_close {
        ConnectionFlags::RESET_SENT
    } else {
        ConnectionFlags::RESET_RECEIVED
    });
}

/// `tcp:tcp_send_reset`, which comes before or after the change to CLOSE. A RST that answers a stray segment
/// while the opening goes on says nothing of this connection.
#[inline(always)]
pub fn reset_sent(connection: &mut Connection) -> DueRecords {
    if connection.is(Phase::Open) || connection.is(Phase::Closing) {
        connection.flags.insert(ConnectionFlags::RESET_SENT);
        DueRecords::empty()
    } else if connection.is(Phase::Ending) {
        connection.flags.insert(ConnectionFlags::RESET_SENT);
        finish(connection)
    } else {
        DueRecords::empty()
    }
}

/// The socket is destroyed, or used for another connection: whatever was not published is due now.
#[inline(always)]
pub fn destroyed(connection: &mut Connection) -> DueRecords {
    if connection.is(Phase::Done) {
        DueRecords::empty()
    } else if connection.is(Phase::Opening) {
        // The change to CLOSE was missed; no error was seen, so it counts as given up.
        connection.phase = Phase::Done as u8;
        DueRecords::OPEN
    } else {
        let closing = if connection.is(Phase::Open) { DueRecords::CLOSING } else { DueRecords::empty() };
        closing.union(finish(connection))
    }
}

/// A process takes the connection out of the accept queue. The socket's lock is not held, so this changes
/// nothing that its events change. Returns whether that is news: it is not followed from before ESTABLISHED,
/// which a Fast Open child may be accepted before.
#[inline(always)]
pub fn accepted(connection: &mut Connection, now: u64) -> bool {
    if connection.role != Role::Server.code()
        || connection.flags.contains(ConnectionFlags::PREEXISTING)
        || connection.was_accepted()
        || connection.open_ns == 0
        || connection.open_ns > now
    {
        return false;
    }
    let wait_us = (now - connection.open_ns) / 1000;
    connection.accept_wait_us = low_32(if wait_us < TOO_LONG { wait_us } else { TOO_LONG });
    connection.accepted.insert(Accepted::BY_A_PROCESS);
    true
}

/// More microseconds than fit.
const TOO_LONG: u64 = u32::MAX as u64;

#[inline(always)]
fn established(connection: &mut Connection, sock: &impl Sock, old: u32, now: u64) {
    read_sample(connection, sock);
    connection.open_ns = now;
    connection.phase = Phase::Open as u8;
    let flags = &mut connection.flags;
    flags.insert(ConnectionFlags::ESTABLISHED);
    if connection.role == Role::Server.code() {
        let syn_data = sock.syn_data_acked();
        if syn_data {
            flags.insert(ConnectionFlags::SYN_DATA_ACKED);
        }
        if sock.data_segs_in() > u32::from(syn_data) {
            flags.insert(ConnectionFlags::FINAL_ACK_DATA);
        }
        if sock.usec_timestamps() {
            flags.insert(ConnectionFlags::USEC_TIMESTAMPS);
        }
        // A socket that was made by the final ACK cannot have sent anything that this acknowledges.
        let answered = sock.bytes_acked() > 0;
        if answered {
            flags.insert(ConnectionFlags::ANSWERED_EARLY);
        }
        if syn_data || answered {
            connection.syn_ns = sock.child_made_ns();
        }
    } else {
        let syn_facts = sock.syn_facts();
        flags.insert(syn_facts.union(dialled_both(old)));
        if syn_facts.contains(ConnectionFlags::SYN_DATA) && sock.bytes_acked() > 1 {
            flags.insert(ConnectionFlags::SYN_DATA_ACKED);
        }
        if sock.holds_final_ack() {
            flags.insert(ConnectionFlags::FINAL_ACK_DATA);
        }
        undefer_syn(connection, sock);
    }
}

/// A client that leaves SYN_RECV was dialled by the end that it dials.
#[inline(always)]
const fn dialled_both(old: u32) -> ConnectionFlags {
    if old == states::SYN_RECV { ConnectionFlags::SIMULTANEOUS_OPEN } else { ConnectionFlags::empty() }
}

/// Takes the kernel's round-trip sample and what it says of retransmissions.
#[inline(always)]
fn read_sample(connection: &mut Connection, sock: &impl Sock) {
    connection.srtt_us = sock.srtt_us() >> 3;
    let retransmits = sock.total_retrans();
    connection.syn_retransmits = low_16(u64::from(if retransmits > 0xffff { 0xffff } else { retransmits }));
}

/// Under TCP_FASTOPEN_CONNECT the SYN leaves at the first write: its time is that of the last segment sent,
/// as long as there was one only. After a retransmission `syn_retransmitted` has set it.
#[inline(always)]
fn undefer_syn(connection: &mut Connection, sock: &impl Sock) {
    if connection.flags.contains(ConnectionFlags::DEFERRED_SYN) && connection.syn_retransmits == 0 {
        let sent = sock.last_sent_ns();
        connection.syn_ns = if sent >= connection.syn_ns { sent } else { 0 };
    }
}

/// `tcp:tcp_retransmit_skb` in SYN_SENT. `retrans_stamp` keeps the first SYN's time, milliseconds of
/// CLOCK_MONOTONIC cut to 32 bits: the only witness of when a deferred SYN left.
#[inline(always)]
pub fn syn_retransmitted(connection: &mut Connection, sock: &impl Sock, retrans_stamp: u32, now: u64) {
    if connection.is(Phase::Opening) && sock.syn_facts().contains(ConnectionFlags::DEFERRED_SYN) {
        let now_ms = now / 1_000_000;
        let age_ms = now_ms.wrapping_sub(u64::from(retrans_stamp)) & u64::from(u32::MAX);
        let sent = now.saturating_sub(age_ms * 1_000_000);
        if sent > connection.syn_ns {
            connection.syn_ns = sent;
        }
    }
}

/// A Fast Open child that its program closed before the handshake ended never becomes ESTABLISHED: the first
/// acknowledgment by the peer shows that it opened, but not when.
#[inline(always)]
fn open_if_unseen(connection: &mut Connection, sock: &impl Sock) -> DueRecords {
    if connection.flags.contains(ConnectionFlags::ESTABLISHED)
        || connection.flags.contains(ConnectionFlags::PREEXISTING)
    {
        return DueRecords::empty();
    }
    read_sample(connection, sock);
    // By now the kernel's sample may be the FIN's.
    connection.srtt_us = 0;
    let flags = &mut connection.flags;
    flags.insert(ConnectionFlags::ESTABLISHED);
    flags.insert(ConnectionFlags::OPEN_UNTIMED);
    if sock.syn_data_acked() {
        flags.insert(ConnectionFlags::SYN_DATA_ACKED);
    }
    DueRecords::OPEN
}

#[inline(always)]
fn begin_closing(connection: &mut Connection, initiator: Initiator) -> DueRecords {
    if connection.initiator == 0 {
        connection.initiator = initiator.code();
    }
    // A Fast Open child may be closing while its opening is still unpublished.
    if connection.is(Phase::Open) || connection.is(Phase::Opening) {
        connection.phase = Phase::Closing as u8;
        DueRecords::CLOSING
    } else {
        DueRecords::empty()
    }
}

/// FIN_WAIT1 or LAST_ACK: the program closed; the FIN itself may wait behind data.
#[inline(always)]
fn our_close(connection: &mut Connection, sock: &impl Sock, now: u64) {
    connection.our_close_ns = now;
    connection.retrans_at_close = sock.total_retrans();
    connection.data_segs_at_close = sock.data_segs_in();
    if sock.has_unsent() {
        connection.flags.insert(ConnectionFlags::UNSENT_AT_CLOSE);
    }
}

/// The ACK of our FIN: what it acknowledges says when the FIN had left, unless that was sent more than once.
#[inline(always)]
fn our_fin_acked(connection: &mut Connection, sock: &impl Sock, now: u64) {
    connection.fin_acked_ns = now;
    connection.fin_acked_clock_ns = sock.segment_clock_ns();
    let closed = connection.our_close_ns;
    if closed == 0 {
        return;
    }
    let unsent = connection.flags.contains(ConnectionFlags::UNSENT_AT_CLOSE);
    let at_close = if unsent { 0 } else { closed };
    connection.our_fin_ns = if sock.total_retrans() == connection.retrans_at_close {
        let sent = sock.newest_acked_sent_us().wrapping_mul(1000);
        // Whole microseconds: a FIN that left at once may seem to lie just before the close.
        if sent > now || sent < closed.saturating_sub(1000) {
            at_close
        } else if sent < closed {
            closed
        } else {
            sent
        }
    } else {
        at_close
    };
}

#[expect(clippy::needless_bitwise_bool, reason = "a branch doubles what the verifier follows")]
#[inline(always)]
fn closed(connection: &mut Connection, sock: &impl Sock, old: u32, now: u64) -> DueRecords {
    let error = sock.err();
    connection.error = low_16(u64::from(error));
    if connection.is(Phase::Opening) {
        return failed(connection, sock, old, now);
    }
    connection.closed_ns = now;
    // The retransmission timer leaves the last soft error if there was one, such as EHOSTUNREACH. What
    // IP_RECVERR puts into `sk_err` is no soft error.
    let soft_error = sock.soft_err();
    let timed_out = (connection.error == errno::ETIMEDOUT) | ((error != 0) & (error == soft_error));
    if timed_out {
        connection.flags.insert(ConnectionFlags::TIMED_OUT);
    }
    let reset = connection.flags.contains(ConnectionFlags::RESET_RECEIVED)
        || connection.flags.contains(ConnectionFlags::RESET_SENT);
    if !timed_out && !reset {
        match old {
            states::FIN_WAIT2 if sock.done() => {
                connection.peer_fin_ns = now;
                let same = connection.fin_acked_clock_ns == sock.segment_clock_ns();
                if same {
                    connection.flags.insert(ConnectionFlags::FIN_WITH_ACK);
                }
                if !same {
                    connection.flags.insert(ConnectionFlags::ACK_WITHOUT_FIN);
                }
            }
            states::FIN_WAIT2 => {
                connection.flags.insert(ConnectionFlags::ACK_WITHOUT_FIN);
                connection.flags.insert(ConnectionFlags::PEER_FIN_UNSEEN);
                // A RST may still follow (TCP_LINGER2 below zero); the end of the socket is microseconds
                // away.
                return end(connection);
            }
            states::LAST_ACK | states::CLOSING if sock.all_acked() => {
                our_fin_acked(connection, sock, now);
            }
            _ => return end(connection),
        }
    }
    begin_closing(connection, initiator_of_abort(connection)).union(finish(connection))
}

/// Nobody had sent a FIN: whoever sent the RST began it, and on a time-out it was our own kernel.
#[inline(always)]
const fn initiator_of_abort(connection: &Connection) -> Initiator {
    if connection.flags.contains(ConnectionFlags::RESET_RECEIVED) {
        Initiator::Remote
    } else {
        Initiator::Local
    }
}

/// CLOSE without a sign of why: a RST of ours may follow, or the end of the socket.
#[inline(always)]
fn end(connection: &mut Connection) -> DueRecords {
    let closing = if connection.is(Phase::Open) { DueRecords::CLOSING } else { DueRecords::empty() };
    connection.phase = Phase::Ending as u8;
    closing
}

#[inline(always)]
fn finish(connection: &mut Connection) -> DueRecords {
    if connection.flags.contains(ConnectionFlags::RESET_SENT) && connection.initiator == 0 {
        connection.initiator = Initiator::Local.code();
    }
    connection.phase = Phase::Done as u8;
    // A Fast Open child that closed and died before its handshake ended: its opening failed, too.
    let flags = connection.flags;
    let opened = flags.contains(ConnectionFlags::ESTABLISHED) || flags.contains(ConnectionFlags::PREEXISTING);
    if opened { DueRecords::CLOSE } else { DueRecords::OPEN.union(DueRecords::CLOSE) }
}

#[inline(always)]
fn failed(connection: &mut Connection, sock: &impl Sock, old: u32, now: u64) -> DueRecords {
    read_sample(connection, sock);
    connection.srtt_us = 0;
    connection.open_ns = now;
    connection.closed_ns = now;
    if connection.role == Role::Client.code() {
        connection.flags.insert(sock.syn_facts().union(dialled_both(old)));
        undefer_syn(connection, sock);
        if connection.error == 0 && !sock.has_in_flight() {
            never_began(connection, sock);
        }
    }
    connection.phase = Phase::Done as u8;
    DueRecords::OPEN
}

/// `connect()` fails after the change to SYN_SENT (`tcp_v4_connect`), or a program closes a socket whose SYN
/// is deferred.
#[inline(always)]
fn never_began(connection: &mut Connection, sock: &impl Sock) {
    if sock.lacks_ends() {
        connection.flags.insert(ConnectionFlags::NO_LOCAL_PORT);
    } else if !connection.flags.contains(ConnectionFlags::DEFERRED_SYN) {
        connection.flags.insert(ConnectionFlags::NO_SYN);
    }
}
