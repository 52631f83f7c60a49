//! The segments of a connection and when each passed this end: measured, or known by the protocol only.

use handshake_common::TlsOutcome;

use super::{closing, handshake, opening};
use crate::record::Record;

/// When a segment passed this end, microseconds since the start of the ladder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    /// The record holds it.
    Measured(u64),
    /// It follows from what was measured, if everybody does what the protocol says, at once.
    Derived(u64),
    /// Neither.
    Unknown,
}

impl Moment {
    pub(super) fn measured(us: Option<u64>) -> Self {
        us.map_or(Self::Unknown, Self::Measured)
    }

    pub(super) fn derived(us: Option<u64>) -> Self {
        us.map_or(Self::Unknown, Self::Derived)
    }

    pub(super) const fn us(self) -> Option<u64> {
        match self {
            Self::Measured(us) | Self::Derived(us) => Some(us),
            Self::Unknown => None,
        }
    }

    /// The same time, but not measured.
    pub(super) fn about(self) -> Self {
        Self::derived(self.us())
    }

    /// So much later, known by the protocol.
    pub(super) fn later(self, us: Option<u64>) -> Self {
        Self::derived(self.us().zip(us).map(|(at, us)| at.saturating_add(us)))
    }

    /// So much earlier, known by the protocol.
    pub(super) fn earlier(self, us: Option<u64>) -> Self {
        Self::derived(self.us().zip(us).and_then(|(at, us)| at.checked_sub(us)))
    }

    pub(super) fn or(self, other: Self) -> Self {
        if self == Self::Unknown { other } else { self }
    }
}

/// Which way a line of the ladder points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
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
    pub(super) way: Way,
    /// What the segment carries, or what happened.
    pub(super) what: String,
    /// What is to be said beside it.
    pub(super) remark: String,
}

impl Step {
    pub(super) fn new(at: Moment, way: Way, what: impl Into<String>) -> Self {
        Self { at, way, what: what.into(), remark: String::new() }
    }

    pub(super) fn remark(mut self, remark: impl Into<String>) -> Self {
        self.remark = remark.into();
        self
    }
}

/// Everything that a record tells of a connection, in the order in which it passed this end.
pub(super) fn steps(record: &Record) -> Vec<Step> {
    let mut tls = handshake::steps(record);
    in_order(&mut tls);
    let mut opening = opening::steps(record, &mut tls);
    in_order(&mut opening);
    let mut steps = merged(opening, tls);
    if let Some(close) = &record.close {
        let mut closing = closing::steps(record, close);
        in_order(&mut closing);
        let set_up = record.tls.as_ref().is_none_or(|tls| tls.outcome == Some(TlsOutcome::Completed));
        if !set_up {
            // The program may have noticed the failure after the RST that it caused.
            return merged(steps, closing);
        }
        if !steps.is_empty() {
            steps.push(Step::new(Moment::Unknown, Way::Here, "… data, of which no record tells"));
        }
        steps.extend(closing);
    }
    steps
}

/// Derived times give way to measured ones: none may lie before what was measured earlier in the list, or after what was
/// measured later.
fn in_order(steps: &mut [Step]) {
    let mut earliest = 0;
    for step in &mut *steps {
        match &mut step.at {
            Moment::Derived(us) => {
                *us = earliest.max(*us);
                earliest = *us;
            }
            Moment::Measured(us) => earliest = earliest.max(*us),
            Moment::Unknown => {}
        }
    }
    let mut latest = u64::MAX;
    for step in steps.iter_mut().rev() {
        match &mut step.at {
            Moment::Derived(us) => *us = latest.min(*us),
            Moment::Measured(us) => latest = latest.min(*us),
            Moment::Unknown => {}
        }
    }
}

/// Puts two lists together by time; what has no time stays behind what it followed.
fn merged(first: Vec<Step>, second: Vec<Step>) -> Vec<Step> {
    let mut keyed = Vec::with_capacity(first.len() + second.len());
    let end = first.iter().filter_map(|step| step.at.us()).max().unwrap_or(0);
    for (list, start) in [(first, 0), (second, end)] {
        let mut key = start;
        for step in list {
            key = step.at.us().unwrap_or(key);
            keyed.push((key, step));
        }
    }
    keyed.sort_by_key(|(key, _)| *key);
    keyed.into_iter().map(|(_, step)| step).collect()
}

#[cfg(test)]
mod tests {
    use super::{
        Moment::{Derived, Measured, Unknown},
        *,
    };

    #[test]
    fn derived_times_give_way_to_measured_ones() {
        let at = |moments: &[Moment]| {
            let mut steps: Vec<_> = moments.iter().map(|&at| Step::new(at, Way::Sent, "")).collect();
            in_order(&mut steps);
            steps.into_iter().map(|step| step.at).collect::<Vec<_>>()
        };
        assert_eq!(
            at(&[Measured(10), Derived(5), Unknown, Derived(90), Measured(70)]),
            [Measured(10), Derived(10), Unknown, Derived(70), Measured(70)]
        );
    }
}
