//! A report for a terminal or a mail.

use std::{fmt::Write as _, time::Duration};

use super::Report;
use crate::output::{
    ladder,
    text::{duration, table, wrap},
};

/// Columns that text keeps to.
const WIDTH: usize = 96;

/// The whole report; every line ends in a newline.
#[must_use]
pub fn text(report: &Report) -> String {
    let mut text = String::new();
    for line in heading(report) {
        let _ = writeln!(text, "{line}");
    }
    for Section { title, head, words, rows } in sections(report) {
        if rows.is_empty() {
            continue;
        }
        let _ = write!(text, "\n{title}\n\n");
        let lines: Vec<[String; COLUMNS]> =
            std::iter::once(head.map(|cell| cell.to_uppercase())).chain(rows).collect();
        text.push_str(&table(&lines, words));
    }
    if !report.savings.is_empty() {
        let _ = write!(text, "\n{SAVINGS}\n\n");
        for saving in &report.savings {
            let line = format!("{}: {}", saved(saving), saving.setting);
            let _ = writeln!(text, "{}", wrap(&line, WIDTH, 4));
            let _ = writeln!(text, "{}", wrap(&format!("    {}", saving.detail), WIDTH, 4));
        }
    }
    if !report.slowest.is_empty() {
        let _ = write!(text, "\n{SLOWEST}\n\n{}", ladder::legend());
        for record in &report.slowest {
            if report.hosts.len() > 1 {
                let _ = write!(text, "\n{}", ladder::host(record));
            }
            let _ = write!(text, "\n{}", ladder::draw(record));
        }
    }
    text
}

/// Most columns that a table has; the others are empty.
pub(super) const COLUMNS: usize = 10;
pub(super) const SAVINGS: &str = "Time and round trips lost, by the setting that saves them";
pub(super) const SLOWEST: &str = "The slowest connections, by setup";

/// A table of the report.
pub(super) struct Section {
    pub(super) title: &'static str,
    pub(super) head: [String; COLUMNS],
    /// How many columns are words; the others are numbers.
    pub(super) words: usize,
    pub(super) rows: Vec<[String; COLUMNS]>,
}

/// What the report is of, and what is missing from it.
pub(super) fn heading(report: &Report) -> Vec<String> {
    let mut lines =
        vec![format!("{}, {}", many(report.connections, "connection"), many(report.records, "record"))];
    if let (Some(from), Some(to)) = (&report.from, &report.to) {
        lines.push(format!("from {from} to {to}"));
    }
    let mut note = |count: u64, what: &str| {
        if count > 0 {
            lines.push(format!("missing: {count} {what}"));
        }
    };
    note(report.bad_lines, "lines that are not records");
    note(report.cut_off, "files in part: their compressed data ends too early or is damaged");
    note(report.lost, "records that were lost: the ring was full (a larger --ring-kib helps)");
    note(report.forgotten, "connections that stayed open: more than can be remembered");
    lines
}

/// How much a setting saves, of how many connections.
pub(super) fn saved(saving: &super::Saving) -> String {
    let (trips, connections) =
        (many(saving.round_trips, "round trip"), many(saving.connections, "connection"));
    format!("{}, {trips}, {connections}", saving.lost)
}

fn many(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

pub(super) fn sections(report: &Report) -> [Section; 5] {
    [hosts(report), services(report), stages(report), failures(report), inventory(report)]
}

/// Without rows for a single host.
fn hosts(report: &Report) -> Section {
    let rows = report.hosts.iter().filter(|_| report.hosts.len() > 1);
    let rows =
        rows.map(|row| cells([row.host.clone(), row.connections.to_string(), row.records.to_string()]));
    Section {
        title: "Hosts",
        head: head(&["host", "connections", "records"]),
        words: 1,
        rows: rows.collect(),
    }
}

fn services(report: &Report) -> Section {
    let rows = report.services.iter().map(|row| {
        cells([
            row.service.clone(),
            row.role.unwrap_or("?").to_owned(),
            row.openings.to_string(),
            row.failed.to_string(),
            row.syn_retransmits.to_string(),
            format!("{}/{}", row.tls_failed, row.tls),
            known(row.setup_p50_us),
            known(row.setup_p99_us),
            row.round_trips
                .zip(row.round_trips_possible)
                .map_or_else(|| "-".to_owned(), |(taken, possible)| format!("{taken}/{possible}")),
            row.resets.to_string(),
        ])
    });
    Section {
        title: "Services (TLS: failed of all; round trips: taken / possible)",
        head: head(&[
            "service",
            "role",
            "opened",
            "failed",
            "SYN again",
            "TLS",
            "p50",
            "p99",
            "trips",
            "reset",
        ]),
        words: 2,
        rows: rows.collect(),
    }
}

fn stages(report: &Report) -> Section {
    let rows = report.stages.iter().map(|row| {
        cells([
            row.stage.as_str().to_owned(),
            row.role.to_owned(),
            row.class.clone(),
            row.count.to_string(),
            row.timed.to_string(),
            known(row.p50_us),
            known(row.p90_us),
            known(row.p99_us),
            known(row.max_us),
            known(row.rtt_p50_us),
        ])
    });
    Section {
        title: "Durations by stage and class (unknown ones are counted, not timed)",
        head: head(&["stage", "role", "class", "count", "timed", "p50", "p90", "p99", "max", "RTT p50"]),
        words: 3,
        rows: rows.collect(),
    }
}

fn failures(report: &Report) -> Section {
    let rows = report.failures.iter().map(|row| {
        cells([row.layer.to_owned(), row.role.to_owned(), row.reason.clone(), row.count.to_string()])
    });
    Section {
        title: "Handshakes that failed",
        head: head(&["layer", "role", "reason", "count"]),
        words: 3,
        rows: rows.collect(),
    }
}

fn inventory(report: &Report) -> Section {
    let rows = report.inventory.iter().map(|row| {
        cells([
            row.version.to_owned(),
            row.class.to_owned(),
            row.cipher.clone(),
            row.role.to_owned(),
            row.library.to_owned(),
            row.count.to_string(),
        ])
    });
    Section {
        title: "TLS that was negotiated",
        head: head(&["version", "class", "cipher", "role", "library", "count"]),
        words: 5,
        rows: rows.collect(),
    }
}

fn head(cells: &[&str]) -> [String; COLUMNS] {
    std::array::from_fn(|i| cells.get(i).map(|cell| (*cell).to_owned()).unwrap_or_default())
}

fn cells<const N: usize>(cells: [String; N]) -> [String; COLUMNS] {
    let mut cells = cells.into_iter();
    std::array::from_fn(|_| cells.next().unwrap_or_default())
}

fn known(us: Option<u64>) -> String {
    us.map_or_else(|| "-".to_owned(), |us| duration(Some(Duration::from_micros(us))))
}
