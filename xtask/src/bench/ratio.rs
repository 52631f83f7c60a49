//! Ratios of paired measurements, and how sure they are.

use std::fmt;

use crate::stats::{median, quartile, sorted};

/// The median of ratios, one from each round.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Ratio {
    median: f64,
    /// The first and the third.
    quartiles: (f64, f64),
    /// Where the true median lies, 95 times out of 100 or more. `None` with fewer than six rounds.
    interval: Option<(f64, f64)>,
}

impl Ratio {
    /// What [`fmt::Display`] writes below; the columns are as wide.
    pub(super) const HEAD: &str = "  ratio   (quartiles)        (95 %)";

    pub(super) fn of(ratios: impl Iterator<Item = f64>) -> Self {
        let ratios = sorted(ratios);
        let quartiles = (quartile(&ratios, 1), quartile(&ratios, 3));
        let interval = rank(ratios.len()).map(|rank| (ratios[rank - 1], ratios[ratios.len() - rank]));
        Self { median: median(&ratios), quartiles, interval }
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, third) = self.quartiles;
        write!(f, "{:>7.3}   {first:>5.3} {third:>5.3}", self.median)?;
        match self.interval {
            Some((least, most)) => write!(f, "   {least:>5.3} {most:>5.3}"),
            None => write!(f, "   {:>11}", "6 rounds"),
        }
    }
}

/// The largest `k` for which the median lies between the `k`-th least and the `k`-th greatest of `n` values
/// with a probability of 95 % or more. Whatever the distribution, each value is below its median as often as
/// above, so the number of those below is binomial (the sign test). `None` if even the extremes are not that
/// sure.
fn rank(n: usize) -> Option<usize> {
    let count = i32::try_from(n).ok()?;
    // The probability of fewer than `k` of `n`, term by term.
    let (mut term, mut below, mut rank) = (0.5_f64.powi(count), 0.0, None);
    for k in 1..=n / 2 {
        below += term;
        if below > 0.025 {
            break;
        }
        rank = Some(k);
        #[expect(clippy::cast_precision_loss, reason = "a number of rounds")]
        {
            term *= (n - k + 1) as f64 / k as f64;
        }
    }
    rank
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From a table of the sign test (two-sided, 5 %).
    #[test]
    fn interval_has_the_ranks_of_the_sign_test() {
        let ranks = [
            (5, None),
            (6, Some(1)),
            (8, Some(1)),
            (9, Some(2)),
            (12, Some(3)),
            (20, Some(6)),
            (50, Some(18)),
        ];
        for (n, expected) in ranks {
            assert_eq!(rank(n), expected, "{n} rounds");
        }
        assert_eq!((rank(0), rank(1)), (None, None));
    }

    #[test]
    fn ratio_says_how_sure_it_is() {
        let nine = Ratio::of([0.9, 0.95, 0.91, 0.99, 0.94, 0.93, 0.97, 0.92, 0.96].into_iter());
        assert_eq!(nine.to_string(), "  0.940   0.920 0.960   0.910 0.970");
        assert_eq!(nine.to_string().len(), Ratio::HEAD.len());
        assert_eq!(Ratio::of([0.5, 0.7].into_iter()).interval, None);
    }
}
