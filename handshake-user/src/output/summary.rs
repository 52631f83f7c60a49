//! Percentiles per class over a whole session.

use std::{collections::BTreeMap, time::Duration};

use handshake_common::{FastOpen, FinalAck, Stage, TlsOutcome};
use hdrhistogram::Histogram;
use serde::{Serialize, Serializer};

use super::{
    chart::Bucket,
    text::{duration, table},
};
use crate::event::{ConnectionEvent, Tls, micros};

/// Longest duration that the histograms distinguish, microseconds: an hour.
const MAX_US: u64 = 3_600_000_000;
/// Upper bounds of buckets in a decade, tenths of its first (ISO 3, R5).
const BOUNDS: [u64; 5] = [10, 16, 25, 40, 63];

/// What took the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timed {
    /// A stage of a connection.
    Stage(Stage),
    /// Everything until the client may send application data.
    Setup,
}

impl Timed {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stage(stage) => stage.as_str(),
            Self::Setup => "setup",
        }
    }
}

impl Serialize for Timed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// What a session saw, by class. Classes come from closed lists, so their number is bounded.
#[derive(Debug, Default)]
pub struct Summary {
    classes: BTreeMap<(Timed, &'static str, String), Class>,
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
    /// The stage that ended, or `setup`.
    pub stage: Timed,
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
    /// How the durations are distributed; empty buckets are left out.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "upper_bounds")]
    pub buckets: Vec<Bucket>,
}

/// Of each bucket its upper bound and its count.
fn upper_bounds<S: Serializer>(buckets: &[Bucket], serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Shown {
        le_us: Option<u64>,
        count: u64,
    }
    serializer
        .collect_seq(buckets.iter().map(|bucket| Shown { le_us: bucket.to.map(micros), count: bucket.count }))
}

impl Summary {
    /// Takes a record in.
    pub fn add(&mut self, record: &ConnectionEvent) {
        let class = self.class(Timed::Stage(record.stage), record, class(record), record.duration());
        if let (Stage::Open, Some(rtt)) = (record.stage, record.rtt()) {
            class.rtts.saturating_record(micros(rtt));
        }
    }

    /// Takes the setup of a connection in, which any of its later records tells of; without one, nothing.
    pub fn add_setup(&mut self, record: &ConnectionEvent) {
        if let Some(setup) = record.setup {
            let name = record.tls.as_ref().map_or_else(|| "without TLS".to_owned(), kind);
            self.class(Timed::Setup, record, name, setup.duration);
        }
    }

    fn class(
        &mut self,
        timed: Timed,
        of: &ConnectionEvent,
        name: String,
        took: Option<Duration>,
    ) -> &mut Class {
        let role = of.role.map_or("?", |role| role.as_str());
        let class = self.classes.entry((timed, role, name)).or_insert_with(|| Class {
            count: 0,
            durations: histogram(),
            rtts: histogram(),
        });
        class.count += 1;
        if let Some(took) = took {
            class.durations.saturating_record(micros(took));
        }
        class
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
            buckets: buckets(&class.durations),
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
                row.stage.as_str().to_owned(),
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

/// What makes this handshake comparable with others.
fn kind(tls: &Tls) -> String {
    let version = tls.version.map_or_else(|| "TLS".to_owned(), |version| format!("TLS {version}"));
    let way = match tls.outcome {
        Some(TlsOutcome::Completed) => tls.class.map_or("class unknown", |class| class.as_str()),
        other => other.map_or("unknown", |outcome| outcome.as_str()),
    };
    format!("{version} {way}")
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, MAX_US, 3).expect("the bounds are constants that the library accepts")
}

/// The histogram's durations in fewer buckets; to its own three digits.
fn buckets(durations: &Histogram<u64>) -> Vec<Bucket> {
    let mut buckets: Vec<Bucket> = Vec::new();
    for step in durations.iter_recorded() {
        // What the longest are cut to.
        let (over, to) = around(step.value_iterated_to().min(MAX_US));
        match buckets.last_mut() {
            Some(last) if last.to.map(micros) == Some(to) => last.count += step.count_since_last_iteration(),
            _ => buckets.push(Bucket {
                over: Duration::from_micros(over),
                to: Some(Duration::from_micros(to)),
                count: step.count_since_last_iteration(),
            }),
        }
    }
    buckets
}

/// The bounds between which a number of microseconds is.
fn around(us: u64) -> (u64, u64) {
    let mut over = 0;
    // Whole ones begin with ten.
    for (decade, bound) in (0..).flat_map(|power| BOUNDS.map(|bound| (power, bound))) {
        let to = 10_u64.pow(decade) * bound / 10;
        if us <= to {
            return (over, to);
        }
        over = to;
    }
    unreachable!("bounds grow beyond every number that a histogram has")
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
        (Stage::Tls, ..) => record.tls.as_ref().map_or_else(|| "unknown".to_owned(), kind),
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
    fn buckets_have_what_was_recorded() {
        let mut summary = Summary::default();
        for us in [0, 1, 9, 10, 11, 16, 17, 1_000, 1_001, 7_200_000_000] {
            let mut raw = client();
            raw.open_ns = raw.syn_ns + us * 1_000;
            summary.add(&event(&raw));
        }
        let row = summary.rows().next().unwrap();
        let buckets: Vec<_> =
            row.buckets.iter().map(|it| (micros(it.over), it.to.map_or(0, micros), it.count)).collect();
        let expected = [
            (0, 1, 2),
            (6, 10, 2),
            (10, 16, 2),
            (16, 25, 1),
            (630, 1_000, 1),
            (1_000, 1_600, 1),
            (2_500_000_000, 4_000_000_000, 1),
        ];
        assert_eq!(buckets, expected);
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
