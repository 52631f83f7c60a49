//! Lines of a ladder: time, arrow, remark.

use std::time::Duration;

use super::step::{Direction, Moment, Step};
use crate::{
    event::micros,
    output::text::{columns, pad},
};

/// Columns of the rungs, arrow and words together.
const RUNG: usize = 56;
/// The shortest shaft of an arrow.
const SHAFT: usize = 3;
/// Below this, times are shown to the microsecond.
const FINE: Duration = Duration::from_millis(10);

/// How finely the times of a ladder are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Scale {
    decimals: usize,
}

impl Scale {
    /// For a connection whose setup took this long.
    pub(super) fn of(took: Option<Duration>) -> Self {
        Self { decimals: if took.is_some_and(|took| took < FINE) { 3 } else { 1 } }
    }

    /// Milliseconds. `~` marks a time derived from the protocol.
    fn show(self, moment: Moment) -> String {
        #[expect(clippy::cast_precision_loss, reason = "shown with few digits")]
        let ms = |time: Duration| format!("{:.*} ms", self.decimals, micros(time) as f64 / 1e3);
        match moment {
            Moment::Measured(us) => ms(us),
            Moment::Derived(us) => format!("~{}", ms(us)),
            Moment::Unknown => "?".to_owned(),
        }
    }
}

/// One line.
pub(super) fn line(step: &Step, scale: Scale) -> String {
    let time = time(step, scale);
    let line = format!("{time:>12}   {}  {}", pad(&rung(step), RUNG), step.remark);
    line.trim_end().to_owned()
}

/// Its time; nothing for an event of which none was taken.
pub(super) fn time(step: &Step, scale: Scale) -> String {
    let is_timeless = step.at == Moment::Unknown && step.direction == Direction::Here;
    if is_timeless { String::new() } else { scale.show(step.at) }
}

fn rung(step: &Step) -> String {
    let shaft = |taken: usize| "─".repeat(RUNG.saturating_sub(taken).max(SHAFT));
    let length = columns(&step.what) + 2;
    match step.direction {
        Direction::Sent => format!("{} {}▶", step.what, shaft(length)),
        Direction::Received => format!("◀{} {}", shaft(length), step.what),
        Direction::Here => step.what.clone(),
    }
}
