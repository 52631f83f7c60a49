//! Histograms that the kernel side keeps per CPU, beside its [`crate::totals`]: of every connection, whatever
//! becomes of its records. A value is in whole microseconds, as in the records, and a bucket counts what is
//! at most its bound, as Prometheus' label `le` says.

use crate::{
    connection::Connection,
    tcp::{close, open, setup},
    vocabulary::{CloseStyle, Family, FastOpen, FinalAck, Initiator, Outcome, Role},
};

/// How many bounds there may be. One less than a power of two, so that the search takes the same few steps
/// for any number of them.
pub const MAX_BOUNDS: usize = (1 << SEARCH_STEPS) - 1;
const SEARCH_STEPS: u32 = 5;

/// Name of the global in the eBPF object that holds the [`Bounds`].
pub const SYMBOL: &str = "BOUNDS";

/// The upper bounds of the buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Bounds {
    /// How many there are; 0: the kernel side fills no histograms, and sends the records of all connections.
    pub number: u32,
    /// Where the search for a bucket begins: 0, which the verifier knows and the compiler must not. It would
    /// make a bitwise OR of the search's additions, and verifiers before 6.8 take the result of that for any
    /// number.
    pub start: u32,
    /// Microseconds, inclusive, in ascending order; the rest is [`Bounds::NO_BOUND`].
    pub at_most_us: [u64; MAX_BOUNDS],
}

impl Bounds {
    /// No histograms.
    pub const NONE: Self = Self { number: 0, start: 0, at_most_us: [Self::NO_BOUND; MAX_BOUNDS] };
    /// No value reaches it: none of nanoseconds in 64 bits has so many microseconds.
    pub const NO_BOUND: u64 = u64::MAX >> 1;
}

/// One histogram of one CPU: how many values each bucket holds, not cumulated, with those above every bound
/// behind the last; and at [`SUM`] the sum of all values, microseconds.
pub type Histogram = [u64; SUM + 1];
/// See [`Histogram`].
pub const SUM: usize = MAX_BOUNDS + 1;

/// The bucket of a value, the first whose bound is not below it. `bound` returns a member of
/// [`Bounds::at_most_us`], `start` is [`Bounds::start`].
///
/// A binary search without branches, of which the verifier would have to follow each.
#[must_use]
#[inline(always)]
pub fn bucket(us: u64, start: u32, bound: impl Fn(u64) -> u64) -> u64 {
    let mut at = u64::from(start);
    let mut bit = SEARCH_STEPS;
    while bit > 0 {
        bit -= 1;
        // Both are less than 2^63, so the highest bit of the difference says which is less.
        at += (bound(at + (1 << bit) - 1).wrapping_sub(us) >> 63) << bit;
    }
    at
}

const OPEN_DURATION: usize = 0;
const OPEN_RTT: usize = OPEN_DURATION + Role::SLOTS * Family::SLOTS * FastOpen::SLOTS * FinalAck::SLOTS;
const CLOSE_DURATION: usize = OPEN_RTT + Role::SLOTS * Family::SLOTS;
const CLOSE_ACK_WAIT: usize = CLOSE_DURATION + Role::SLOTS * Initiator::SLOTS * CloseStyle::SLOTS;
const CLOSE_APP_WAIT: usize = CLOSE_ACK_WAIT + Role::SLOTS * Initiator::SLOTS;
const ACCEPT_WAIT: usize = CLOSE_APP_WAIT + Role::SLOTS * Initiator::SLOTS;
const SETUP_DURATION: usize = ACCEPT_WAIT + Family::SLOTS;
const SETUP_EXCESS: usize = SETUP_DURATION + Role::SLOTS;

/// How many series there are.
pub const SERIES: usize = SETUP_EXCESS + Role::SLOTS;

/// Series of the durations of openings.
#[must_use]
#[inline(always)]
pub const fn open_duration(
    role: Option<Role>,
    family: Option<Family>,
    fast_open: Option<FastOpen>,
    final_ack: Option<FinalAck>,
) -> usize {
    let row = Role::code_of(role) as usize * Family::SLOTS + Family::code_of(family) as usize;
    let row = row * FastOpen::SLOTS + FastOpen::code_of(fast_open) as usize;
    OPEN_DURATION + row * FinalAck::SLOTS + FinalAck::code_of(final_ack) as usize
}

/// Series of the round trips of openings.
#[must_use]
#[inline(always)]
pub const fn open_rtt(role: Option<Role>, family: Option<Family>) -> usize {
    OPEN_RTT + Role::code_of(role) as usize * Family::SLOTS + Family::code_of(family) as usize
}

/// Series of the durations of closings.
#[must_use]
#[inline(always)]
pub const fn close_duration(
    role: Option<Role>,
    initiator: Option<Initiator>,
    style: Option<CloseStyle>,
) -> usize {
    CLOSE_DURATION + row_of_closing(role, initiator) * CloseStyle::SLOTS + CloseStyle::code_of(style) as usize
}

/// Series of how long the ACK of our FIN took.
#[must_use]
#[inline(always)]
pub const fn close_ack_wait(role: Option<Role>, initiator: Option<Initiator>) -> usize {
    CLOSE_ACK_WAIT + row_of_closing(role, initiator)
}

/// Series of how long the program took that closed last.
#[must_use]
#[inline(always)]
pub const fn close_app_wait(role: Option<Role>, initiator: Option<Initiator>) -> usize {
    CLOSE_APP_WAIT + row_of_closing(role, initiator)
}

