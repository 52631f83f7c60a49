//! Counters that mirror the kernel side's: at each scrape they advance by the difference.

use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

use super::class::{self, Axis, Codes};

/// One family of mirrored counters.
pub(super) struct Counting {
    family: IntCounterVec,
    mirrors: Vec<Mirror>,
}

struct Mirror {
    slot: usize,
    values: Vec<&'static str>,
    /// Created when it counts something, or from the start if that is possible.
    counter: Option<IntCounter>,
    seen: u64,
}

impl Counting {
    /// Registers the family; `slot` is where the kernel side counts a class.
    pub(super) fn new<const N: usize>(
        registry: &Registry,
        (name, help): (&str, &str),
        axes: [Axis; N],
        slot: impl Fn(Codes<N>) -> Option<usize>,
        possible: impl Fn(Codes<N>) -> bool,
    ) -> prometheus::Result<Self> {
        let family = IntCounterVec::new(Opts::new(name, help), &axes.map(|axis| axis.name))?;
        registry.register(Box::new(family.clone()))?;
        let mirrors = class::all(&axes)
            .filter_map(|codes| {
                let values = class::words(&axes, codes).to_vec();
                let counter = possible(codes).then(|| family.with_label_values(&values));
                Some(Mirror { slot: slot(codes)?, values, counter, seen: 0 })
            })
            .collect();
        Ok(Self { family, mirrors })
    }

    /// Advances every counter to the value `at` returns for its slot.
    pub(super) fn advance(&mut self, at: impl Fn(usize) -> u64) {
        let Self { family, mirrors } = self;
        for Mirror { slot, values, counter, seen } in mirrors {
            let more = rise(seen, at(*slot));
            if more > 0 {
                counter.get_or_insert_with(|| family.with_label_values(values)).inc_by(more);
            }
        }
    }
}

/// How much a value kept elsewhere has risen since this was last asked.
pub(super) fn rise(seen: &mut u64, now: u64) -> u64 {
    let more = now.saturating_sub(*seen);
    *seen += more;
    more
}

/// Advances a counter to a value kept elsewhere; it never decreases.
pub(super) fn catch_up(counter: &IntCounter, now: u64) {
    counter.inc_by(now.saturating_sub(counter.get()));
}
