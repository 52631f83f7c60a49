//! The last column: what else is to be said of the stage that ended.

use std::fmt::Write as _;

use handshake_common::{FastOpen, FinalAck, Stage};

use crate::{
    event::{Close, ConnectionEvent, Open, Setup, Tls, Unseen},
    join::advice,
    output::text::duration,
};

/// The facts of the stage that ended, the most important first.
pub(super) fn details(record: &ConnectionEvent) -> String {
    match (record.stage, &record.open, &record.tls, &record.close) {
        (Stage::Open, Some(open), ..) => open_details(open),
        (Stage::Tls, _, Some(tls), _) => tls_details(record, tls),
        (Stage::Close, _, _, Some(close)) => close_details(record, close),
        (Stage::TimeWait, _, _, Some(close)) => time_wait_details(close),
        _ => String::new(),
    }
}

fn open_details(open: &Open) -> String {
    let mut details = Vec::new();
    if open.simultaneous {
        details.push("simultaneous".to_owned());
    }
    if open.final_ack == Some(FinalAck::Data) {
        details.push("final ACK with data".to_owned());
    }
    match open.fast_open {
        Some(FastOpen::CookieRequested) => details.push("Fast Open: cookie requested".to_owned()),
        Some(FastOpen::DataAccepted) => details.push("Fast Open: data in the SYN accepted".to_owned()),
        Some(FastOpen::DataRejected) => {
            let mut text = "Fast Open: data in the SYN rejected".to_owned();
            if let Some(reason) = open.fast_open_reason {
                let _ = write!(text, " ({reason})");
            }
            details.push(text);
        }
        Some(FastOpen::None) | None => {}
    }
    if open.syn_retransmits > 0 {
        details.push(format!("SYN retransmitted ×{}", open.syn_retransmits));
    }
    if open.syn_cookie == Some(true) {
        details.push("SYN cookie".to_owned());
    }
    details.join(", ")
}

fn tls_details(record: &ConnectionEvent, tls: &Tls) -> String {
    let mut details = Vec::new();
    match (tls.version, tls.role.filter(|_| advice::has_two_roles(record))) {
        (Some(version), None) => details.push(format!("TLS {version}")),
        (Some(version), Some(role)) => details.push(format!("TLS {version} {role}")),
        (None, Some(role)) => details.push(format!("TLS {role}")),
        (None, None) => {}
    }
    details.push(tls.library.map_or("library unknown", |library| library.as_str()).to_owned());
    if let Some(round_trips) = tls.round_trips {
        details.push(format!("{round_trips} RTT"));
    }
    if tls.compute.is_some() {
        details.push(format!("compute {}", duration(tls.compute)));
    }
    if let Some(held) = tls.held.filter(|held| !held.is_zero()) {
        details.push(format!("last flight held {}", duration(Some(held))));
    }
    // OpenSSL's error is the alert that it received.
    let is_told = tls.alert.as_ref().zip(tls.error.as_ref()).is_some_and(|(alert, error)| {
        error.raw().strip_prefix("alert ").and_then(|rest| rest.strip_suffix(" received"))
            == Some(alert.raw())
    });
    let alert = tls.alert.as_ref().filter(|_| !is_told);
    let said =
        [("alert", alert), ("", tls.error.as_ref()), ("sni", tls.sni.as_ref()), ("alpn", tls.alpn.as_ref())];
    for (name, value) in said {
        if let Some(value) = value {
            details.push(format!("{name} {value}").trim_start().to_owned());
        }
    }
    if let Some(Setup { round_trips: Some(round_trips), duration: took, .. }) = record.setup {
        details.push(format!("setup {} in {round_trips} RTT", duration(took)));
    }
    if tls.includes_hello_wait {
        details.push("wait for the ClientHello included".to_owned());
    }
    details.join(", ")
}

fn close_details(record: &ConnectionEvent, close: &Close) -> String {
    let mut details = Vec::new();
    if let Some(initiator) = close.initiator {
        details.push(format!("by {initiator}"));
    }
    if close.ack_wait.is_some() {
        details.push(format!("ACK {}", duration(close.ack_wait)));
    }
    if close.app_wait.is_some() {
        details.push(format!("app {}", duration(close.app_wait)));
    }
    if let Some(wait) = record.open.as_ref().and_then(|open| open.accept_wait) {
        details.push(format!("accepted after {}", duration(Some(wait))));
    }
    if close.unseen == Some(Unseen::PeerFin) {
        details.push("peer's FIN unseen".to_owned());
    }
    if record.lifetime.is_some() {
        details.push(format!("lifetime {}", duration(record.lifetime)));
    }
    if record.preexisting {
        details.push("from before the trace".to_owned());
    }
    details.join(", ")
}

fn time_wait_details(close: &Close) -> String {
    let mut details = Vec::new();
    if close.late_fin && close.app_wait.is_some() {
        details.push(format!("app {}", duration(close.app_wait)));
    }
    if close.late_fin && close.duration.is_some() {
        details.push(format!("close {}", duration(close.duration)));
    }
    if let Some(id) = &close.reused_by {
        details.push(format!("by {id}"));
    }
    if close.grain.is_some() {
        details.push(format!("± {}", duration(close.grain)));
    }
    details.join(", ")
}
