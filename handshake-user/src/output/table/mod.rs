//! Records as lines for people: one record, one line, whatever the width of the terminal.

mod column;
mod details;

use handshake_common::{CloseStyle, FastOpen, Outcome, Stage, TlsClass, TlsOutcome};

pub use self::column::Column;
pub(crate) use self::column::cut;
use self::column::layout;
use super::text::{columns, duration, endpoint, pad};
use crate::{
    event::{ConnectionEvent, Open, Tls},
    join::advice::{self, Setting},
    untrusted::Untrusted,
};

/// How the lines are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    columns: Vec<(Column, usize)>,
    width: usize,
    colours: bool,
}

/// What a colour says at a glance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// It failed.
    Failed,
    /// A round trip was lost: a retransmission, a HelloRetryRequest, early data in vain.
    Lost,
    /// It took longer than the network explains.
    Slow,
}

impl Tone {
    /// `Select Graphic Rendition` of ECMA-48: red, yellow, magenta.
    const fn code(self) -> &'static str {
        match self {
            Self::Failed => "31",
            Self::Lost => "33",
            Self::Slow => "35",
        }
    }
}

impl Table {
    /// With these columns; none are those for which there is room. Without a `width`, lines are as long as
    /// they are.
    #[must_use]
    pub fn new(chosen: &[Column], width: Option<usize>, colours: bool) -> Self {
        Self { columns: layout(chosen, width, false), width: width.unwrap_or(usize::MAX), colours }
    }

    /// The same for records of several hosts, which lines name unless other columns were chosen.
    #[must_use]
    pub fn of_hosts(chosen: &[Column], width: Option<usize>, colours: bool) -> Self {
        Self { columns: layout(chosen, width, true), width: width.unwrap_or(usize::MAX), colours }
    }

    /// The heading above the lines.
    #[must_use]
    pub fn heading(&self) -> String {
        self.row(|column| (column.heading().to_owned(), None))
    }

    /// One record, one line. `?` is unknown.
    #[must_use]
    pub fn line(&self, record: &ConnectionEvent) -> String {
        self.row(|column| (cell(record, column), if self.colours { tone(record, column) } else { None }))
    }

    /// The same in pieces, each with what its colour says; the lines of the two have the same text.
    #[must_use]
    pub fn pieces(&self, record: &ConnectionEvent) -> Vec<(String, Option<Tone>)> {
        self.cells(|column| (cell(record, column), tone(record, column)))
    }

    fn row(&self, cell: impl Fn(Column) -> (String, Option<Tone>)) -> String {
        let mut line = String::new();
        for (text, tone) in self.cells(cell) {
            match tone {
                Some(tone) => line.extend(["\x1b[", tone.code(), "m", &text, "\x1b[0m"]),
                None => line.push_str(&text),
            }
        }
        line.trim_end().to_owned()
    }

    fn cells(&self, cell: impl Fn(Column) -> (String, Option<Tone>)) -> Vec<(String, Option<Tone>)> {
        let mut cells = Vec::new();
        let mut room = self.width;
        for (index, &(column, width)) in self.columns.iter().enumerate() {
            if index > 0 {
                let Some(left) = room.checked_sub(1) else { break };
                room = left;
                cells.push((" ".to_owned(), None));
            }
            let (text, tone) = cell(column);
            let width = width.min(room);
            let text = cut(&text, width, column.is_endpoint());
            let is_last = index + 1 == self.columns.len();
            let gap = width.saturating_sub(columns(&text));
            let text = match (column.is_number(), is_last) {
                (true, _) => format!("{}{text}", " ".repeat(gap)),
                (false, false) => pad(&text, width),
                (false, true) => text,
            };
            room -= columns(&text).min(room);
            cells.push((text, tone));
        }
        cells
    }
}

