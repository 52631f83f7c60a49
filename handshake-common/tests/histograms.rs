//! The kernel side's search for a bucket, against Prometheus' own definition of one.
#![cfg(feature = "user")]

use handshake_common::histograms::{Bounds, MAX_BOUNDS, bucket};
use proptest::prelude::*;

/// 285 years, microseconds: up to it every number of them has a float of its own.
const CENTURIES: u64 = 1 << 53;

/// What user space makes of a duration before it is observed, seconds.
#[expect(clippy::cast_precision_loss, reason = "as it is observed")]
fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

/// `le`: the first bucket whose bound is at least the value; behind the last for one above all bounds.
fn by_definition(bounds: &[f64], us: u64) -> usize {
    bounds.iter().position(|bound| seconds(us) <= *bound).unwrap_or(bounds.len())
}

fn by_search(bounds: &Bounds, us: u64) -> usize {
    let bound = |at| bounds.at_most_us[usize::try_from(at).unwrap()];
    bucket(us, bounds.start, bound).try_into().unwrap()
}

/// Ascending bounds from below a microsecond to centuries, some of them right beside a whole microsecond.
fn some_bounds() -> impl Strategy<Value = Vec<f64>> {
    let beside = |us: u64, ulps: i64| f64::from_bits(seconds(us).to_bits().saturating_add_signed(ulps));
    let bound = prop_oneof![
        4 => (1_u64..100_000_000, -2_i64..=2).prop_map(move |(us, ulps)| beside(us, ulps)),
        2 => 1e-9..1e3_f64,
        1 => 1e3..1e12_f64,
    ];
    prop::collection::vec(bound, 1..=MAX_BOUNDS).prop_map(|mut bounds| {
        bounds.sort_by(f64::total_cmp);
        bounds.dedup();
        bounds
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
    #[test]
    fn search_finds_the_bucket_of_the_definition(
        bounds in some_bounds(),
        values in prop::collection::vec(prop_oneof![0_u64..200_000_000, 0..CENTURIES], 20),
    ) {
        let kernel = Bounds::new(&bounds).unwrap();
        // Where it matters most: at the bounds.
        let near = kernel.at_most_us[..bounds.len()]
            .iter()
            .flat_map(|&us| [us.saturating_sub(1), us, us.saturating_add(1)])
            .filter(|us| *us < CENTURIES);
        for us in values.iter().copied().chain(near) {
            prop_assert_eq!(by_search(&kernel, us), by_definition(&bounds, us), "{} µs in {:?}", us, bounds);
        }
    }
}

#[test]
fn every_number_of_bounds_is_searched_to_its_end() {
    for number in 1..=MAX_BOUNDS {
        let bounds: Vec<_> = (1..=number as u64).map(|us| seconds(us * 10)).collect();
        let kernel = Bounds::new(&bounds).unwrap();
        for at in 0..number {
            let at_bound = (at as u64 + 1) * 10;
            assert_eq!(by_search(&kernel, at_bound), at, "a bound is inclusive");
            assert_eq!(by_search(&kernel, at_bound + 1), at + 1);
        }
        assert_eq!(by_search(&kernel, u64::MAX / 1000), number, "above all bounds");
        assert_eq!(by_search(&kernel, 0), 0);
    }
}

#[test]
fn no_bounds_and_too_many_are_refused() {
    assert_eq!(Bounds::new(&[]), None);
    assert_eq!(Bounds::new(&[1.0; MAX_BOUNDS + 1]), None);
    assert_eq!(Bounds::new(&[1.0; MAX_BOUNDS]).unwrap().number as usize, MAX_BOUNDS);
}
