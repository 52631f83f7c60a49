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
    /// For each bucket, how many of the kernel side's are not above its bound.
    below: Arc<[usize]>,
    counted: Arc<Mutex<Counted>>,
}

/// The kernel side's histograms by the values of their labels, in the order of the labels' names.
type Counted = HashMap<Vec<&'static str>, histograms::Histogram>;

impl HistogramFamily {
    /// The bounds are ascending, and those of the records are among the kernel side's, if it counts at all.
    pub(super) fn new(records: HistogramVec, bounds: &[f64], kernel_bounds: &[f64]) -> Self {
        let below = |bound: &f64| kernel_bounds.partition_point(|kernel| kernel <= bound).min(SUM);
        Self { records, below: bounds.iter().map(below).collect(), counted: Arc::default() }
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
                metric.set_histogram(sum(metric.get_histogram(), counted, &self.below));
            }
        }
        families
    }
}

/// Adds the kernel side's buckets, which are finer and not cumulated, to those of the records.
fn sum(records: &proto::Histogram, counted: &histograms::Histogram, below: &[usize]) -> proto::Histogram {
    let (counts, sum_us) = (&counted[..SUM], counted[SUM]);
    let buckets = records.get_bucket().iter().zip(below).map(|(bucket, &below)| {
        let mut both = proto::Bucket::default();
        both.set_upper_bound(bucket.upper_bound());
        both.set_cumulative_count(bucket.cumulative_count() + counts[..below].iter().sum::<u64>());
        both
    });
    let mut both = proto::Histogram::default();
    both.set_bucket(buckets.collect());
    both.set_sample_count(records.get_sample_count() + counts.iter().sum::<u64>());
    #[expect(clippy::cast_precision_loss, reason = "2^53 µs are 285 years")]
    both.set_sample_sum(records.get_sample_sum() + sum_us as f64 / 1e6);
    both
}

#[cfg(test)]
mod tests {
    use handshake_common::histograms::Bounds;
    use prometheus::HistogramOpts;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        config::{Buckets, Purpose},
        exporter::metrics::timing::seconds,
        kernel::probe::Histograms,
    };

    proptest! {
        #[test]
        fn finer_buckets_of_the_kernel_side_add_up_to_those_of_the_family(
            values in prop::collection::vec(
                prop_oneof![0..200_u64, 0..3_000_000_u64, 0..2_000_000_000_u64, (0..9_u32).prop_map(|ten| 10_u64.pow(ten))],
                1..50,
            ),
        ) {
            let kernel_bounds = Buckets::default().kernel_bounds();
            let kernel = Bounds::new(&kernel_bounds).unwrap();
            for purpose in [Purpose::RoundTrip, Purpose::Opening, Purpose::Wait] {
                let bounds = Buckets::default().bounds(purpose);
                let options = HistogramOpts::new("a", "a").buckets(bounds.clone());
                let [by_kernel, by_records] = [(); 2].map(|()| {
                    let records = HistogramVec::new(options.clone(), &["role"]).unwrap();
                    records.with_label_values(&["client"]);
                    HistogramFamily::new(records, &bounds, &kernel_bounds)
                });
                let mut counted = Histograms::default();
                for us in &values {
                    counted.observe(&kernel, 0, Some(*us));
                    by_records.records().with_label_values(&["client"]).observe(seconds(std::time::Duration::from_micros(*us)));
                }
                by_kernel.set_counted(["role"], ["client"], counted.at(0));
                let [by_kernel, by_records] = [by_kernel, by_records].map(|family| {
                    let histogram = family.collect()[0].get_metric()[0].get_histogram().clone();
                    let counts: Vec<_> = histogram.get_bucket().iter().map(proto::Bucket::cumulative_count).collect();
                    (counts, histogram.get_sample_count())
                });
                prop_assert_eq!(&by_kernel, &by_records);
                prop_assert_eq!(by_kernel.1, values.len() as u64);
            }
        }
    }
}
