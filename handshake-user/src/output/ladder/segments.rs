//! The segments of a connection in the order in which they passed this end.

use std::time::Duration;

use handshake_common::TlsOutcome;

use super::{
    close, handshake, open,
    step::{Direction, Moment, Step},
};
use crate::event::ConnectionEvent;

/// All segments and events of a record, in the order in which they passed this end.
pub(super) fn steps(record: &ConnectionEvent) -> Vec<Step> {
    let mut tls = handshake::steps(record);
    in_order(&mut tls);
    let mut opening = open::steps(record, &mut tls);
    in_order(&mut opening);
    let mut steps = merged(opening, tls);
    if record.close.is_some() {
        let closing = closing(record);
        let set_up = record.tls.as_ref().is_none_or(|tls| tls.outcome == Some(TlsOutcome::Completed));
        if !set_up {
            // The program may notice the failure only after the RST that it caused.
            return merged(steps, closing);
        }
        if !steps.is_empty() {
            steps.push(Step::new(Moment::Unknown, Direction::Here, "… data, of which no record tells"));
        }
        steps.extend(closing);
    }
    steps
}

/// Those that closed it.
pub(super) fn closing(record: &ConnectionEvent) -> Vec<Step> {
    let mut closing = record.close.as_ref().map_or_else(Vec::new, |close| close::steps(record, close));
    in_order(&mut closing);
    closing
}

/// Moves derived times between the measured ones around them.
fn in_order(steps: &mut [Step]) {
    let mut earliest = Duration::ZERO;
    for step in &mut *steps {
        match &mut step.at {
            Moment::Derived(us) => {
                *us = earliest.max(*us);
                earliest = *us;
            }
            Moment::Measured(us) => earliest = earliest.max(*us),
            Moment::Unknown => {}
        }
    }
    let mut latest = Duration::MAX;
    for step in steps.iter_mut().rev() {
        match &mut step.at {
            Moment::Derived(us) => *us = latest.min(*us),
            Moment::Measured(us) => latest = latest.min(*us),
            Moment::Unknown => {}
        }
    }
}

/// Merges two lists by time; a step without a time stays behind the one it followed.
fn merged(first: Vec<Step>, second: Vec<Step>) -> Vec<Step> {
    let mut keyed = Vec::with_capacity(first.len() + second.len());
    let end = first.iter().filter_map(|step| step.at.time()).max().unwrap_or_default();
    for (list, start) in [(first, Duration::ZERO), (second, end)] {
        let mut key = start;
        for step in list {
            key = step.at.time().unwrap_or(key);
            keyed.push((key, step));
        }
    }
    keyed.sort_by_key(|(key, _)| *key);
    keyed.into_iter().map(|(_, step)| step).collect()
}

#[cfg(test)]
mod tests {
    use super::{
        Moment::{Derived, Measured, Unknown},
        *,
    };

    #[test]
    fn derived_times_stay_between_measured_ones() {
        let us = Duration::from_micros;
        let at = |moments: &[Moment]| {
            let mut steps: Vec<_> = moments.iter().map(|&at| Step::new(at, Direction::Sent, "")).collect();
            in_order(&mut steps);
            steps.into_iter().map(|step| step.at).collect::<Vec<_>>()
        };
        assert_eq!(
            at(&[Measured(us(10)), Derived(us(5)), Unknown, Derived(us(90)), Measured(us(70))]),
            [Measured(us(10)), Derived(us(10)), Unknown, Derived(us(70)), Measured(us(70))]
        );
    }
}
