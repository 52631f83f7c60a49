//! A family of histograms with two sources: records, and the kernel side's own histograms.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use handshake_common::histograms::{self, SUM};
use prometheus::{
    HistogramVec,
    core::{Collector, Desc},
    proto,
};

/// What the registry collects: each series of the records, with what the kernel side has counted of it.
#[derive(Clone)]
pub(super) struct HistogramFamily {
    records: HistogramVec,
    counted: Arc<Mutex<Counted>>,
}

/// The kernel side's histograms by the values of their labels, in the order of the labels' names.
type Counted = HashMap<Vec<&'static str>, histograms::Histogram>;

impl HistogramFamily {
    pub(super) fn new(records: HistogramVec) -> Self {
        Self { records, counted: Arc::default() }
    }

    /// What records are observed in.
    pub(super) const fn records(&self) -> &HistogramVec {
        &self.records
    }

    /// Sets what the kernel side has counted of a series that the records have as well.
    pub(super) fn set_counted<const N: usize>(
        &self,
        names: [&'static str; N],
        values: [&'static str; N],
        histogram: &histograms::Histogram,
    ) {
        let mut labels: Vec<_> = names.into_iter().zip(values).collect();
        labels.sort_unstable();
        let values = labels.into_iter().map(|(_, value)| value).collect();
        self.counted().insert(values, *histogram);
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        // A map of numbers has no half-written state that a panic could leave behind.
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for HistogramFamily {
    fn desc(&self) -> Vec<&Desc> {
        self.records.desc()
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let mut families = self.records.collect();
        let counted = self.counted();
        for metric in families.iter_mut().flat_map(proto::MetricFamily::mut_metric) {
            // The library sorts labels by their names.
            let values: Vec<_> = metric.get_label().iter().map(proto::LabelPair::value).collect();
            if let Some(counted) = counted.get(&values) {
                metric.set_histogram(sum(metric.get_histogram(), counted));
            }
        }
        families
    }
}

/// Adds the kernel side's buckets, which are not cumulated, to those of the records.
fn sum(records: &proto::Histogram, counted: &histograms::Histogram) -> proto::Histogram {
    let (counts, sum_us) = (&counted[..SUM], counted[SUM]);
    let mut below = 0;
    let buckets = records.get_bucket().iter().zip(counts).map(|(bucket, count)| {
        below += count;
        let mut both = proto::Bucket::default();
        both.set_upper_bound(bucket.upper_bound());
        both.set_cumulative_count(bucket.cumulative_count() + below);
        both
    });
    let mut both = proto::Histogram::default();
    both.set_bucket(buckets.collect());
    both.set_sample_count(records.get_sample_count() + counts.iter().sum::<u64>());
    #[expect(clippy::cast_precision_loss, reason = "2^53 µs are 285 years")]
    both.set_sample_sum(records.get_sample_sum() + sum_us as f64 / 1e6);
    both
}
