//! Percentiles per class over a whole session.

use std::{collections::BTreeMap, time::Duration};

use handshake_common::{FastOpen, FinalAck, Stage, TlsOutcome};
use hdrhistogram::Histogram;
use serde::Serialize;

use super::text::{duration, table};
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

/// The durations of a class, microseconds, to three digits. Those that are unknown are in `count` alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The stage that ended.
    pub stage: Stage,
    /// The role of this host; `?` is unknown.
    pub role: &'static str,
    /// What makes the records comparable.
    pub class: String,
    /// Records.
    pub count: u64,
    /// Those whose duration is known.
    pub timed: u64,
    /// Half of the durations are not longer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50_us: Option<u64>,
    /// 90 % are not longer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p90_us: Option<u64>,
    /// 99 % are not longer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99_us: Option<u64>,
    /// The longest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_us: Option<u64>,
    /// Half of the network's round trips are not longer; for openings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtt_p50_us: Option<u64>,
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

    /// What the table has, class by class.
    pub fn rows(&self) -> impl Iterator<Item = Row> {
        let at = |histogram: &Histogram<u64>, quantile| {
            (!histogram.is_empty()).then(|| histogram.value_at_quantile(quantile))
        };
        self.classes.iter().map(move |(&(stage, role, ref name), class)| Row {
            stage,
            role,
            class: name.clone(),
            count: class.count,
            timed: class.durations.len(),
            p50_us: at(&class.durations, 0.5),
            p90_us: at(&class.durations, 0.9),
            p99_us: at(&class.durations, 0.99),
            max_us: at(&class.durations, 1.0),
            rtt_p50_us: at(&class.rtts, 0.5),
        })
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
        let at = |us: Option<u64>| {
            us.map_or_else(|| "-".to_owned(), |us| duration(Some(Duration::from_micros(us))))
        };
        for row in self.rows() {
            lines.push([
                row.stage.to_string(),
                row.role.to_owned(),
                row.class,
                row.count.to_string(),
                row.timed.to_string(),
                at(row.p50_us),
                at(row.p90_us),
                at(row.p99_us),
                at(row.max_us),
                at(row.rtt_p50_us),
            ]);
        }
        table(&lines, 3)
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