fn cell(record: &ConnectionEvent, column: Column) -> String {
    match column {
        Column::Time => {
            let time = humantime::format_rfc3339_millis(record.time).to_string();
            time.split('T').nth(1).map_or_else(String::new, |time| time.trim_end_matches('Z').to_owned())
        }
        Column::Host => record.host.as_ref().map_or_else(|| "?".to_owned(), Untrusted::to_string),
        // The word of the records is wider than the others.
        Column::Stage => {
            if record.stage == Stage::TimeWait { "wait" } else { record.stage.as_str() }.to_owned()
        }
        Column::Role => record.role.map_or("?", |role| role.as_str()).to_owned(),
        Column::Process => record.process.as_ref().map_or_else(
            || "-".to_owned(),
            |process| {
                let comm = process.comm.as_ref().map_or_else(|| "?".to_owned(), Untrusted::to_string);
                format!("{comm}/{}", process.pid)
            },
        ),
        Column::Local => record.local.map_or_else(|| "?".to_owned(), endpoint),
        Column::Remote => record.remote.map_or_else(|| "?".to_owned(), endpoint),
        Column::Result => result(record).to_owned(),
        Column::Duration => duration(record.duration()),
        Column::Rtt => duration(record.rtt()),
        Column::Details => details::details(record),
    }
}

fn result(record: &ConnectionEvent) -> &'static str {
    match record.stage {
        Stage::Open => record.open.as_ref().and_then(|open| open.outcome).map(Outcome::as_str),
        Stage::Tls => record.tls.as_ref().and_then(tls_result),
        Stage::Close => record.close.as_ref().and_then(|close| close.style).map(CloseStyle::as_str),
        Stage::TimeWait => Some(
            record
                .close
                .as_ref()
                .and_then(|close| close.time_wait_end)
                .map_or("late_fin", |end| end.as_str()),
        ),
    }
    .unwrap_or("?")
}

/// The class where it was completed, else how it ended.
fn tls_result(tls: &Tls) -> Option<&'static str> {
    match (tls.outcome?, tls.class) {
        (TlsOutcome::Completed, Some(class)) => Some(class.as_str()),
        (outcome, _) => Some(outcome.as_str()),
    }
}

fn tone(record: &ConnectionEvent, column: Column) -> Option<Tone> {
    match column {
        Column::Result if has_failed(record) => Some(Tone::Failed),
        Column::Result if has_lost_a_round_trip(record) => Some(Tone::Lost),
        Column::Duration if is_slow(record) => Some(Tone::Slow),
        _ => None,
    }
}

fn has_failed(record: &ConnectionEvent) -> bool {
    match record.stage {
        Stage::Open => record
            .open
            .as_ref()
            .and_then(|open| open.outcome)
            .is_some_and(|outcome| outcome != Outcome::Established),
        Stage::Tls => record
            .tls
            .as_ref()
            .and_then(|tls| tls.outcome)
            .is_some_and(|outcome| outcome != TlsOutcome::Completed),
        Stage::Close => matches!(
            record.close.as_ref().and_then(|close| close.style),
            Some(CloseStyle::ResetSent | CloseStyle::ResetReceived | CloseStyle::TimedOut)
        ),
        Stage::TimeWait => false,
    }
}

fn has_lost_a_round_trip(record: &ConnectionEvent) -> bool {
    let in_open = |open: &Open| open.syn_retransmits > 0 || open.fast_open == Some(FastOpen::DataRejected);
    let in_tls = |tls: &Tls| advice::was_retried(tls) || tls.class == Some(TlsClass::EarlyDataRejected);
    match record.stage {
        Stage::Open => record.open.as_ref().is_some_and(in_open),
        Stage::Tls => record.tls.as_ref().is_some_and(in_tls),
        Stage::Close | Stage::TimeWait => false,
    }
}

