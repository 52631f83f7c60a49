//! The segments that close a connection (RFC 9293 §3.6), and who waited for whom.

use std::time::Duration;

use handshake_common::{CloseStyle, Initiator};

use super::step::{
    Direction::{self, Here, Received, Sent},
    Moment, Step,
};
use crate::{
    event::{Close, ConnectionEvent, Unseen},
    output::text::duration,
};

/// The close.
pub(super) fn steps(record: &ConnectionEvent, close: &Close) -> Vec<Step> {
    let closed = Moment::measured(record.lifetime);
    let passive = close.initiator == Some(Initiator::Remote);
    match (close.style, close.initiator) {
        (Some(CloseStyle::ThreeSegments | CloseStyle::FourSegments), None) | (None, _) => {
            vec![Step::new(closed, Here, "closed; how, is not known")]
        }
        (Some(CloseStyle::ThreeSegments), _) if passive => passive_three(close, closed),
        (Some(CloseStyle::FourSegments), _) if passive => passive_four(close, closed),
        (Some(CloseStyle::ThreeSegments), _) => vec![
            our_fin(closed, close.duration.or(close.ack_wait), "FIN"),
            Step::new(closed, Received, "FIN+ACK").remark("its program closed at once"),
            Step::new(closed.about(), Sent, "ACK"),
        ],
        (Some(CloseStyle::FourSegments), _) => active_four(close, closed),
        (Some(CloseStyle::Simultaneous), _) => simultaneous(close, closed),
        (Some(CloseStyle::ResetReceived), _) => reset(close, closed, Received),
        (Some(CloseStyle::ResetSent), _) => reset(close, closed, Sent),
        (Some(CloseStyle::TimedOut), _) => {
            vec![Step::new(closed, Here, "given up: the peer answered no more")]
        }
    }
}

/// A FIN of ours that left this long before the end.
fn our_fin(closed: Moment, earlier: Option<Duration>, what: &str) -> Step {
    Step::new(before(closed, earlier), Sent, what)
}

/// The moment this long before another; unknown if either is.
fn before(moment: Moment, time: Option<Duration>) -> Moment {
    match (moment, time) {
        (Moment::Measured(at), Some(time)) => Moment::measured(at.checked_sub(time)),
        _ => Moment::Unknown,
    }
}

fn active_four(close: &Close, closed: Moment) -> Vec<Step> {
    if close.unseen == Some(Unseen::PeerFin) {
        // The socket was destroyed at the ACK of its FIN: the measured end is that ACK.
        return vec![
            our_fin(closed, close.ack_wait, "FIN"),
            Step::new(closed, Received, "ACK"),
            Step::new(Moment::Unknown, Received, "FIN").remark("unseen: the socket was gone"),
            Step::new(Moment::Unknown, Sent, "ACK"),
        ];
    }
    if close.app_wait.is_none() && close.duration.is_none() {
        return vec![
            Step::new(Moment::Unknown, Sent, "FIN"),
            Step::new(Moment::Unknown, Received, "ACK"),
            Step::new(closed, Here, "closed; the peer's FIN is not known of"),
        ];
    }
    vec![
        our_fin(closed, close.duration, "FIN"),
        Step::new(before(closed, close.app_wait), Received, "ACK"),
        Step::new(closed, Received, "FIN").remark(waited("its program took", close)),
        Step::new(closed.about(), Sent, "ACK"),
    ]
}

fn passive_four(close: &Close, closed: Moment) -> Vec<Step> {
    let peers_fin = before(closed, close.duration);
    vec![
        Step::new(peers_fin, Received, "FIN"),
        Step::new(peers_fin.about(), Sent, "ACK"),
        our_fin(closed, close.ack_wait, "FIN").remark(waited("our program took", close)),
        Step::new(closed, Received, "ACK"),
    ]
}

fn passive_three(close: &Close, closed: Moment) -> Vec<Step> {
    vec![
        Step::new(before(closed, close.duration), Received, "FIN"),
        our_fin(closed, close.ack_wait, "FIN+ACK").remark(waited("our program took", close)),
        Step::new(closed, Received, "ACK"),
    ]
}

fn simultaneous(close: &Close, closed: Moment) -> Vec<Step> {
    let fin = before(closed, close.ack_wait);
    let peers_fin = match (fin, close.duration) {
        (Moment::Measured(at), Some(us)) => Moment::Measured(at.saturating_add(us)),
        _ => Moment::Unknown,
    };
    vec![
        Step::new(fin, Sent, "FIN"),
        Step::new(peers_fin, Received, "FIN").remark("the two crossed"),
        Step::new(peers_fin.about(), Sent, "ACK"),
        Step::new(closed, Received, "ACK"),
    ]
}

fn reset(close: &Close, closed: Moment, direction: Direction) -> Vec<Step> {
    // The initiator sent a FIN, unless the RST came first.
    let began = match (close.initiator, direction) {
        (Some(Initiator::Local), Received) => Some(Sent),
        (Some(Initiator::Remote), Sent) => Some(Received),
        _ => None,
    };
    let mut steps: Vec<_> =
        began.map(|direction| Step::new(Moment::Unknown, direction, "FIN")).into_iter().collect();
    steps.push(Step::new(closed, direction, "RST"));
    steps
}

fn waited(who: &str, close: &Close) -> String {
    close.app_wait.map_or_else(String::new, |us| format!("{who} {}", duration(Some(us))))
}
