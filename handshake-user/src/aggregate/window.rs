//! A sliding window over tallies, and their total.

use std::{collections::VecDeque, time::Duration};

use super::tally::Tally;

/// The number of a piece of time since the beginning.
pub(super) type Slot = u64;

/// The length of a window: it slides by whole slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    slot: Duration,
    slots: u32,
}

impl Default for Span {
    /// Half a minute, which slides by 5 s.
    fn default() -> Self {
        Self::of(Duration::from_secs(30))
    }
}

impl Span {
    /// Slots of a window: each may have the durations of every group.
    const SLOTS: u32 = 6;

    /// A window of this length, at least a second.
    #[must_use]
    pub fn of(length: Duration) -> Self {
        Self { slot: length.max(Duration::from_secs(1)) / Self::SLOTS, slots: Self::SLOTS }
    }

    /// Its length when it is full.
    #[must_use]
    pub fn length(self) -> Duration {
        self.slot * self.slots
    }

    /// The slot at this time since the beginning.
    pub(super) fn slot(self, age: Duration) -> Slot {
        u64::try_from(age.as_nanos() / self.slot.as_nanos()).unwrap_or(u64::MAX)
    }

    /// When a window that ends in this slot starts.
    pub(super) fn start(self, began: Duration, last: Slot) -> Duration {
        let first = (last + 1).saturating_sub(self.slots.into());
        let nanos = self.slot.as_nanos().saturating_mul(first.into());
        began + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// What happened in the window, slot by slot, and in all.
#[derive(Clone, Debug)]
pub struct Activity {
    span: Span,
    /// Those in which something happened, in order.
    slots: VecDeque<(Slot, Tally)>,
    total: Tally,
    last: Slot,
}

impl Activity {
    pub(super) fn new(span: Span) -> Self {
        Self { span, slots: VecDeque::new(), total: Tally::default(), last: 0 }
    }

    /// What happened in the window.
    #[must_use]
    pub fn window(&self) -> Tally {
        let mut sum = Tally::default();
        self.slots.iter().for_each(|(_, tally)| sum.add(tally));
        sum
    }

    /// What happened since the beginning.
    #[must_use]
    pub const fn total(&self) -> &Tally {
        &self.total
    }

    /// Whether nothing happened in the window.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.slots.is_empty()
    }

    /// The last slot in which something happened.
    pub(super) const fn last(&self) -> Slot {
        self.last
    }

    pub(super) fn add(&mut self, slot: Slot, tally: &Tally) {
        self.total.add(tally);
        self.last = self.last.max(slot);
        match self.slots.binary_search_by_key(&slot, |(slot, _)| *slot) {
            Ok(at) => self.slots[at].1.add(tally),
            Err(at) => self.slots.insert(at, (slot, tally.clone())),
        }
    }

    /// Takes counts away that were added in this slot.
    pub(super) fn subtract(&mut self, slot: Slot, tally: &Tally) {
        self.total.subtract(tally);
        if let Ok(at) = self.slots.binary_search_by_key(&slot, |(slot, _)| *slot) {
            self.slots[at].1.subtract(tally);
        }
    }

    /// Drops what has left a window that ends in this slot.
    pub(super) fn forget_before(&mut self, last: Slot) {
        while self.slots.front().is_some_and(|(slot, _)| slot + u64::from(self.span.slots) <= last) {
            self.slots.pop_front();
        }
    }

    /// Adds the total of another one.
    pub(super) fn fold(&mut self, other: &Self) {
        self.total.add(&other.total);
    }
}
