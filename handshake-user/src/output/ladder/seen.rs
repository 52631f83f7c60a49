//! The flights of a handshake where the packets showed them, and what held them up.

use std::time::Duration;

use handshake_common::{Role, TlsClass, TlsOutcome};

use super::step::{
    Direction::{self, Here, Received, Sent},
    Moment, Step,
};
use crate::{
    event::{Stall, StallCause, Tls},
    output::text::duration,
};

/// A flight that took longer has two lines, its first and its last segment.
const LONG: Duration = Duration::from_millis(5);

/// The same steps at the times of the flights, with what held them up. `ended` is the end of the handshake.
pub(super) fn place(steps: Vec<Step>, tls: &Tls, role: Role, ended: Moment) -> Vec<Step> {
    let is_complete = tls.outcome == Some(TlsOutcome::Completed);
    let mut placed = match times(&steps, tls, role) {
        Some(times) => {
            let mut placed = Vec::new();
            let mut last = Duration::ZERO;
            for (index, (step, (first, end))) in steps.into_iter().zip(times).enumerate() {
                last = end;
                flight(&mut placed, index, step, (first, end), tls, role);
            }
            let late = ended.time().and_then(|at| at.checked_sub(last)).filter(|late| *late >= LONG);
            if let (Some(_), Some(step)) = (late.filter(|_| is_complete), placed.last_mut()) {
                step.remark.clear();
                placed.push(Step::new(ended, Here, "complete"));
            }
            placed
        }
        None if is_complete => steps,
        None => with_unnamed(steps, tls, role),
    };
    explain(&mut placed, tls, role);
    placed
}

/// Where a segment of this end of the handshake points, in the ladder of `role`.
fn direction(of: Role, role: Role) -> Direction {
    if of == role { Sent } else { Received }
}

/// The first and the last moment of each step's flight, if there are as many flights and each is of the right
/// end. Early data, and data that a server sends before the client's Finished, cut flights into pieces.
fn times(steps: &[Step], tls: &Tls, role: Role) -> Option<Vec<(Duration, Duration)>> {
    let flights = tls.flights.as_deref()?;
    if flights.len() == steps.len() {
        let mut pairs = steps.iter().zip(flights);
        let agree = pairs.all(|(step, flight)| step.direction == direction(flight.from, role));
        return agree.then(|| flights.iter().map(|flight| (flight.first, flight.last)).collect());
    }
    let [first, .., last] = flights else { return None };
    let is_plain = steps.len() == 3 && first.from == Role::Client && last.from == Role::Client;
    let mut answers = flights.iter().filter(|flight| flight.from == Role::Server);
    let begun = answers.clone().next()?.first;
    let answer = (begun, answers.next_back()?.last);
    is_plain.then(|| vec![(first.first, first.last), answer, (last.first, last.last)])
}

/// The lines of one flight.
fn flight(
    placed: &mut Vec<Step>,
    index: usize,
    step: Step,
    (first, last): (Duration, Duration),
    tls: &Tls,
    role: Role,
) {
    let accepted = tls.class == Some(TlsClass::EarlyDataAccepted);
    let from_server = (step.direction == Sent) == (role == Role::Server);
    if index == 0 || (accepted && from_server) {
        // Data may follow: the ClientHello, or the server's flight, is what came first.
        placed.push(Step { at: Moment::Measured(first), ..step });
        return;
    }
    if last.saturating_sub(first) >= LONG {
        placed.push(Step::new(Moment::Measured(first), step.direction, "the flight begins"));
    }
    placed.push(Step { at: Moment::Measured(last), ..step });
}

/// Of a handshake that did not complete, what the flights were is not known but for the first and the last.
fn with_unnamed(steps: Vec<Step>, tls: &Tls, role: Role) -> Vec<Step> {
    let mut flights = tls.flights.as_deref().unwrap_or_default();
    let Some((last, [hello])) = steps.split_last() else { return steps };
    if flights.first().is_none_or(|flight| flight.from != Role::Client) {
        return steps;
    }
    flights = &flights[1..];
    let mut last = last.clone();
    if let Some((end, others)) = flights.split_last()
        && last.direction == direction(end.from, role)
    {
        last.at = Moment::Measured(end.last);
        flights = others;
    }
    let unnamed = flights.iter().map(|flight| {
        let what = format!("flight of the {}", flight.from);
        Step::new(Moment::Measured(flight.last), direction(flight.from, role), what)
    });
    [hello.clone()].into_iter().chain(unnamed).chain([last]).collect()
}

/// Says what was late, and why: beside its line, or on a line of its own.
fn explain(placed: &mut Vec<Step>, tls: &Tls, role: Role) {
    let stalls = tls.stalls.as_deref().unwrap_or_default();
    for late in stalls.chunk_by(|a, b| a.until == b.until) {
        let [first, ..] = late else { continue };
        let (until, remark) = (first.until, reason(late));
        let direction = direction(first.end, role);
        let is_it = |step: &Step| {
            let after = step.at.time().and_then(|at| at.checked_sub(until));
            step.direction == direction && after.is_some_and(|after| after < LONG)
        };
        let is_again = first.cause == Some(StallCause::Retransmission);
        if let Some(step) = placed.iter_mut().find(|step| is_it(step)) {
            let said = std::mem::take(&mut step.remark);
            step.remark = if said.is_empty() { remark } else { format!("{said}; {remark}") };
        } else {
            let what = if is_again { "the same again" } else { "a part of a flight" };
            let step = Step::new(Moment::Measured(until), direction, what).remark(remark);
            let at = placed.iter().position(|step| step.at.time().is_some_and(|at| at > until));
            placed.insert(at.unwrap_or(placed.len()), step);
        }
    }
}

/// Why what passed at one moment was late.
fn reason(stalls: &[Stall]) -> String {
    let total: Duration = stalls.iter().map(|stall| stall.duration).sum();
    let delayed = stalls.iter().find(|stall| stall.cause == Some(StallCause::DelayedAck));
    let said = stalls.iter().filter(|stall| stall.cause != Some(StallCause::DelayedAck)).map(|stall| {
        let took = duration(Some(stall.duration));
        match stall.cause {
            Some(StallCause::Nagle) => {
                let until = delayed.map_or_else(String::new, |ack| {
                    format!(", until an ACK that the {} delayed {}", ack.end, duration(Some(ack.duration)))
                });
                format!("Nagle's algorithm held it {}{until}", duration(Some(total)))
            }
            Some(StallCause::Retransmission) => format!("lost, sent again after {took}"),
            Some(StallCause::Computing) => format!("the {} computed {took}", stall.end),
            Some(StallCause::Waiting) => format!("the {}'s program waited {took}", stall.end),
            Some(StallCause::DelayedAck) | None => format!("{took} late"),
        }
    });
    said.collect::<Vec<_>>().join(", ")
}
