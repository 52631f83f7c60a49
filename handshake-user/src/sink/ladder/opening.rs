//! The segments of an opening (RFC 9293 §3.5, RFC 7413).

use handshake_common::{FastOpen, FinalAck, Outcome, Role};

use super::segments::{
    Moment, Step,
    Way::{self, Here, Received, Sent},
};
use crate::{
    model::advice,
    record::{Open, Record},
};

/// Before the first retransmission of a SYN or SYN-ACK (`TCP_TIMEOUT_INIT`, RFC 6298 §2.1).
const SYN_TIMER_US: u64 = 1_000_000;

/// The opening. A ClientHello that shared its segment with the SYN or the final ACK is taken out of `tls`.
pub(super) fn steps(record: &Record, tls: &mut Vec<Step>) -> Vec<Step> {
    let Some(open) = &record.open else { return Vec::new() };
    match record.role {
        Some(Role::Client) => client(record, open, tls),
        Some(Role::Server) => server(record, open, tls),
        None => Vec::new(),
    }
}

fn client(record: &Record, open: &Open, tls: &mut Vec<Step>) -> Vec<Step> {
    let ended = Moment::measured(open.duration_us);
    let mut steps = vec![Step::new(Moment::Measured(0), Sent, syn(record, open, tls))];
    steps.extend(again(open, Sent, "SYN again"));
    let failed = match open.outcome {
        Some(Outcome::Established) => {
            let answer = Step::new(ended, Received, "SYN+ACK");
            steps.push(match open.fast_open {
                Some(FastOpen::DataAccepted) => answer.remark("takes the data"),
                Some(FastOpen::DataRejected) => answer.remark("does not take the data"),
                _ => answer,
            });
            steps.extend(final_ack(open, Sent, ended.about(), tls));
            return steps;
        }
        Some(Outcome::Refused) => Step::new(ended, Received, "RST").remark("refused, by RST or ICMP"),
        Some(Outcome::Reset) => Step::new(ended, Received, "RST"),
        Some(Outcome::TimedOut) => Step::new(ended, Here, "no answer: the kernel gave up"),
        Some(Outcome::Unreachable) => {
            Step::new(ended, Here, "unreachable, by ICMP or for want of a neighbour")
        }
        Some(Outcome::Aborted) => Step::new(ended, Here, "given up by its program"),
        None => Step::new(ended, Here, "failed"),
    };
    steps.push(failed);
    steps
}

fn server(record: &Record, open: &Open, tls: &mut Vec<Step>) -> Vec<Step> {
    let established = open.outcome == Some(Outcome::Established);
    let ended = Moment::measured(open.duration_us);
    let mut steps = vec![
        Step::new(Moment::Derived(0), Received, syn(record, open, tls)),
        Step::new(Moment::Measured(0), Sent, "SYN+ACK"),
    ];
    steps.extend(again(open, Sent, "SYN+ACK again"));
    if established {
        steps.extend(final_ack(open, Received, ended, tls));
    } else {
        let how = open.outcome.map_or("failed", |outcome| outcome.as_str());
        steps.push(Step::new(ended, Here, format!("never established: {how}")));
    }
    steps
}

/// What the SYN carried.
fn syn(record: &Record, open: &Open, tls: &mut Vec<Step>) -> String {
    match open.fast_open {
        Some(FastOpen::DataAccepted) => match advice::hello_in_syn(record) {
            Some(true) if !tls.is_empty() => format!("SYN + {}", tls.remove(0).what),
            Some(false) if !tls.is_empty() => "SYN + the first part of the ClientHello".to_owned(),
            _ => "SYN + data".to_owned(),
        },
        Some(FastOpen::DataRejected) => "SYN + data".to_owned(),
        Some(FastOpen::CookieRequested) => "SYN, asks for a Fast Open cookie".to_owned(),
        Some(FastOpen::None) | None => "SYN".to_owned(),
    }
}

/// Retransmissions. When they left is in no record; the timer of the first is the same for all.
fn again(open: &Open, way: Way, what: &str) -> Option<Step> {
    let times = open.syn_retransmits;
    let fits = open.duration_us.is_some_and(|took| took >= SYN_TIMER_US);
    let at = Moment::derived((times == 1 && fits).then_some(SYN_TIMER_US));
    (times > 0).then(|| {
        Step::new(at, way, if times == 1 { what.to_owned() } else { format!("{what}, {times} times") })
    })
}

/// The segment that completes the opening, with the ClientHello inside where that was in it.
fn final_ack(open: &Open, way: Way, at: Moment, tls: &mut Vec<Step>) -> Option<Step> {
    if open.final_ack != Some(FinalAck::Data) {
        return Some(Step::new(at, way, "ACK"));
    }
    // STARTTLS puts other data before the ClientHello, at least a round trip earlier.
    let is_hello = |hello: &&Step| {
        let soon = at.us().zip(open.rtt_us.or(open.duration_us)).map(|(at, rtt)| at.saturating_add(rtt));
        hello.way == way && hello.at.us().zip(soon).is_some_and(|(hello, soon)| hello < soon)
    };
    if tls.first().filter(is_hello).is_some() {
        let mut hello = tls.remove(0);
        hello.what = format!("ACK + {}", hello.what);
        // On a server the moment of the ACK was measured.
        if matches!(at, Moment::Measured(_)) {
            hello.at = at;
        }
        return Some(hello);
    }
    // A client holds the ACK back until it has data.
    let at = if matches!(at, Moment::Measured(_)) { at } else { Moment::Unknown };
    Some(Step::new(at, way, "ACK + data"))
}
