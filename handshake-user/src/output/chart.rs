//! Distributions of durations as a picture: a row of bars each, all over one logarithmic axis of time. Pure.

use std::{fmt::Write as _, time::Duration};

use super::{markup::Escaped, text::duration};

/// Pixels: where names end, where bars begin and end, where counts end.
const NAME: u32 = 320;
const BARS: u32 = 332;
const END: u32 = 812;
const COUNT: u32 = 890;
const WIDTH: u32 = 900;
/// Height of a row, and of its highest bar.
const ROW: u32 = 34;
const BAR: f64 = 26.0;
/// Characters of a name.
const MAX_NAME: usize = 44;

/// How many took longer than `over`, and no longer than `to`; the last one of a histogram has no `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Bounds; `to` is the larger one.
    pub over: Duration,
    /// Included.
    pub to: Option<Duration>,
    /// Durations between them.
    pub count: u64,
}

/// A row of the picture.
#[derive(Clone, Debug)]
pub struct Distribution {
    /// What these durations have in common.
    pub name: String,
    /// Those that are not empty, ascending.
    pub buckets: Vec<Bucket>,
    /// Half of the durations are not longer.
    pub median: Option<Duration>,
}

/// The rows as an `<svg>` element with this label. Each row's highest bar has the same height; a line marks
/// its median. Returns `None` if no row has a bucket.
#[must_use]
pub fn distributions(label: &str, rows: &[Distribution]) -> Option<String> {
    let axis = Axis::over(rows)?;
    let (mut drawn, mut top) = (String::new(), 4);
    for row in rows.iter().filter(|row| !row.buckets.is_empty()) {
        add_row(&mut drawn, &axis, row, top);
        top += ROW;
    }
    let (base, height) = (top + 4, top + 24);
    let mut ticks = String::new();
    for decade in axis.decades() {
        let (x, time) = (axis.x(decade), Escaped(&tick(decade)).to_string());
        let _ = write!(
            ticks,
            r#"<path class="tick" d="M{x:.1} 4V{base}"/><text class="at" x="{x:.1}" y="{y}" text-anchor="middle">{time}</text>"#,
            y = top + 18
        );
    }
    let label = Escaped(label);
    Some(format!(
        r#"<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">{ticks}{drawn}</svg>"#
    ))
}

