//! Counters that the kernel side keeps per CPU: the truth for totals, also when a record could not be
//! delivered.

use crate::{
    connection::Connection,
    tcp::{close, open},
    vocabulary::{CloseStyle, Family, FastOpen, Initiator, Outcome, Role, TlsOutcome},
};

/// Why something was not delivered or not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum DropReason {
    /// The ring buffer had no room: user space reads too slowly.
    RingFull = 0,
    /// No state could be kept for a connection that began: the table is full. Counted once for each.
    StateFull = 1,
    /// Too many closings went on in a time-wait minisocket within a second: this one is not followed.
    TimeWaitFull = 2,
}

impl DropReason {
    /// Every reason, in the order of its slot.
    pub const ALL: &[Self] = &[Self::RingFull, Self::StateFull, Self::TimeWaitFull];

    /// The label value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RingFull => "ring_full",
            Self::StateFull => "state_full",
            Self::TimeWaitFull => "time_wait_full",
        }
    }
}

const OPENS: usize = 0;
const FAST_OPENS: usize = OPENS + Role::SLOTS * Family::SLOTS * Outcome::SLOTS;
const SYN_RETRANSMITS: usize = FAST_OPENS + Role::SLOTS * FastOpen::SLOTS;
const CLOSES: usize = SYN_RETRANSMITS + Role::SLOTS;
const BEGUN: usize = CLOSES + Role::SLOTS * Initiator::SLOTS * CloseStyle::SLOTS;
const CLOSING: usize = BEGUN + Role::SLOTS;
/// Slot of the changes of state that the kernel skipped and the reentrant program saw.
pub const NESTED: usize = CLOSING + Role::SLOTS;
const LOST: usize = NESTED + 1;
const TLS_LOST: usize = LOST + DropReason::ALL.len();
const UNFOLLOWED: usize = TLS_LOST + TlsOutcome::SLOTS;
const UNOPENED: usize = UNFOLLOWED + Role::SLOTS;
/// Slot of the `connect()`s that there was no room for. Their openings are among [`begun`], and end as
/// [`LATE`].
pub const UNKEPT: usize = UNOPENED + Role::SLOTS;
/// Slot of the openings of clients that ended and whose beginning was not followed: there was no room, it was
/// before the program began, or it was missed.
pub const LATE: usize = UNKEPT + 1;
const SETUPS: usize = LATE + 1;
/// The most round trips of a setup without TLS.
pub const MAX_SETUP_ROUND_TRIPS: u8 = 1;
const END: usize = SETUPS + Role::SLOTS * (MAX_SETUP_ROUND_TRIPS as usize + 1);

/// How many counters there is room for: a power of two, so that a mask keeps every index inside.
pub const SLOTS: usize = 256;

const _: () = assert!(SLOTS.is_power_of_two() && END <= SLOTS);

/// Slot of `opens` by role, family and outcome.
#[must_use]
#[inline(always)]
pub const fn opens(role: Option<Role>, family: Option<Family>, outcome: Option<Outcome>) -> usize {
    let row = Role::code_of(role) as usize * Family::SLOTS + Family::code_of(family) as usize;
    OPENS + row * Outcome::SLOTS + Outcome::code_of(outcome) as usize
}

/// Slot of the Fast Open results; `none` is not counted, it is the rest of the opens.
#[must_use]
#[inline(always)]
pub const fn fast_opens(role: Option<Role>, result: Option<FastOpen>) -> usize {
    FAST_OPENS + Role::code_of(role) as usize * FastOpen::SLOTS + FastOpen::code_of(result) as usize
}

/// Slot of the SYN (client) and SYN-ACK (server) retransmissions.
#[must_use]
#[inline(always)]
pub const fn syn_retransmits(role: Role) -> usize {
    SYN_RETRANSMITS + role.code() as usize
}

/// Slot of `closes` by role, initiator and style.
#[must_use]
#[inline(always)]
pub const fn closes(role: Option<Role>, initiator: Option<Initiator>, style: Option<CloseStyle>) -> usize {
    let row = Role::code_of(role) as usize * Initiator::SLOTS + Initiator::code_of(initiator) as usize;
    CLOSES + row * CloseStyle::SLOTS + CloseStyle::code_of(style) as usize
}

/// Slot of the openings that began.
#[must_use]
#[inline(always)]
pub const fn begun(role: Option<Role>) -> usize {
    BEGUN + Role::code_of(role) as usize
}

/// Slot of the closings that began.
#[must_use]
#[inline(always)]
pub const fn closing(role: Option<Role>) -> usize {
    CLOSING + Role::code_of(role) as usize
}

/// Slot of what was lost.
#[must_use]
#[inline(always)]
pub const fn lost(loss: DropReason) -> usize {
    LOST + loss as usize
}

/// Slot of the TLS handshakes whose record was lost, by the code of their [`TlsOutcome`].
#[must_use]
#[inline(always)]
pub const fn tls_lost(outcome: u8) -> usize {
    TLS_LOST + if (outcome as usize) < TlsOutcome::SLOTS { outcome as usize } else { 0 }
}

/// Slot of the connections that were established while there was no room to follow them: whatever is seen of
/// them later, their role is not known any more. By the role that they had, unknown where the opening itself
/// was not seen to end.
#[must_use]
#[inline(always)]
pub const fn unfollowed(role: Option<Role>) -> usize {
    UNFOLLOWED + Role::code_of(role) as usize
}

/// Slot of the closings of Fast Open children that never became established.
#[must_use]
#[inline(always)]
pub const fn unopened(role: Option<Role>) -> usize {
    UNOPENED + Role::code_of(role) as usize
}

/// Slot of the setups without TLS, by their round trips. Counted only while the kernel side fills
/// [`crate::histograms`].
#[must_use]
#[inline(always)]
pub const fn setups(role: Option<Role>, round_trips: u8) -> usize {
    let round_trips = if round_trips < MAX_SETUP_ROUND_TRIPS { round_trips } else { MAX_SETUP_ROUND_TRIPS };
    SETUPS + Role::code_of(role) as usize * (MAX_SETUP_ROUND_TRIPS as usize + 1) + round_trips as usize
}

/// The slot of `opens` that this connection's opening belongs to.
#[must_use]
#[inline(always)]
pub const fn open_slot(connection: &Connection) -> usize {
    opens(connection.role(), connection.family(), open::outcome(connection))
}

/// The slot of `closes` that this connection's closing belongs to.
#[must_use]
#[inline(always)]
pub const fn close_slot(connection: &Connection) -> usize {
    closes(connection.role(), connection.initiator(), close::style(connection))
}

/// The sum over all CPUs, by slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Totals([u64; SLOTS]);

impl Totals {
    /// Nothing counted.
    pub const ZERO: Self = Self([0; SLOTS]);

    /// Adds one CPU's counters.
    pub fn add(&mut self, cpu: &[u64; SLOTS]) {
        for (sum, count) in self.0.iter_mut().zip(cpu) {
            *sum = sum.wrapping_add(*count);
        }
    }

    /// The count in a slot that one of this module's functions named.
    #[must_use]
    pub fn at(&self, slot: usize) -> u64 {
        self.0.get(slot).copied().unwrap_or(0)
    }
}
