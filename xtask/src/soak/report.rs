//! The tables, and which of their rows are failures.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use super::{
    judge::{Limit, Trend},
    load::{self, Made},
    watch::{HostOpens, Scrape, Usage},
};

/// One sample.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    /// Since the load began.
    pub(super) seconds: f64,
    pub(super) usage: Usage,
    /// CPU time per second since the last sample.
    pub(super) cpu_ms: f64,
    pub(super) series: usize,
    pub(super) made: u64,
    pub(super) tls: u64,
}

/// What the library files of one group cost the daemon while it probes them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct PerGroup {
    pub(super) probes: f64,
}

impl PerGroup {
    /// From what the daemon uses after each of several groups. The first one loads programs that later ones
    /// share, and others on the host may bring files of their own meanwhile: the smallest step counts.
    pub(super) fn of(usages: &[Usage]) -> Self {
        let steps = usages.windows(2).map(|pair| pair[1].probes - pair[0].probes);
        Self { probes: steps.fold(f64::INFINITY, f64::min).clamp(0.0, 1000.0) }
    }
}

/// One figure with its limit.
struct Figure {
    name: &'static str,
    of: fn(&Sample, PerGroup) -> f64,
    limit: fn(PerGroup) -> Limit,
}

/// Less than these limits is noise: an allocator's arenas, one file more or less at the moment of the sample.
const FIGURES: [Figure; 8] = [
    Figure {
        name: "resident memory, KiB",
        of: |sample, _| sample.usage.resident_kib,
        limit: |_| Limit { least: 2048.0, part: 0.05 },
    },
    Figure {
        name: "anonymous memory, KiB",
        of: |sample, _| sample.usage.anonymous_kib,
        limit: |_| Limit { least: 1024.0, part: 0.05 },
    },
    Figure {
        name: "kernel memory of its maps, KiB",
        of: |sample, _| sample.usage.maps_kib,
        limit: |_| Limit { least: 256.0, part: 0.0 },
    },
    Figure {
        name: "descriptors, without those of probes",
        of: |sample, _| sample.usage.descriptors - sample.usage.probes,
        limit: |_| Limit { least: 4.0, part: 0.0 },
    },
    Figure {
        name: "probes",
        of: |sample, _| sample.usage.probes,
        limit: |each| Limit { least: (2.0 * each.probes).max(4.0), part: 0.0 },
    },
    Figure {
        name: "threads",
        of: |sample, _| sample.usage.threads,
        limit: |_| Limit { least: 1.5, part: 0.0 },
    },
    Figure {
        name: "CPU time, ms per second",
        of: |sample, _| sample.cpu_ms,
        limit: |_| Limit { least: 5.0, part: 0.5 },
    },
    Figure {
        name: "series",
        #[expect(clippy::cast_precision_loss, reason = "some thousands")]
        of: |sample, _| sample.series as f64,
        limit: |_| Limit { least: 20.0, part: 0.02 },
    },
];

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
const fn count(value: u64) -> f64 {
    value as f64
}

pub(super) const HEAD: &str = "      s  connections     TLS  resident  anonymous      maps    fds  \
     probes  threads  CPU ms/s  series";

/// One line while it runs.
pub(super) fn line(sample: &Sample) -> String {
    let Sample { seconds, usage, cpu_ms, series, made, tls } = sample;
    format!(
        "{seconds:>7.0}  {made:>11}  {tls:>6}  {:>8}  {:>9}  {:>8}  {:>5}  \
         {:>6}  {:>7}  {cpu_ms:>8.1}  {series:>6}",
        usage.resident_kib,
        usage.anonymous_kib,
        usage.maps_kib.round(),
        usage.descriptors,
        usage.probes,
        usage.threads
    )
}

/// The time that is not judged: until unused files are dropped as fast as new ones come, descriptors, probes
/// and memory rise by design.
fn warm_up(time: Duration) -> Duration {
    const LONG: Duration = Duration::from_mins(13);
    if time >= 2 * LONG { LONG } else { time / 4 }
}