/// Whether the advice for this stage is about time, not about round trips.
fn is_slow(record: &ConnectionEvent) -> bool {
    advice::advise(record).iter().any(|advice| {
        let stage = match advice.setting {
            Setting::SynLost | Setting::SynAckLost => Stage::Open,
            Setting::LateHello | Setting::SetupWait => Stage::Tls,
            Setting::DelayedAck | Setting::SlowClosePeer | Setting::SlowCloseHere => Stage::Close,
            _ => return false,
        };
        stage == record.stage
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use handshake_common::{Connection, ConnectionFlags, Role, TlsVersion};

    use super::*;
    use crate::{
        event::testing::{closed, opened, waited, with_tls},
        join::{
            build::tests::{client, closed_with_unseen_fin, event, tls_event},
            view::{TlsView, tests::completed},
        },
    };

    fn shown(raw: &Connection) -> String {
        let table = Table::new(&[], None, false);
        format!("{}\n{}", table.heading(), table.line(&event(raw)))
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
        let table = Table::new(&[], None, false);
        insta::assert_snapshot!(format!("{}\n{}", table.line(&fin), table.line(&end)));
    }

    fn handshake() -> ConnectionEvent {
        let tls = TlsView {
            alpn: Some("h2".to_owned()),
            compute: Some(Duration::from_micros(1_234)),
            ..completed(Role::Client, TlsVersion::Tls13, TlsClass::Full)
        };
        tls_event(&client(), &tls)
    }

    #[test]
    fn a_tls_handshake() {
        insta::assert_snapshot!(Table::new(&[], None, false).line(&handshake()));
    }

    #[test]
    fn one_record_is_one_line_on_any_terminal() {
        let mut long = handshake();
        long.process.as_mut().unwrap().comm = Some("a服务with-a-long-name".into());
        long.remote.as_mut().unwrap().addr = "2001:db8:1111:2222:3333:4444:5555:6666".parse().ok();
        let records = [long, handshake(), event(&closed_with_unseen_fin()), event(&client())];
        let mut all = String::new();
        for width in [80, 100, 120, 200] {
            let table = Table::new(&[], Some(width), false);
            let lines: Vec<_> =
                [table.heading()].into_iter().chain(records.iter().map(|it| table.line(it))).collect();
            for line in &lines {
                assert!(columns(line) <= width, "{} of {width}: {line}", columns(line));
            }
            all.push_str(&lines.join("\n"));
            all.push_str("\n\n");
        }
        insta::assert_snapshot!(all);
    }

    #[test]
    fn chosen_columns_keep_their_order_and_the_width() {
        let chosen = [Column::Remote, Column::Duration, Column::Details, Column::Time];
        let line = Table::new(&chosen, Some(60), false).line(&handshake());
        assert!(line.starts_with("10.0.0.2:443 ") && line.contains(" TLS 1.3"), "{line}");
        assert!(columns(&line) <= 60, "{line}");
        let narrow = Table::new(&chosen, Some(30), false);
        assert_eq!(columns(&narrow.heading()).max(30), 30);
        assert!(columns(&narrow.line(&handshake())) <= 30);
    }

    #[test]
    fn colours_say_failed_lost_and_slow() {
        let coloured = |record: &ConnectionEvent| {
            let line = Table::new(&[], Some(100), true).line(record);
            let plain = Table::new(&[], Some(100), false).line(record);
            let codes: Vec<String> =
                line.split("\x1b[").skip(1).map(|rest| rest.split('m').next().unwrap().to_owned()).collect();
            let stripped = codes.iter().fold(line, |line, code| line.replace(&format!("\x1b[{code}m"), ""));
            assert_eq!(stripped, plain, "colours take no room");
            codes
        };
        assert_eq!(coloured(&opened(Role::Client)), [""; 0]);
        let mut refused = opened(Role::Client);
        refused.open.as_mut().unwrap().outcome = Some(Outcome::Refused);
        assert_eq!(coloured(&refused), ["31", "0"]);
        let retried = with_tls(Role::Client, TlsVersion::Tls13, TlsClass::HelloRetry);
        assert_eq!(coloured(&retried)[..2], ["33", "0"]);
        let mut slow = closed(Role::Client);
        let close = slow.close.as_mut().unwrap();
        (close.app_wait, close.style) = (Some(Duration::from_secs(1)), Some(CloseStyle::FourSegments));
        assert_eq!(coloured(&slow), ["35", "0"]);
    }

    #[test]
    fn an_alert_is_told_once() {
        let said = |error: &str| {
            let mut record = handshake();
            let tls = record.tls.as_mut().unwrap();
            (tls.alert, tls.error) = (Some("unknown_ca".into()), Some(error.into()));
            Table::new(&[], None, false).line(&record)
        };
        let line = said("alert unknown_ca received");
        assert_eq!(line.matches("unknown_ca").count(), 1, "{line}");
        assert!(said("certificate verify failed").contains("alert unknown_ca, certificate verify failed"));
    }

    #[test]
    fn names_cannot_drive_the_terminal() {
        let mut raw = client();
        raw.comm = *b"\x1b[31mred\n\0\0\0\0\0\0\0";
        let line = Table::new(&[], Some(80), false).line(&event(&raw));
        assert!(!line.chars().any(char::is_control), "{line:?}");
    }
}
