//! What the facts of a closing mean. Pure: the kernel side counts by these functions, user space publishes by
//! them.

use super::open;
use crate::{
    connection::{Connection, ConnectionFlags, micros_between},
    vocabulary::{CloseStyle, Role},
};

/// How the connection closed.
#[must_use]
#[inline(always)]
pub const fn style(connection: &Connection) -> Option<CloseStyle> {
    let flags = connection.flags;
    if flags.contains(ConnectionFlags::TIMED_OUT) {
        Some(CloseStyle::TimedOut)
    } else if flags.contains(ConnectionFlags::RESET_RECEIVED) {
        Some(CloseStyle::ResetReceived)
    } else if flags.contains(ConnectionFlags::RESET_SENT) {
        Some(CloseStyle::ResetSent)
    } else if flags.contains(ConnectionFlags::CLOSING) {
        Some(CloseStyle::Simultaneous)
    } else if flags.contains(ConnectionFlags::FIN_WITH_ACK) {
        Some(CloseStyle::ThreeSegments)
    } else if flags.contains(ConnectionFlags::ACK_WITHOUT_FIN) {
        Some(CloseStyle::FourSegments)
    } else if connection.fin_acked_ns == 0 {
        // No FIN of ours was acknowledged, and no RST was seen: something we do not know ended it.
        None
    } else if flags.contains(ConnectionFlags::ACKED_BEFORE_CLOSE) {
        Some(CloseStyle::FourSegments)
    } else if flags.contains(ConnectionFlags::ACK_OWED_AT_CLOSE)
        && !flags.contains(ConnectionFlags::UNSENT_AT_CLOSE)
    {
        Some(CloseStyle::ThreeSegments)
    } else {
        // Data of ours left before the FIN and may or may not have carried the ACK.
        None
    }
}

/// Whether the FINs went their way, so that there are phases to time.
#[inline(always)]
const fn is_orderly(connection: &Connection) -> bool {
    !connection.flags.contains(ConnectionFlags::RESET_RECEIVED)
        && !connection.flags.contains(ConnectionFlags::RESET_SENT)
        && !connection.flags.contains(ConnectionFlags::TIMED_OUT)
}

/// Whether our program closed after the peer's FIN had come.
#[inline(always)]
const fn is_passive(connection: &Connection) -> bool {
    connection.flags.contains(ConnectionFlags::ACKED_BEFORE_CLOSE)
        || connection.flags.contains(ConnectionFlags::ACK_OWED_AT_CLOSE)
}

/// Active side: our FIN sent → the peer's FIN received. Passive side: the peer's FIN received → our FIN
/// acknowledged.
#[must_use]
#[inline(always)]
pub const fn duration_us(connection: &Connection) -> Option<u64> {
    if !is_orderly(connection) {
        None
    } else if is_passive(connection) {
        micros_between(connection.peer_fin_ns, connection.fin_acked_ns)
    } else {
        micros_between(connection.our_fin_ns, connection.peer_fin_ns)
    }
}

/// Our FIN → its ACK.
#[must_use]
#[inline(always)]
pub const fn ack_wait_us(connection: &Connection) -> Option<u64> {
    micros_between(connection.our_fin_ns, connection.fin_acked_ns)
}

/// Active side: the ACK of our FIN → the peer's FIN, the peer's program. Passive side: the peer's FIN → our
/// `close()`, our own program.
#[must_use]
#[inline(always)]
pub const fn app_wait_us(connection: &Connection) -> Option<u64> {
    if is_passive(connection) {
        micros_between(connection.peer_fin_ns, connection.our_close_ns)
    } else if connection.flags.contains(ConnectionFlags::FIN_WITH_ACK) {
        Some(0)
    } else {
        micros_between(connection.fin_acked_ns, connection.peer_fin_ns)
    }
}

/// Whether the peer's FIN went to the time-wait minisocket, where no tracepoint sees it.
#[must_use]
pub const fn peer_fin_unseen(connection: &Connection) -> bool {
    connection.flags.contains(ConnectionFlags::PEER_FIN_UNSEEN)
        && is_orderly(connection)
        && connection.peer_fin_ns == 0
}

/// Whether a time-wait minisocket took over (`tcp_time_wait`): what becomes of the connection after its
/// socket is still to be learnt. Meant for the close record.
#[must_use]
#[inline(always)]
pub const fn enters_time_wait(connection: &Connection) -> bool {
    let flags = connection.flags;
    let active = flags.contains(ConnectionFlags::FIN_WITH_ACK)
        || flags.contains(ConnectionFlags::ACK_WITHOUT_FIN)
        || flags.contains(ConnectionFlags::CLOSING) && connection.fin_acked_ns != 0;
    active && is_orderly(connection) && connection.closed_ns != 0
}

/// From the beginning of the opening (SYN; on a server the first SYN-ACK) to CLOSE.
#[must_use]
pub const fn lifetime_us(connection: &Connection) -> Option<u64> {
    match connection.role() {
        Some(Role::Client) if !connection.flags.contains(ConnectionFlags::PREEXISTING) => {
            micros_between(connection.syn_ns, connection.closed_ns)
        }
        Some(Role::Server) => {
            match (open::duration_us(connection), micros_between(connection.open_ns, connection.closed_ns)) {
                (Some(opening), Some(rest)) => Some(opening + rest),
                _ => None,
            }
        }
        _ => None,
    }
}
