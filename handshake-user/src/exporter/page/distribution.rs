//! Histograms of the metrics, added up.

use std::time::Duration;

use prometheus::proto::Metric;

use crate::output::text::duration;

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

    /// What is in each bucket, and how many there are in it. The last one has no upper bound.
    pub(super) fn buckets(&self) -> impl Iterator<Item = (String, u64)> {
        let below = [0].into_iter().chain(self.buckets.iter().map(|(_, below)| *below));
        let bounded = self.buckets.iter().zip(below);
        let bounded = bounded
            .map(|((bound, upto), below)| (format!("≤ {}", seconds(*bound)), upto.saturating_sub(below)));
        let last = self.buckets.last().map(|(bound, upto)| (above(*bound), self.count.saturating_sub(*upto)));
        bounded.chain(last)
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

/// As a text of HTML.
fn above(bound: f64) -> String {
    format!("&gt; {}", seconds(bound))
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
            let counts: Vec<_> = all.buckets().map(|(_, count)| count).collect();
            (all.bound(50), all.bound(99), counts)
        };
        assert_eq!(told(&histogram), ("≤ 1.0 ms".into(), "≤ 1.0 ms".into(), vec![98, 0, 0, 0]));
        histogram.observe(0.002);
        histogram.observe(1.0);
        assert_eq!(told(&histogram), ("≤ 1.0 ms".into(), "≤ 10.0 ms".into(), vec![98, 1, 1, 0]));
        (0..200).for_each(|_| histogram.observe(9.0));
        assert_eq!(told(&histogram), ("&gt; 2.00 s".into(), "&gt; 2.00 s".into(), vec![98, 1, 1, 200]));
    }
}