/// Judges the figures by their slopes.
pub(super) fn trends(
    samples: &[Sample],
    each: PerGroup,
    time: Duration,
    failures: &mut Vec<String>,
) -> String {
    let warm_up = warm_up(time).as_secs_f64();
    let judged: Vec<_> = samples.iter().filter(|sample| sample.seconds > warm_up).collect();
    let mut text = format!(
        "\n| figure, after {warm_up} s | first third | last third | rise | allowed | |\n\
         | --- | --: | --: | --: | --: | --- |\n"
    );
    for figure in &FIGURES {
        let points: Vec<_> =
            judged.iter().map(|sample| (sample.seconds, (figure.of)(sample, each))).collect();
        let Some(trend) = Trend::of(&points, (figure.limit)(each)) else {
            failures.push(format!("{}: too few samples", figure.name));
            continue;
        };
        let judgement = if trend.is_flat() { "flat" } else { "RISES" };
        if !trend.is_flat() {
            failures.push(format!("{} rise by {:.1}, of {:.1}", figure.name, trend.rise, trend.first));
        }
        let _ = writeln!(
            text,
            "| {} | {:.1} | {:.1} | {:+.1} | {:.1} | {judgement} |",
            figure.name, trend.first, trend.last, trend.rise, trend.allowed
        );
    }
    text
}

/// One kind of thing that was made and counted.
#[derive(Debug)]
struct Count {
    name: &'static str,
    made: u64,
    counted: f64,
    /// Nobody else on the host contributes to it.
    is_ours: bool,
}

impl Count {
    fn difference(&self) -> f64 {
        self.counted - count(self.made)
    }

    fn is_right(&self) -> bool {
        let difference = self.difference();
        difference == 0.0 || (difference > 0.0 && !self.is_ours)
    }
}

/// What the load has made, beside what the daemon has counted.
#[derive(Debug)]
pub(super) struct Counts {
    counts: Vec<Count>,
    /// The rise of the gauge of connections: only those of others, once the load's are closed.
    open: f64,
}

impl Counts {
    /// `scrapes` is the number after the first: the open of the last and the close of the first are counted,
    /// too.
    pub(super) fn between(first: &Scrape, last: &Scrape, made: &Made, scrapes: u64) -> Self {
        const OPENS: &str = "handshake_tcp_opens_total";
        const CLOSES: &str = "handshake_tcp_closes_total";
        const TIMES: &str = "handshake_tcp_open_duration_seconds_count";
        const TLS: &str = "handshake_tls_handshakes_total";
        let (client, server) = ("role=\"client\"", "role=\"server\"");
        let (established, refused) = ("outcome=\"established\"", "outcome=\"refused\"");
        let completed = "outcome=\"completed\"";
        let [a, b, c, _] = load::TCP.octets();
        let network = format!("remote_net=\"{a}.{b}.{c}.0/24\"");
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let all = load(&made.established) + scrapes;
        let (without_tls, tls) = (load(&made.without_tls), load(&made.tls));
        let rise = |name: &str, labels: &[&str]| last.sum(name, labels) - first.sum(name, labels);
        let of_all = |name, made, metric, labels: &[&str]| Count {
            name,
            made,
            counted: rise(metric, labels),
            is_ours: false,
        };
        let of_ours = |name, made, metric, labels: &[&str]| Count {
            is_ours: true,
            ..of_all(name, made, metric, labels)
        };
        let counts = vec![
            of_all("opens, client, established", all, OPENS, &[client, established]),
            of_all("opens, server, established", all, OPENS, &[server, established]),
            of_all("opens, client, refused", load(&made.refused), OPENS, &[client, refused]),
            of_all("closes, client", all, CLOSES, &[client]),
            of_all("closes, server", all, CLOSES, &[server]),
            of_all("TLS, client, completed", tls, TLS, &[client, completed]),
            of_all("TLS, server, completed", tls, TLS, &[server, completed]),
            of_ours("times of opens without TLS, client", without_tls, TIMES, &[client, &network]),
            of_ours("times of opens without TLS, server", without_tls, TIMES, &[server, &network]),
        ];
        let open = rise("handshake_connections", &[client]) + rise("handshake_connections", &[server]);
        Self { counts, open }
    }

    /// Connections that others have opened meanwhile.
    fn of_others(&self) -> f64 {
        self.counts[..2].iter().map(Count::difference).sum()
    }

    pub(super) fn are_right(&self) -> bool {
        self.counts.iter().all(Count::is_right) && self.open <= self.of_others()
    }
}

