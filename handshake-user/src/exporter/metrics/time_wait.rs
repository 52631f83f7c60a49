//! How long TIME_WAIT lasted, and how it ended.

use handshake_common::TimeWaitEnd;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, Registry};

use super::timing::{seconds, tells};
use crate::{
    config::{self, Purpose},
    event::Close,
};

/// The families of TIME_WAIT.
pub(super) struct TimeWait {
    lasted: Histogram,
    buckets: Vec<f64>,
    /// In the order of [`TimeWaitEnd::ALL`].
    ends: Vec<IntCounter>,
    pub(super) unknown: IntCounter,
}

impl TimeWait {
    pub(super) fn new(registry: &Registry, settings: &config::Metrics) -> prometheus::Result<Self> {
        let buckets = settings.buckets.bounds(Purpose::TimeWait);
        let options = HistogramOpts::new(
            "handshake_tcp_time_wait_seconds",
            "The entry into TIME_WAIT to its end: its time ran out, or a new connection took its ends.",
        );
        let lasted = Histogram::with_opts(options.buckets(buckets.clone()))?;
        let ends = IntCounterVec::new(
            Opts::new(
                "handshake_tcp_time_wait_ends_total",
                "Closings that a time-wait minisocket took over, by how that ended.",
            ),
            &["end"],
        )?;
        registry.register(Box::new(lasted.clone()))?;
        registry.register(Box::new(ends.clone()))?;
        Ok(Self {
            lasted,
            buckets,
            ends: TimeWaitEnd::ALL.iter().map(|end| ends.with_label_values(&[end.as_str()])).collect(),
            unknown: ends.with_label_values(&["unknown"]),
        })
    }

    pub(super) fn ended(&self, close: &Close, end: TimeWaitEnd) {
        if let Some(count) = self.ends.get(end as usize) {
            count.inc();
        }
        if let Some(lasted) = close.time_wait
            && tells(&self.buckets, lasted, close.grain.unwrap_or_default())
        {
            self.lasted.observe(seconds(lasted));
        }
    }
}
