//! The setup of a connection without TLS: from the start of the opening to the moment from which the client
//! may send application data. Pure: the kernel side counts by these functions, user space publishes by them.

use super::open;
use crate::{
    connection::Connection,
    vocabulary::{FastOpen, Outcome, Role},
};

/// The round trips that it took. Returns `None` if the opening failed or was not seen in full.
#[must_use]
#[inline(always)]
pub const fn round_trips(connection: &Connection) -> Option<u8> {
    if !is_known(connection) {
        return None;
    }
    match open::fast_open(connection) {
        Some(FastOpen::DataAccepted) => Some(0),
        Some(_) => Some(1),
        None => None,
    }
}

/// How long it took, microseconds: with Fast Open nothing, the data left with the SYN.
#[must_use]
#[inline(always)]
pub const fn duration_us(connection: &Connection) -> Option<u64> {
    match round_trips(connection) {
        Some(0) => Some(0),
        Some(_) => open::duration_us(connection),
        None => None,
    }
}

/// What the round trips do not explain of it, microseconds; may be below zero.
#[must_use]
#[inline(always)]
pub const fn excess_us(connection: &Connection) -> Option<i64> {
    match (round_trips(connection), duration_us(connection), open::rtt_us(connection)) {
        (Some(trips), Some(duration), Some(rtt)) => {
            Some(duration.cast_signed() - rtt.cast_signed() * trips as i64)
        }
        _ => None,
    }
}

#[inline(always)]
const fn is_known(connection: &Connection) -> bool {
    matches!(open::outcome(connection), Some(Outcome::Established))
        && matches!(connection.role(), Some(Role::Client | Role::Server))
        && open::duration_us(connection).is_some()
}