pub(super) fn counts(counts: &Counts, others: HostOpens, failures: &mut Vec<String>) -> String {
    let mut text =
        String::from("\n| count | made | counted | difference | |\n| --- | --: | --: | --: | --- |\n");
    for row in &counts.counts {
        let difference = row.difference();
        let judgement = match (row.is_right(), difference == 0.0) {
            (true, true) => "exact",
            (true, false) => "others'",
            (false, _) => "WRONG",
        };
        if !row.is_right() {
            failures.push(format!("{}: {} made, {} counted", row.name, row.made, row.counted));
        }
        let _ = writeln!(
            text,
            "| {} | {} | {} | {difference:+} | {judgement} |",
            row.name, row.made, row.counted
        );
    }
    let is_right = counts.open <= counts.of_others();
    if !is_right {
        failures
            .push(format!("{} more connections are open than before, according to the gauge", counts.open));
    }
    let judgement = if !is_right {
        "WRONG"
    } else if counts.open == 0.0 {
        "exact"
    } else {
        "others'"
    };
    let _ = writeln!(text, "| still open, according to the gauge | 0 | {} | | {judgement} |", counts.open);
    let _ = writeln!(
        text,
        "\nothers on this host meanwhile: {} connections opened and {} accepted in this network \
         namespace, according to the kernel",
        others.active, others.passive
    );
    text
}

/// Records and connections that the daemon counts as lost.
pub(super) fn losses(before: &Scrape, after: &Scrape, failures: &mut Vec<String>) -> String {
    const LOST: &str = "handshake_events_lost_total";
    let mut text = String::from("lost, as the daemon counts:");
    for reason in ["ring_full", "state_full", "malformed", "recursion"] {
        let label = format!("reason=\"{reason}\"");
        let lost = after.sum(LOST, &[&label]) - before.sum(LOST, &[&label]);
        let _ = write!(text, " {reason} {lost}");
        // A connection that `recursion` hides shows as a wrong count.
        if lost > 0.0 && reason != "recursion" {
            failures.push(format!("{lost} lost: {reason}"));
        }
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(seconds: u32, resident_kib: f64, probes: f64) -> Sample {
        let usage = Usage { resident_kib, probes, descriptors: probes, ..Usage::default() };
        let seconds = f64::from(seconds);
        Sample { seconds, usage, cpu_ms: 1.0, series: 100, made: 0, tls: 0 }
    }

    const EACH: PerGroup = PerGroup { probes: 10.0 };

    fn failures(samples: &[Sample]) -> Vec<String> {
        let mut failures = Vec::new();
        trends(samples, EACH, Duration::from_mins(10), &mut failures);
        failures
    }

    #[test]
    fn probes_that_are_never_detached_are_a_rise() {
        let samples = |leaked: u32| {
            let probes = move |index: u32| f64::from(100 + index % 7 + index * leaked);
            (0..60).map(|index| sample(index * 10, 5000.0, probes(index))).collect::<Vec<_>>()
        };
        assert_eq!(failures(&samples(0)), Vec::<String>::new());
        assert!(failures(&samples(1))[0].starts_with("probes"), "{:?}", failures(&samples(1)));
    }

    #[test]
    fn cost_of_a_group_excludes_the_files_of_others() {
        let usages = [41.0, 45.0, 71.0, 75.0].map(|probes| Usage { probes, ..Usage::default() });
        assert_eq!(PerGroup::of(&usages), PerGroup { probes: 4.0 });
    }

    #[test]
    fn rising_memory_is_a_failure_only_after_the_warm_up() {
        let samples = |memory: fn(u32) -> f64| -> Vec<_> {
            (0..60).map(|index| sample(index * 10, memory(index), 0.0)).collect()
        };
        assert!(failures(&samples(|index| 5000.0 + f64::from(index) * 100.0))[0].starts_with("resident"));
        assert_eq!(failures(&samples(|index| f64::from(index.min(15)) * 5000.0)), Vec::<String>::new());
        assert_eq!(failures(&samples(|_| 1.0)[..16]).len(), FIGURES.len(), "too few samples");
    }

    #[test]
    fn surplus_is_wrong_only_for_our_own_counts() {
        let count = |counted, is_ours| Count { name: "", made: 10, counted, is_ours };
        assert!(count(10.0, true).is_right() && count(10.0, false).is_right());
        assert!(!count(9.0, true).is_right() && !count(9.0, false).is_right());
        assert!(!count(11.0, true).is_right() && count(11.0, false).is_right());
    }

    #[test]
    fn warm_up_is_a_quarter_of_a_short_run() {
        assert_eq!(warm_up(Duration::from_hours(1)), Duration::from_mins(13));
        assert_eq!(warm_up(Duration::from_mins(4)), Duration::from_mins(1));
    }
}