fn add_row(drawn: &mut String, axis: &Axis, row: &Distribution, top: u32) {
    let most = row.buckets.iter().map(|bucket| bucket.count).max().unwrap_or(1);
    let all: u64 = row.buckets.iter().map(|bucket| bucket.count).sum();
    let (base, middle) = (top + ROW - 4, top + ROW - 10);
    let name: String = row.name.chars().take(MAX_NAME).collect();
    let _ = write!(
        drawn,
        r#"<g><text x="{NAME}" y="{middle}" text-anchor="end">{}</text><path class="base" d="M{BARS} {base}H{END}"/>"#,
        Escaped(&name)
    );
    for bucket in &row.buckets {
        let (from, to) = (axis.x(bucket.over), bucket.to.map_or(f64::from(END), |to| axis.x(to)));
        // Rare ones are to be seen, too.
        #[expect(clippy::cast_precision_loss, reason = "pixels")]
        let height = (bucket.count as f64 / most as f64 * BAR).max(1.0);
        let _ = write!(
            drawn,
            r#"<rect x="{from:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}"><title>{range}: {count}</title></rect>"#,
            y = f64::from(base) - height,
            width = (to - from - 1.0).max(1.0),
            range = Escaped(&range(bucket)),
            count = bucket.count
        );
    }
    if let Some(median) = row.median {
        let (x, shown) = (axis.x(median), duration(Some(median)));
        let _ = write!(
            drawn,
            r#"<path class="median" d="M{x:.1} {top}V{base}"><title>median {}</title></path>"#,
            Escaped(&shown)
        );
    }
    let _ = write!(drawn, r#"<text class="at" x="{COUNT}" y="{middle}" text-anchor="end">{all}</text></g>"#);
}

/// What is in the bucket, in words.
fn range(bucket: &Bucket) -> String {
    let over = duration(Some(bucket.over));
    match bucket.to {
        Some(to) => format!("{over} – {}", duration(Some(to))),
        None => format!("> {over}"),
    }
}

/// Logarithmic, from one power of ten to another.
struct Axis {
    /// Powers of ten, microseconds.
    from: u32,
    to: u32,
}

impl Axis {
    /// That has all of these on it.
    fn over(rows: &[Distribution]) -> Option<Self> {
        let buckets = || rows.iter().flat_map(|row| &row.buckets);
        let from = buckets().map(|bucket| micros(bucket.over)).min()?.ilog10();
        // What has no bound needs some room behind the others.
        let to = buckets().map(|bucket| bucket.to.map_or(micros(bucket.over) + 1, micros)).max()?;
        let to = to.ilog10() + u32::from(!is_power_of_ten(to));
        Some(Self { from, to: to.max(from + 1) })
    }

    fn decades(&self) -> impl Iterator<Item = Duration> {
        (self.from..=self.to).map(|power| Duration::from_micros(10_u64.saturating_pow(power)))
    }

    #[expect(clippy::cast_precision_loss, reason = "pixels")]
    fn x(&self, time: Duration) -> f64 {
        let along = (micros(time) as f64).log10() - f64::from(self.from);
        let share = (along / f64::from(self.to - self.from)).clamp(0.0, 1.0);
        f64::from(BARS) + share * f64::from(END - BARS)
    }
}

/// A logarithm has no place for less than one.
fn micros(time: Duration) -> u64 {
    crate::event::micros(time).max(1)
}

fn is_power_of_ten(number: u64) -> bool {
    10_u64.checked_pow(number.ilog10()) == Some(number)
}

/// A power of ten, shortly.
fn tick(time: Duration) -> String {
    match micros(time) {
        us if us < 1_000 => format!("{us} µs"),
        us if us < 1_000_000 => format!("{} ms", us / 1_000),
        us => format!("{} s", us / 1_000_000),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bucket(over: u64, to: u64, count: u64) -> Bucket {
        Bucket { over: Duration::from_micros(over), to: Some(Duration::from_micros(to)), count }
    }

    fn row(name: &str, buckets: &[Bucket]) -> Distribution {
        Distribution {
            name: name.to_owned(),
            median: buckets.first().and_then(|bucket| bucket.to),
            buckets: buckets.to_vec(),
        }
    }

    #[test]
    fn rows_share_an_axis_and_have_bars_for_what_was_counted() {
        let rows = [
            row("fast", &[bucket(100, 160, 3), bucket(160, 250, 6)]),
            row("none", &[]),
            row("slow <one>", &[bucket(40_000, 63_000, 1), Bucket { to: None, ..bucket(1_000_000, 0, 2) }]),
        ];
        insta::assert_snapshot!(distributions("openings", &rows).unwrap().replace("><", ">\n<"));
    }

    #[test]
    fn nothing_has_no_picture() {
        assert_eq!(distributions("openings", &[row("none", &[])]), None);
    }

    proptest! {
        #[test]
        fn bars_stay_on_the_picture(
            bounds in prop::collection::vec((any::<u64>(), any::<u64>(), 1..u64::MAX >> 8), 1..20),
            name: String,
        ) {
            let buckets: Vec<_> =
                bounds.iter().map(|&(one, two, count)| bucket(one.min(two), one.max(two), count)).collect();
            let picture = distributions("x", &[row(&name, &buckets)]).unwrap();
            for attribute in picture.split(" x=\"").skip(1) {
                let x: f64 = attribute.split('"').next().unwrap().parse().unwrap();
                prop_assert!((0.0..=f64::from(WIDTH)).contains(&x), "{picture}");
            }
            prop_assert!(!picture.contains("NaN") && !picture.contains("inf"), "{picture}");
        }
    }
}