#[inline(always)]
const fn row_of_closing(role: Option<Role>, initiator: Option<Initiator>) -> usize {
    Role::code_of(role) as usize * Initiator::SLOTS + Initiator::code_of(initiator) as usize
}

/// Series of how long established connections lay in the accept queue.
#[must_use]
#[inline(always)]
pub const fn accept_wait(family: Option<Family>) -> usize {
    ACCEPT_WAIT + Family::code_of(family) as usize
}

/// Series of the durations of setups without TLS.
#[must_use]
#[inline(always)]
pub const fn setup_duration(role: Option<Role>) -> usize {
    SETUP_DURATION + Role::code_of(role) as usize
}

/// Series of what their round trips do not explain of them.
#[must_use]
#[inline(always)]
pub const fn setup_excess(role: Option<Role>) -> usize {
    SETUP_EXCESS + Role::code_of(role) as usize
}

/// What an opening that has ended adds: each series, and the value if it is known.
#[inline(always)]
pub fn opened(connection: &Connection, mut observe: impl FnMut(usize, Option<u64>)) {
    if !matches!(open::outcome(connection), Some(Outcome::Established)) {
        return;
    }
    let (role, family) = (connection.role(), connection.family());
    let series = open_duration(role, family, open::fast_open(connection), open::final_ack(connection));
    observe(series, open::duration_us(connection));
    observe(open_rtt(role, family), open::rtt_us(connection));
}

/// What an accepted connection adds: its series, and the value if it is known.
#[inline(always)]
pub fn accepted(connection: &Connection, mut observe: impl FnMut(usize, Option<u64>)) {
    observe(accept_wait(connection.family()), open::accept_wait_us(connection));
}

/// What a closing that has ended adds: each series, and the value if it is known.
#[inline(always)]
pub fn closed(connection: &Connection, mut observe: impl FnMut(usize, Option<u64>)) {
    let (role, initiator) = (connection.role(), connection.initiator());
    let series = close_duration(role, initiator, close::style(connection));
    observe(series, close::duration_us(connection));
    observe(close_ack_wait(role, initiator), close::ack_wait_us(connection));
    observe(close_app_wait(role, initiator), close::app_wait_us(connection));
}

/// What the setup of a connection without TLS adds: each series, and the value if it is known. Below zero
/// there is no bucket, so an excess below it counts as none.
#[inline(always)]
pub fn set_up(connection: &Connection, mut observe: impl FnMut(usize, Option<u64>)) {
    let role = connection.role();
    observe(setup_duration(role), setup::duration_us(connection));
    let excess = match setup::excess_us(connection) {
        Some(excess) if excess > 0 => Some(excess.cast_unsigned()),
        Some(_) => Some(0),
        None => None,
    };
    observe(setup_excess(role), excess);
}

#[cfg(feature = "user")]
impl Bounds {
    /// Of bounds in seconds, ascending and above zero. Returns `None` if there are none or too many.
    #[must_use]
    pub fn new(seconds: &[f64]) -> Option<Self> {
        if seconds.is_empty() || seconds.len() > MAX_BOUNDS {
            return None;
        }
        let mut bounds = Self { number: u32::try_from(seconds.len()).ok()?, ..Self::NONE };
        for (at_most, seconds) in bounds.at_most_us.iter_mut().zip(seconds) {
            *at_most = whole_micros_up_to(*seconds);
        }
        Some(bounds)
    }
}

/// The most microseconds that, as seconds, are not above the bound.
#[cfg(feature = "user")]
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "rounded either way, and corrected where every number of microseconds has a float of its own"
)]
fn whole_micros_up_to(seconds: f64) -> u64 {
    /// 285 years: no value is larger.
    const EXACT: u64 = 1 << 53;
    let mut us = ((seconds * 1e6) as u64).min(Bounds::NO_BOUND);
    while us < EXACT && (us + 1) as f64 / 1e6 <= seconds {
        us += 1;
    }
    while us > 0 && us < EXACT && us as f64 / 1e6 > seconds {
        us -= 1;
    }
    us
}

// SAFETY: integers only, repr(C), and no padding (two u32 before u64).
#[cfg(feature = "user")]
unsafe impl aya::Pod for Bounds {}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Every value of a list, and unknown.
    fn or_unknown<T: Copy + 'static>(all: &'static [T]) -> impl Iterator<Item = Option<T>> + Clone {
        all.iter().copied().map(Some).chain([None])
    }

    #[test]
    fn every_class_has_a_series_of_its_own() {
        let mut all: Vec<_> = or_unknown(Family::ALL).map(accept_wait).collect();
        for role in or_unknown(Role::ALL) {
            all.extend([setup_duration(role), setup_excess(role)]);
            for family in or_unknown(Family::ALL) {
                all.push(open_rtt(role, family));
                for fast_open in or_unknown(FastOpen::ALL) {
                    let final_acks = or_unknown(FinalAck::ALL);
                    all.extend(final_acks.map(|ack| open_duration(role, family, fast_open, ack)));
                }
            }
            for initiator in or_unknown(Initiator::ALL) {
                all.extend([close_ack_wait(role, initiator), close_app_wait(role, initiator)]);
                all.extend(or_unknown(CloseStyle::ALL).map(|style| close_duration(role, initiator, style)));
            }
        }
        assert_eq!(all.len(), SERIES);
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), SERIES);
        assert!(all.iter().all(|series| *series < SERIES));
    }
}
