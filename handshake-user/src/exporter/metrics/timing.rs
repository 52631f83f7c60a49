//! Histograms, found by the codes of a class: nothing is hashed for an event unless there are labels on
//! demand. What the kernel side has observed is added when they are scraped.

use std::{collections::HashMap, time::Duration};

use prometheus::{Histogram, HistogramOpts, HistogramVec, Registry};

use super::{
    class::{self, Axis, Codes},
    family::HistogramFamily,
    labels::{Key, Labels, OTHER},
};
use crate::{
    config::{self, Purpose},
    event::micros,
    kernel::probe::Histograms,
};

/// One family of histograms.
pub(super) struct Timing<const N: usize> {
    axes: [Axis; N],
    family: HistogramFamily,
    /// By class; with labels on demand, these are the classes' `other`.
    classes: Vec<Option<Histogram>>,
    /// With labels on demand: by class and their values.
    labelled: HashMap<(usize, Key), Histogram>,
    buckets: Vec<f64>,
    max_series: usize,
    labels: usize,
}

impl<const N: usize> Timing<N> {
    /// Registers the family. A class has a series from its first value on: each takes as many lines of the
    /// page as there are buckets, and hardly any host sees most of them.
    pub(super) fn new(
        registry: &Registry,
        settings: &config::Metrics,
        labels: &Labels,
        (name, help): (&str, &str),
        purpose: Purpose,
        axes: [Axis; N],
    ) -> prometheus::Result<Self> {
        let names: Vec<_> = axes.iter().map(|axis| axis.name).chain(labels.names()).collect();
        let buckets = settings.buckets.bounds(purpose);
        let options = HistogramOpts::new(name, help).buckets(buckets.clone());
        let records = HistogramVec::new(options, &names)?;
        let family = HistogramFamily::new(records, &buckets, &settings.buckets.kernel_bounds());
        registry.register(Box::new(family.clone()))?;
        Ok(Self {
            axes,
            family,
            classes: vec![None; class::size(&axes)],
            labelled: HashMap::new(),
            buckets,
            max_series: settings.max_series,
            labels: labels.names().count(),
        })
    }

    /// Sets how many sets of label values there may be. Those that are there stay.
    pub(super) const fn set_max_series(&mut self, most: usize) {
        self.max_series = most;
    }

    /// Observes a duration, unless it is unknown.
    pub(super) fn observe(
        &mut self,
        codes: Codes<N>,
        duration: Option<Duration>,
        labels: &Labels,
        key: Option<&Key>,
    ) {
        let Some(duration) = duration else { return };
        let seconds = seconds(duration);
        match key {
            None => self.class(codes).observe(seconds),
            Some(key) => self.labelled(codes, labels, key).observe(seconds),
        }
    }

    /// Takes what the kernel side has observed since it began; `series` is where it counts a class.
    pub(super) fn fill(&mut self, histograms: &Histograms, series: impl Fn(Codes<N>) -> Option<usize>) {
        let (axes, names) = (self.axes, self.axes.map(|axis| axis.name));
        for codes in class::all(&axes) {
            let Some(counted) = series(codes).map(|series| histograms.at(series)) else { continue };
            if counted.iter().any(|&count| count != 0) {
                self.class(codes);
                self.family.set_counted(names, class::words(&axes, codes), counted);
            }
        }
    }

    /// The same for a duration that may be off by so much, if that leaves no doubt of its bucket.
    pub(super) fn observe_within(
        &mut self,
        codes: Codes<N>,
        duration: Option<(Duration, Duration)>,
        labels: &Labels,
        key: Option<&Key>,
    ) {
        let known = duration.filter(|&(duration, grain)| tells(&self.buckets, duration, grain));
        self.observe(codes, known.map(|(duration, _)| duration), labels, key);
    }

    fn class(&mut self, codes: Codes<N>) -> &Histogram {
        let Self { axes, family, classes, labels, .. } = self;
        classes[class::index(axes, codes)].get_or_insert_with(|| {
            let mut values = class::words(axes, codes).to_vec();
            values.resize(N + *labels, OTHER);
            family.records().with_label_values(&values)
        })
    }

    fn labelled(&mut self, codes: Codes<N>, labels: &Labels, key: &Key) -> &Histogram {
        // The key is cloned for the lookup, which costs an allocation only where a cgroup is in it.
        let place = (class::index(&self.axes, codes), key.clone());
        if !self.labelled.contains_key(&place) && self.labelled.len() >= self.max_series {
            labels.overflowed();
            return self.class(codes);
        }
        let Self { axes, family, labelled, .. } = self;
        labelled.entry(place).or_insert_with(|| {
            let mut values: Vec<_> = class::words(axes, codes).map(str::to_owned).into();
            values.extend(labels.values(key));
            family.records().with_label_values(&values)
        })
    }
}

/// The unit of Prometheus.
#[expect(clippy::cast_precision_loss, reason = "2^53 µs are 285 years")]
pub(super) fn seconds(duration: Duration) -> f64 {
    micros(duration) as f64 / 1e6
}

/// Whether a duration that may be off by `grain` is in the same bucket whatever the truth is.
pub(super) fn tells(buckets: &[f64], duration: Duration, grain: Duration) -> bool {
    let bucket = |duration| buckets.partition_point(|&bound| bound < seconds(duration));
    bucket(duration.saturating_sub(grain)) == bucket(duration.saturating_add(grain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coarse_duration_counts_only_where_its_bucket_is_certain() {
        let buckets = [0.1, 0.25, 0.5];
        let ms = Duration::from_millis;
        assert!(tells(&buckets, ms(200), ms(4)));
        assert!(tells(&buckets, ms(100), ms(0)), "a bound belongs to its bucket");
        assert!(!tells(&buckets, ms(98), ms(4)));
        assert!(!tells(&buckets, ms(100), ms(1)));
        assert!(tells(&buckets, ms(60_000), ms(10_000)));
        assert!(tells(&buckets, ms(1), ms(4)));
    }
}
