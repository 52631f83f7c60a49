//! The segments that establish a connection (RFC 9293 §3.5, RFC 7413).

use std::time::Duration;

use handshake_common::{FastOpen, FinalAck, Outcome, Role};

use super::step::{
    Direction::{self, Here, Received, Sent},
    Moment, Step,
};
use crate::{
    event::{ConnectionEvent, Open},
    join::advice::{self, SYN_TIMER},
};

/// The TCP handshake. A ClientHello that shared a segment with the SYN or the final ACK is moved here from
/// `tls`.
pub(super) fn steps(record: &ConnectionEvent, tls: &mut Vec<Step>) -> Vec<Step> {
    let Some(open) = &record.open else { return Vec::new() };
    match record.role {
        Some(Role::Client) => client(record, open, tls),
        Some(Role::Server) => server(record, open, tls),
        None => Vec::new(),
    }
}

fn client(record: &ConnectionEvent, open: &Open, tls: &mut Vec<Step>) -> Vec<Step> {
    let ended = Moment::measured(open.duration);
    if open.outcome == Some(Outcome::NoLocalPort) {
        return vec![Step::new(ended, Here, "no SYN: no local port, or its ends are taken")];
    }
    let mut steps = vec![Step::new(Moment::Measured(Duration::ZERO), Sent, syn(record, open, tls))];
    steps.extend(again(open, Sent, "SYN again"));
    if open.simultaneous {
        steps.push(Step::new(Moment::Unknown, Received, "SYN").remark("the two crossed"));
        steps.push(Step::new(Moment::Unknown, Sent, "SYN+ACK"));
    }
    let failed = match open.outcome {
        Some(Outcome::Established) => {
            let answer = Step::new(ended, Received, "SYN+ACK");
            steps.push(match open.fast_open {
                Some(FastOpen::DataAccepted) => answer.remark("takes the data"),
                Some(FastOpen::DataRejected) => answer.remark("does not take the data"),
                _ => answer,
            });
            if !open.simultaneous {
                steps.push(final_ack(open, Sent, ended.about(), tls));
            }
            return steps;
        }
        Some(Outcome::Refused) => Step::new(ended, Received, "RST").remark("refused, by RST or ICMP"),
        Some(Outcome::Reset) => Step::new(ended, Received, "RST"),
        Some(Outcome::TimedOut) => Step::new(ended, Here, "no answer: the kernel gave up"),
        Some(Outcome::Unreachable) => {
            Step::new(ended, Here, "unreachable, by ICMP or for want of a neighbour")
        }
        Some(Outcome::Aborted) => Step::new(ended, Here, "given up by its program"),
        Some(Outcome::NoLocalPort) | None => Step::new(ended, Here, "failed"),
    };
    steps.push(failed);
    steps
}

fn server(record: &ConnectionEvent, open: &Open, tls: &mut Vec<Step>) -> Vec<Step> {
    let established = open.outcome == Some(Outcome::Established);
    let ended = Moment::measured(open.duration);
    let mut steps = vec![
        Step::new(Moment::Derived(Duration::ZERO), Received, syn(record, open, tls)),
        Step::new(Moment::Measured(Duration::ZERO), Sent, "SYN+ACK"),
    ];
    steps.extend(again(open, Sent, "SYN+ACK again"));
    if established {
        steps.push(final_ack(open, Received, ended, tls));
    } else {
        let how = open.outcome.map_or("failed", |outcome| outcome.as_str());
        steps.push(Step::new(ended, Here, format!("never established: {how}")));
    }
    steps
}

/// What the SYN carried.
fn syn(record: &ConnectionEvent, open: &Open, tls: &mut Vec<Step>) -> String {
    match open.fast_open {
        Some(FastOpen::DataAccepted) => syn_with_data(record, open, tls),
        Some(FastOpen::DataRejected) => "SYN + data".to_owned(),
        Some(FastOpen::CookieRequested) => "SYN, asks for a Fast Open cookie".to_owned(),
        Some(FastOpen::None) | None => "SYN".to_owned(),
    }
}

/// A ClientHello that was in the SYN is drawn with it; what did not fit follows the SYN+ACK.
fn syn_with_data(record: &ConnectionEvent, open: &Open, tls: &mut Vec<Step>) -> String {
    let opened = Moment::derived(open.duration);
    let begins_in_syn = tls.first().is_some_and(|hello| {
        matches!(hello.at, Moment::Measured(_))
            && hello.at.time().zip(opened.time()).is_some_and(|(at, us)| at < us)
    });
    match (advice::hello_in_syn(record), tls.first_mut()) {
        (Some(true), Some(_)) => format!("SYN + {}", tls.remove(0).what),
        (Some(false), Some(hello)) => {
            (hello.at, hello.what) = (opened, format!("the rest of the {}", hello.what));
            "SYN + the first part of the ClientHello".to_owned()
        }
        // Handed over before there was an answer, but how much of it the SYN took is not known.
        (None, Some(_)) if begins_in_syn => format!("SYN + {}, or a part of it", tls.remove(0).what),
        _ => "SYN + data".to_owned(),
    }
}

/// Retransmissions. No record holds their times; the first timer is the same everywhere.
fn again(open: &Open, direction: Direction, what: &str) -> Option<Step> {
    let times = open.syn_retransmits;
    let fits = open.duration.is_some_and(|took| took >= SYN_TIMER);
    let at = Moment::derived((times == 1 && fits).then_some(SYN_TIMER));
    (times > 0).then(|| {
        Step::new(at, direction, if times == 1 { what.to_owned() } else { format!("{what}, {times} times") })
    })
}

/// The segment that completes the TCP handshake, with the ClientHello if it carried that.
fn final_ack(open: &Open, direction: Direction, at: Moment, tls: &mut Vec<Step>) -> Step {
    if open.final_ack != Some(FinalAck::Data) {
        return Step::new(at, direction, "ACK");
    }
    // On a server the moment of the ACK was measured; a client holds it back until it has data.
    let arrived = matches!(at, Moment::Measured(_)).then_some(at);
    // STARTTLS puts other data before the ClientHello, at least a round trip earlier.
    let soon = at.time().zip(open.rtt.or(open.duration)).map(|(at, rtt)| at.saturating_add(rtt));
    let carries = |hello: &Step| {
        hello.direction == direction && hello.at.time().zip(soon).is_some_and(|(at, soon)| at < soon)
    };
    if tls.first().is_some_and(carries) {
        let hello = tls.remove(0);
        Step::new(arrived.unwrap_or(hello.at), direction, format!("ACK + {}", hello.what))
    } else {
        Step::new(arrived.unwrap_or(Moment::Unknown), direction, "ACK + data")
    }
}
