//! The segments that close a connection (RFC 9293 §3.6), and who waited for whom.

use std::time::Duration;

use handshake_common::{CloseStyle, Initiator, TimeWaitEnd};

use super::{
    MAX_NAME,
    step::{
        Direction::{self, Here, Received, Sent},
        Moment, Step,
    },
};
use crate::{
    event::{Close, ConnectionEvent, Unseen},
    output::text::duration,
};

/// The close, and what came after it.
pub(super) fn steps(record: &ConnectionEvent, close: &Close) -> Vec<Step> {
    let mut steps = segments(record, close);
    steps.extend(time_wait(record, close));
    steps
}

fn segments(record: &ConnectionEvent, close: &Close) -> Vec<Step> {
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

/// How TIME_WAIT ended (RFC 9293 §3.6.1), as far as that is known.
fn time_wait(record: &ConnectionEvent, close: &Close) -> Option<Step> {
    let entered = if close.late_fin {
        late_fin(close, Moment::measured(record.lifetime))
    } else {
        Moment::measured(record.lifetime)
    };
    let over = match (entered, close.time_wait) {
        (Moment::Measured(at), Some(lasted)) => Moment::Measured(at.saturating_add(lasted)),
        _ => Moment::Unknown,
    };
    let lasted =
        close.time_wait.map_or_else(String::new, |lasted| format!(" after {}", duration(Some(lasted))));
    Some(match close.time_wait_end? {
        TimeWaitEnd::RanOut => Step::new(over, Here, "TIME_WAIT is over").remark(format!("ran out{lasted}")),
        TimeWaitEnd::Reused => {
            let by = close
                .reused_by
                .as_ref()
                .map_or_else(String::new, |id| format!(" by connection {id:.MAX_NAME$}"));
            Step::new(over, Here, "TIME_WAIT is over").remark(format!("its ends were taken{lasted}{by}"))
        }
        TimeWaitEnd::Reset => Step::new(over, Here, "TIME_WAIT is over").remark("before its time: reset"),
        TimeWaitEnd::CutOff => {
            Step::new(Moment::Unknown, Here, "no TIME_WAIT").remark("tcp_max_tw_buckets was reached")
        }
        TimeWaitEnd::NoFin => {
            Step::new(Moment::Unknown, Here, "no longer waited for").remark("tcp_fin_timeout was over")
        }
    })
}

/// When the peer's FIN came to the minisocket; the socket was closed with the ACK of ours.
fn late_fin(close: &Close, closed: Moment) -> Moment {
    match (closed, close.app_wait) {
        (Moment::Measured(at), Some(wait)) => Moment::Measured(at.saturating_add(wait)),
        _ => Moment::Unknown,
    }
}

fn active_four(close: &Close, closed: Moment) -> Vec<Step> {
    if close.late_fin {
        let fin = late_fin(close, closed);
        return vec![
            our_fin(closed, close.ack_wait, "FIN"),
            Step::new(closed, Received, "ACK"),
            Step::new(fin, Received, "FIN").remark(waited("its program took", close)),
            Step::new(fin.about(), Sent, "ACK"),
        ];
    }
    if close.time_wait_end == Some(TimeWaitEnd::NoFin) {
        return vec![
            our_fin(closed, close.ack_wait, "FIN"),
            Step::new(closed, Received, "ACK"),
            Step::new(Moment::Unknown, Here, "the peer never sent its FIN"),
        ];
    }
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
    let give_or_take = close.grain.filter(|_| close.late_fin);
    let give_or_take = give_or_take.map_or_else(String::new, |grain| format!(" ± {}", duration(Some(grain))));
    close.app_wait.map_or_else(String::new, |us| format!("{who} {}{give_or_take}", duration(Some(us))))
}
