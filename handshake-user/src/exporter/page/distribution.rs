//! Histograms of the metrics, added up.

use std::time::Duration;

use prometheus::proto::Metric;

use crate::output::{chart::Bucket, text::duration};

/// Histograms of the same buckets, added up.
#[derive(Default)]
pub(super) struct Distribution {
    pub(super) count: u64,
    /// Upper bound in seconds, and how many are not above it.
    buckets: Vec<(f64, u64)>,
}

impl Distribution {
    pub(super) fn add(&mut self, metric: &Metric) {
        let histogram = metric.get_histogram();
        self.count += histogram.get_sample_count();
        let finite = histogram.get_bucket().iter().filter(|bucket| bucket.upper_bound().is_finite());
        for (i, bucket) in finite.enumerate() {
            match self.buckets.get_mut(i) {
                Some((_, below)) => *below += bucket.cumulative_count(),
                None => self.buckets.push((bucket.upper_bound(), bucket.cumulative_count())),
            }
        }
    }

    /// The buckets that are not empty.
    pub(super) fn buckets(&self) -> Vec<Bucket> {
        let mut buckets = Vec::new();
        let (mut over, mut before) = (0.0, 0);
        let unbounded = (f64::INFINITY, self.count);
        for &(bound, below) in self.buckets.iter().chain([&unbounded]) {
            let count = below.saturating_sub(before);
            if count > 0 {
                let over = Duration::try_from_secs_f64(over).unwrap_or_default();
                buckets.push(Bucket { over, to: Duration::try_from_secs_f64(bound).ok(), count });
            }
            (over, before) = (bound, below);
        }
        buckets
    }

    /// The smallest bound that so many of a hundred do not exceed.
    pub(super) fn bound(&self, percent: u64) -> String {
        let enough = |below: u64| u128::from(below) * 100 >= u128::from(self.count) * u128::from(percent);
        match (self.buckets.iter().find(|(_, below)| enough(*below)), self.buckets.last()) {
            (Some((bound, _)), _) => format!("≤ {}", seconds(*bound)),
            (None, Some((last, _))) => above(*last),
            (None, None) => "?".to_owned(),
        }
    }
}

fn above(bound: f64) -> String {
    format!("> {}", seconds(bound))
}

fn seconds(seconds: f64) -> String {
    duration(Duration::try_from_secs_f64(seconds).ok())
}

#[cfg(test)]
mod tests {
    use prometheus::{Histogram, HistogramOpts, core::Collector as _};

    use super::*;

    #[test]
    fn quantile_is_the_bound_that_enough_values_do_not_exceed() {
        let histogram =
            Histogram::with_opts(HistogramOpts::new("a", "a").buckets(vec![0.001, 0.01, 2.0])).unwrap();
        (0..98).for_each(|_| histogram.observe(0.001));
        let told = |histogram: &Histogram| {
            let mut all = Distribution::default();
            all.add(&histogram.collect()[0].get_metric()[0]);
            let counts = all
                .buckets()
                .into_iter()
                .map(|Bucket { over, to, count }| (over.as_millis(), to.map(|to| to.as_millis()), count));
            (all.bound(50), all.bound(99), counts.collect::<Vec<_>>())
        };
        assert_eq!(told(&histogram), ("≤ 1.0 ms".into(), "≤ 1.0 ms".into(), vec![(0, Some(1), 98)]));
        histogram.observe(0.002);
        histogram.observe(1.0);
        assert_eq!(
            told(&histogram),
            (
                "≤ 1.0 ms".into(),
                "≤ 10.0 ms".into(),
                vec![(0, Some(1), 98), (1, Some(10), 1), (10, Some(2000), 1)]
            )
        );
        (0..200).for_each(|_| histogram.observe(9.0));
        let beyond = (2000, None, 200);
        let (half, most, buckets) = told(&histogram);
        assert_eq!((half.as_str(), most.as_str(), buckets.last()), ("> 2.00 s", "> 2.00 s", Some(&beyond)));
    }
}
