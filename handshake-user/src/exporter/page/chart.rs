//! Charts as pictures. Their numbers are in words too, for readers who do not see them.

use std::fmt::Write as _;

use handshake_common::Role;

use super::history::{History, Kind, SPAN, roles};
use crate::output::{markup::Escaped, rows::per_second};

/// Of the chart of a rate: pixels of the whole, where its bars begin, and their height.
const WIDTH: f64 = 300.0;
const HEIGHT: u32 = 86;
const TOP: f64 = 18.0;
const BARS: f64 = 48.0;
/// Of the longest bar in a table, and its thickness.
const LONGEST: f64 = 90.0;
const THICKNESS: u32 = 12;

/// How often something happened a second: the roles above each other, time to the right.
pub(super) fn rate(history: &History, kind: Kind) -> String {
    let sum = |rate: &dyn Fn(Option<Role>) -> f64| roles().map(rate).sum::<f64>();
    let steps: Vec<_> = history.steps().collect();
    let most = steps.iter().map(|step| sum(&|role| step.rate(kind, role))).fold(0.0, f64::max);
    let latest = steps.last().map_or(0.0, |step| sum(&|role| step.rate(kind, role)));
    let x = |ago: std::time::Duration| WIDTH * (1.0 - ago.as_secs_f64() / SPAN.as_secs_f64());
    let mut bars = String::new();
    for step in &steps {
        let (from, to) = (x(step.ago + step.length).max(0.0), x(step.ago));
        let mut y = TOP + BARS;
        for role in roles() {
            let height = BARS * step.rate(kind, role) / if most > 0.0 { most } else { 1.0 };
            if height > 0.0 {
                y -= height;
                let width = (to - from - 0.6).max(0.5);
                let _ = write!(
                    bars,
                    r#"<rect class="{}" x="{from:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}"/>"#,
                    class(role)
                );
            }
        }
    }
    let (title, bottom) = (kind.title(), TOP + BARS);
    let (latest, most) = (per_second(latest), per_second(most));
    let (latest, most) = (Escaped(&latest), Escaped(&most));
    format!(
        r#"<svg class="rate" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}, a second: {latest} at last, {most} at most in five minutes"><text x="0" y="11">at most {most}/s</text><text x="{WIDTH}" y="11" text-anchor="end">now {latest}/s</text>{bars}<path d="M0 {bottom}H{WIDTH}"/><text x="0" y="{below}">5 min ago</text><text x="{WIDTH}" y="{below}" text-anchor="end">now</text></svg>"#,
        below = bottom + 15.0
    )
}

/// What the colours mean.
pub(super) fn legend() -> String {
    let mut legend = String::new();
    for role in roles() {
        let _ = write!(
            legend,
            r#"<span><svg class="key" viewBox="0 0 12 12" aria-hidden="true"><rect class="{}" width="12" height="12"/></svg> {}</span> "#,
            class(role),
            role.map_or("role unknown", |role| match role {
                Role::Client => "this host is the client",
                Role::Server => "this host is the server",
            })
        );
    }
    legend
}

const fn class(role: Option<Role>) -> &'static str {
    match role {
        Some(role) => role.as_str(),
        None => "unknown",
    }
}

/// A bar of this share of the longest.
pub(super) fn bar(share: f64) -> String {
    let width = (share * LONGEST).max(1.0);
    format!(
        r#"<svg class="bar" viewBox="0 0 {LONGEST} {THICKNESS}" aria-hidden="true"><rect width="{width:.1}" height="{THICKNESS}"/></svg>"#
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use handshake_common::{Family, Outcome, totals};

    use super::*;
    use crate::exporter::page::history::{Counts, Handshakes};

    #[test]
    fn bars_of_a_rate_are_of_their_height_and_time() {
        let mut history = History::default();
        let slot = totals::opens(Some(Role::Client), Some(Family::Ipv4), Some(Outcome::Established));
        let mut counted = totals::Totals::ZERO;
        for (second, count) in [(0, 0), (5, 100), (10, 50), (15, 0)] {
            let mut cpu = [0; totals::SLOTS];
            cpu[slot] = count;
            counted.add(&cpu);
            history.add(Duration::from_secs(second), Counts::of(&counted, &Handshakes::default()));
        }
        let drawn = rate(&history, Kind::Openings);
        assert!(drawn.contains("a second: 0 at last, 20.0 at most"), "{drawn}");
        let bars: Vec<_> = drawn.split("<rect").skip(1).map(|bar| bar.split("/>").next().unwrap()).collect();
        assert_eq!(
            bars,
            [
                r#" class="client" x="285.0" y="18.0" width="4.4" height="48.0""#,
                r#" class="client" x="290.0" y="42.0" width="4.4" height="24.0""#
            ]
        );
        let nothing = rate(&History::default(), Kind::Openings);
        assert!(!nothing.contains("<rect") && !nothing.contains("NaN"), "{nothing}");
    }
}
