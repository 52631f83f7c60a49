//! Records as lines for people.

use std::fmt::Write as _;

use handshake_common::{FastOpen, FinalAck, Stage, TlsOutcome};

use super::text::{duration, endpoint, pad};
use crate::event::{Close, ConnectionEvent, Open, Setup, Tls, Unseen};

/// The heading above the lines.
#[must_use]
pub fn heading() -> String {
    format!(
        "{:<15} {:<5} {:<6} {:<20} {:<21}   {:<21} {:<14} {:>9} {:>9}  {}",
        "TIME", "STAGE", "ROLE", "PROCESS", "LOCAL", "REMOTE", "RESULT", "DURATION", "RTT", "DETAILS"
    )
}

/// One record, one line. `?` is unknown.
#[must_use]
pub fn line(record: &ConnectionEvent) -> String {
    let time = humantime::format_rfc3339_micros(record.time).to_string();
    let time = time.split('T').nth(1).map_or("", |time| time.trim_end_matches('Z'));
    let process = record
        .process
        .as_ref()
        .map_or_else(|| "-".to_owned(), |process| format!("{}/{}", process.comm, process.pid));
    let (result, rtt, details) = match (record.stage, &record.open, &record.close) {
        (Stage::Close, open, Some(close)) => (
            close.style.map_or("?", |style| style.as_str()),
            open.as_ref().and_then(|open| open.rtt),
            close_details(record, close),
        ),
        (Stage::TimeWait, open, Some(close)) => (
            close.time_wait_end.map_or("late_fin", |end| end.as_str()),
            open.as_ref().and_then(|open| open.rtt),
            time_wait_details(close),
        ),
        (Stage::Tls, open, _) => (
            record.tls.as_ref().map_or("?", tls_result),
            open.as_ref().and_then(|open| open.rtt),
            tls_details(record),
        ),
        (_, Some(open), _) => {
            (open.outcome.map_or("?", |outcome| outcome.as_str()), open.rtt, open_details(open))
        }
        _ => ("?", None, String::new()),
    };
    let line = format!(
        "{time:<15} {:<5} {:<6} {} {:<21} {} {:<21} {result:<14} {:>9} {:>9}  {details}",
        record.stage.as_str(),
        record.role.map_or("?", |role| role.as_str()),
        pad(&process, 20),
        record.local.map_or_else(|| "?".to_owned(), endpoint),
        '→',
        record.remote.map_or_else(|| "?".to_owned(), endpoint),
        duration(record.duration()),
        duration(rtt),
    );
    line.trim_end().to_owned()
}

fn open_details(open: &Open) -> String {
    let mut details = Vec::new();
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

/// Version and class where it was completed, else how it ended.
fn tls_result(tls: &Tls) -> &'static str {
    match (tls.outcome, tls.class) {
        (Some(TlsOutcome::Completed), class) => class.map_or("completed", |class| class.as_str()),
        (outcome, _) => outcome.map_or("?", |outcome| outcome.as_str()),
    }
}

fn tls_details(record: &ConnectionEvent) -> String {
    let Some(tls) = &record.tls else { return String::new() };
    let mut details = Vec::new();
    if let Some(version) = tls.version {
        details.push(format!("TLS {version}"));
    }
    details.push(tls.library.map_or("library unknown", |library| library.as_str()).to_owned());
    if let Some(round_trips) = tls.round_trips {
        details.push(format!("{round_trips} RTT"));
    }
    if tls.compute.is_some() {
        details.push(format!("compute {}", duration(tls.compute)));
    }
    let said = [("alert", &tls.alert), ("", &tls.error), ("sni", &tls.sni), ("alpn", &tls.alpn)];
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use handshake_common::{Connection, ConnectionFlags, Role, TlsClass, TlsVersion};

    use super::*;
    use crate::{
        event::testing::waited,
        join::{
            build::tests::{client, closed_with_unseen_fin, event, tls_event},
            view::{TlsView, tests::completed},
        },
    };

    fn shown(raw: &Connection) -> String {
        format!("{}\n{}", heading(), line(&event(raw)))
    }

    #[test]
    fn an_opening() {
        let mut raw = client();
        raw.flags.insert(ConnectionFlags::SYN_FASTOPEN);
        raw.flags.insert(ConnectionFlags::SYN_DATA);
        insta::assert_snapshot!(shown(&raw));
    }

    #[test]
    fn a_closing_whose_end_nobody_saw() {
        let raw = closed_with_unseen_fin();
        insta::assert_snapshot!(shown(&raw));
    }

    #[test]
    fn late_fin_and_the_end_of_time_wait() {
        let end = waited(Role::Client);
        let mut fin = end.clone();
        let close = fin.close.as_mut().unwrap();
        (close.time_wait, close.time_wait_end, close.grain) = (None, None, Some(Duration::from_millis(1)));
        insta::assert_snapshot!(format!("{}\n{}", line(&fin), line(&end)));
    }

    #[test]
    fn a_tls_handshake() {
        let tls = TlsView {
            alpn: Some("h2".to_owned()),
            compute: Some(Duration::from_micros(1_234)),
            ..completed(Role::Client, TlsVersion::Tls13, TlsClass::Full)
        };
        insta::assert_snapshot!(line(&tls_event(&client(), &tls)));
    }

    #[test]
    fn names_cannot_drive_the_terminal() {
        let mut raw = client();
        raw.comm = *b"\x1b[31mred\n\0\0\0\0\0\0\0";
        let line = line(&event(&raw));
        assert!(!line.chars().any(char::is_control), "{line:?}");
    }
}
