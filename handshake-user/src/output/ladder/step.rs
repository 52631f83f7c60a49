//! One line of a ladder: a segment or an event, and when it passed this end.

use std::time::Duration;

/// When a segment passed this end, since the start of the ladder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    /// The record holds it.
    Measured(Duration),
    /// Derived from measured times, assuming that both ends follow the protocol without delay.
    Derived(Duration),
    /// Neither.
    Unknown,
}

impl Moment {
    pub(super) fn measured(us: Option<Duration>) -> Self {
        us.map_or(Self::Unknown, Self::Measured)
    }

    pub(super) fn derived(us: Option<Duration>) -> Self {
        us.map_or(Self::Unknown, Self::Derived)
    }

    pub(super) const fn time(self) -> Option<Duration> {
        match self {
            Self::Measured(us) | Self::Derived(us) => Some(us),
            Self::Unknown => None,
        }
    }

    /// The same time, but not measured.
    pub(super) fn about(self) -> Self {
        Self::derived(self.time())
    }

    /// This much later, by the protocol.
    pub(super) fn later(self, us: Option<Duration>) -> Self {
        Self::derived(self.time().zip(us).map(|(at, us)| at.saturating_add(us)))
    }

    /// This much earlier, by the protocol.
    pub(super) fn earlier(self, us: Option<Duration>) -> Self {
        Self::derived(self.time().zip(us).and_then(|(at, us)| at.checked_sub(us)))
    }

    pub(super) fn or(self, other: Self) -> Self {
        if self == Self::Unknown { other } else { self }
    }
}

/// Where a line of the ladder points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// A segment of this end.
    Sent,
    /// A segment of the peer.
    Received,
    /// No segment: something that happened here.
    Here,
}

/// One line of a ladder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) at: Moment,
    pub(super) direction: Direction,
    /// What the segment carries, or what happened.
    pub(super) what: String,
    /// A remark beside it.
    pub(super) remark: String,
}

impl Step {
    pub(super) fn new(at: Moment, direction: Direction, what: impl Into<String>) -> Self {
        Self { at, direction, what: what.into(), remark: String::new() }
    }

    pub(super) fn remark(mut self, remark: impl Into<String>) -> Self {
        self.remark = remark.into();
        self
    }
}
