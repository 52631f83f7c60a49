//! Percentiles per class over a whole session.

use std::{collections::BTreeMap, time::Duration};

use handshake_common::{FastOpen, FinalAck, Stage, TlsOutcome};
use hdrhistogram::Histogram;

use super::text::duration;
use crate::event::{ConnectionEvent, micros};

/// Longest duration that the histograms distinguish, microseconds: an hour.
const MAX_US: u64 = 3_600_000_000;

/// What a session saw, by class. Classes come from closed lists, so their number is bounded.
#[derive(Debug, Default)]
pub struct Summary {
    classes: BTreeMap<(Stage, &'static str, String), Class>,
}

#[derive(Debug)]
struct Class {
    count: u64,
    durations: Histogram<u64>,
    rtts: Histogram<u64>,
}

impl Summary {
    /// Takes a record in.
    pub fn add(&mut self, record: &ConnectionEvent) {
        let role = record.role.map_or("?", |role| role.as_str());
        let class = self.classes.entry((record.stage, role, class(record))).or_insert_with(|| Class {
            count: 0,
            durations: histogram(),
            rtts: histogram(),
        });
        class.count += 1;
        if let Some(took) = record.duration() {
            class.durations.saturating_record(micros(took));
        }
        if let (Stage::Open, Some(rtt)) = (record.stage, record.rtt()) {
            class.rtts.saturating_record(micros(rtt));
        }
    }

    /// The final table. Unknown durations are in `COUNT` but in no percentile.
    #[must_use]
    pub fn render(&self) -> String {
        if self.classes.is_empty() {
            return "no connection opened or closed\n".to_owned();
        }
        let mut lines = vec![
            ["STAGE", "ROLE", "CLASS", "COUNT", "TIMED", "P50", "P90", "P99", "MAX", "RTT P50"]
                .map(str::to_owned),
        ];
        for ((stage, role, name), class) in &self.classes {
            let timed = class.durations.len();
            let at = |histogram: &Histogram<u64>, quantile| {
                if histogram.is_empty() {
                    "-".to_owned()
                } else {
                    duration(Some(Duration::from_micros(histogram.value_at_quantile(quantile))))
                }
            };
            lines.push([
                stage.to_string(),
                (*role).to_owned(),
                name.clone(),
                class.count.to_string(),
                timed.to_string(),
                at(&class.durations, 0.5),
                at(&class.durations, 0.9),
                at(&class.durations, 0.99),
                at(&class.durations, 1.0),
                at(&class.rtts, 0.5),
            ]);
        }
        align(&lines)
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, MAX_US, 3).expect("the bounds are constants that the library accepts")
}

/// What makes this record comparable with others.
fn class(record: &ConnectionEvent) -> String {
    match (record.stage, &record.open, &record.close) {
        (Stage::Close, _, Some(close)) => {
            let style = close.style.map_or("unknown", |style| style.as_str());
            match close.initiator {
                Some(initiator) => format!("{style} by {initiator}"),
                None => style.to_owned(),
            }
        }
        (Stage::TimeWait, _, Some(close)) => {
            close.time_wait_end.map_or("late_fin", |end| end.as_str()).to_owned()
        }
        (Stage::Tls, ..) => {
            let Some(tls) = &record.tls else { return "unknown".to_owned() };
            let version = tls.version.map_or_else(|| "TLS".to_owned(), |version| format!("TLS {version}"));
            let way = match tls.outcome {
                Some(TlsOutcome::Completed) => tls.class.map_or("class unknown", |class| class.as_str()),
                other => other.map_or("unknown", |outcome| outcome.as_str()),
            };
            format!("{version} {way}")
        }
        (_, Some(open), _) => {
            let mut class = open.outcome.map_or("unknown", |outcome| outcome.as_str()).to_owned();
            if let Some(fast_open) = open.fast_open.filter(|&fast_open| fast_open != FastOpen::None) {
                class.push_str(" fast_open ");
                class.push_str(fast_open.as_str());
            }
            if open.final_ack == Some(FinalAck::Data) {
                class.push_str(" final_ack data");
            }
            if open.syn_retransmits > 0 {
                class.push_str(" retransmitted");
            }
            class
        }
        _ => "unknown".to_owned(),
    }
}

/// Columns as wide as their widest cell; words to the left, numbers to the right.
fn align<const N: usize>(lines: &[[String; N]]) -> String {
    const WORDS: usize = 3;
    let widths: [usize; N] =
        std::array::from_fn(|i| lines.iter().map(|line| line[i].chars().count()).max().unwrap_or(0));
    let mut text = String::new();
    for line in lines {
        for (i, cell) in line.iter().enumerate() {
            let pad = " ".repeat(widths[i] - cell.chars().count());
            let gap = if i == 0 { "" } else { "  " };
            let (before, after) = if i < WORDS { ("", pad.as_str()) } else { (pad.as_str(), "") };
            text.extend([gap, before, cell, after]);
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::join::build::tests::{client, event};

    #[test]
    fn empty_session_has_one_line() {
        assert_eq!(Summary::default().render(), "no connection opened or closed\n");
    }

    #[test]
    fn unknown_durations_are_counted_but_not_timed() {
        let mut summary = Summary::default();
        for i in 1..=100 {
            let mut raw = client();
            raw.open_ns = raw.syn_ns + i * 1_000_000;
            summary.add(&event(&raw));
        }
        let mut untimed = client();
        untimed.syn_ns = 0;
        untimed.syn_retransmits = 1;
        summary.add(&event(&untimed));
        insta::assert_snapshot!(summary.render());
    }
}
