//! Reads the histograms that the kernel side fills.

use aya::maps::{MapData, MapError, PerCpuArray};
#[cfg(test)]
use handshake_common::histograms::{Bounds, bucket};
use handshake_common::histograms::{Histogram, SERIES, SUM};

/// Every series, summed over all CPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histograms(Vec<Histogram>);

impl Histograms {
    /// Reads them out of their map.
    ///
    /// # Errors
    /// When the map cannot be read, which no kernel is known to do.
    pub(super) fn read(map: &PerCpuArray<MapData, Histogram>) -> Result<Self, MapError> {
        let mut histograms = Self::default();
        for (series, sum) in (0..).zip(&mut histograms.0) {
            for cpu in map.get(&series, 0)?.iter() {
                add(sum, cpu);
            }
        }
        Ok(histograms)
    }

    /// The histogram of a series that one of `handshake_common::histograms`' functions named.
    #[must_use]
    pub fn at(&self, series: usize) -> &Histogram {
        static EMPTY: Histogram = [0; SUM + 1];
        self.0.get(series).unwrap_or(&EMPTY)
    }
}

#[cfg(test)]
impl Histograms {
    /// Adds a value, as the kernel side does.
    pub(crate) fn observe(&mut self, bounds: &Bounds, series: usize, us: Option<u64>) {
        if let Some(us) = us {
            let histogram = &mut self.0[series];
            let bound = |at| bounds.at_most_us[usize::try_from(at).unwrap()];
            histogram[usize::try_from(bucket(us, bounds.start, bound)).unwrap()] += 1;
            histogram[SUM] += us;
        }
    }
}

impl Default for Histograms {
    /// Nothing observed.
    fn default() -> Self {
        Self(vec![[0; SUM + 1]; SERIES])
    }
}

fn add(sum: &mut Histogram, more: &Histogram) {
    for (sum, more) in sum.iter_mut().zip(more) {
        *sum = sum.wrapping_add(*more);
    }
}
