//! Whether a figure rises, by the Theil–Sen slope: the median of the slopes between all pairs of samples,
//! which a few outliers cannot move.

use crate::stats::{median, sorted};

/// One sample: seconds since the start, and the value.
pub(super) type Point = (f64, f64);

/// How much one figure may rise.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    /// A rise by this much over the judged time is noise.
    pub(super) least: f64,
    /// So is a rise by this fraction of its level.
    pub(super) part: f64,
}

/// The course of one figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Trend {
    /// Medians of the first and the last third.
    pub(super) first: f64,
    pub(super) last: f64,
    /// The slope times the judged time.
    pub(super) rise: f64,
    pub(super) allowed: f64,
}

impl Trend {
    /// Returns `None` if there are fewer than three points.
    pub(super) fn of(points: &[Point], limit: Limit) -> Option<Self> {
        let [(begin, _), .., (end, _)] = points else { return None };
        if points.len() < 3 {
            return None;
        }
        let third = points.len() / 3;
        let level = |points: &[Point]| median(&sorted(points.iter().map(|point| point.1)));
        let (first, last) = (level(&points[..third.max(1)]), level(&points[points.len() - third.max(1)..]));
        let allowed = limit.least.max(limit.part * level(points));
        Some(Self { first, last, rise: slope(points) * (end - begin), allowed })
    }

    pub(super) fn is_flat(&self) -> bool {
        self.rise <= self.allowed
    }
}

fn slope(points: &[Point]) -> f64 {
    let slopes = points.iter().enumerate().flat_map(|(index, &(time, value))| {
        let later = points[index + 1..].iter();
        later.filter(move |point| point.0 > time).map(move |point| (point.1 - value) / (point.0 - time))
    });
    median(&sorted(slopes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Limit = Limit { least: 10.0, part: 0.0 };

    fn trend(value: impl Fn(u32) -> f64) -> Trend {
        let points: Vec<_> = (0..60).map(|index| (f64::from(index) * 10.0, value(index))).collect();
        Trend::of(&points, LIMIT).unwrap()
    }

    #[test]
    fn leak_is_a_rise_however_noisy() {
        let noise = |index: u32| f64::from(index * 7919 % 13);
        let leak = trend(|index| 100.0 + f64::from(index) + noise(index));
        assert!((50.0..70.0).contains(&leak.rise) && !leak.is_flat(), "{leak:?}");
        assert!(trend(|index| 100.0 + noise(index)).is_flat());
        assert!(trend(|index| 100.0 - f64::from(index)).is_flat());
    }

    #[test]
    fn outliers_are_no_rise() {
        assert!(trend(|index| if index % 10 == 9 { 5000.0 } else { 100.0 }).is_flat());
        assert!(trend(|index| if index > 55 { 5000.0 } else { 100.0 }).is_flat());
    }

    #[test]
    fn lasting_step_shows_in_the_thirds() {
        let step = trend(|index| if index < 30 { 100.0 } else { 200.0 });
        assert!((step.last - step.first - 100.0).abs() < 1e-9 && !step.is_flat(), "{step:?}");
    }

    #[test]
    fn fraction_of_the_level_may_be_allowed() {
        let points: Vec<_> = (0..30).map(|index| (f64::from(index), 1000.0 + f64::from(index))).collect();
        assert!(!Trend::of(&points, Limit { least: 1.0, part: 0.01 }).unwrap().is_flat());
        assert!(Trend::of(&points, Limit { least: 1.0, part: 0.05 }).unwrap().is_flat());
        assert_eq!(Trend::of(&points[..2], LIMIT), None);
    }
}
