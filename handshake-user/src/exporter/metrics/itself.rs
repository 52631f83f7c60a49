//! How the tracer itself is doing: its programs in the kernel, the ring, the files that await inspection, and
//! its configuration.

use std::time::{Duration, Instant, SystemTime};

use prometheus::{CounterVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::counting::catch_up;
use crate::{
    kernel::probe::RunTime,
    otlp::{self, Fate, Loss},
    recording::Counts,
};

/// The span of the ring's peak is one to two of these: longer than the usual scrape interval.
const SPAN: Duration = Duration::from_mins(1);

pub(super) struct Itself {
    run_seconds: CounterVec,
    runs: IntCounterVec,
    /// Absent until the ring is there, and where its positions cannot be read.
    ring_size: IntGaugeVec,
    ring_peak: IntGaugeVec,
    peak: Peak,
    inspections: IntGauge,
    records: [IntCounter; 4],
    traces: Traces,
    exports: [IntCounter; Fate::ALL.len()],
    reloads: [IntCounter; 2],
    reloaded: IntGauge,
    reloaded_at: IntGauge,
}

impl Itself {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        build_info(registry)?;
        let gauge = |name, help| -> prometheus::Result<IntGauge> {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let late_gauge = |name, help| -> prometheus::Result<IntGaugeVec> {
            let family = IntGaugeVec::new(Opts::new(name, help), &[])?;
            registry.register(Box::new(family.clone()))?;
            Ok(family)
        };
        let run_seconds = CounterVec::new(
            Opts::new(
                "handshake_bpf_run_seconds_total",
                "Time that the eBPF programs ran; only while kernel.bpf_stats_enabled is 1.",
            ),
            &["program"],
        )?;
        let runs = IntCounterVec::new(
            Opts::new(
                "handshake_bpf_runs_total",
                "How often the eBPF programs ran; only while kernel.bpf_stats_enabled is 1.",
            ),
            &["program"],
        )?;
        let reloads = IntCounterVec::new(
            Opts::new(
                "handshake_config_reloads_total",
                "Reloads of the configuration that were asked for, by result.",
            ),
            &["result"],
        )?;
        let counter = |name, help| -> prometheus::Result<IntCounter> {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let dropped = IntCounterVec::new(
            Opts::new(
                "handshake_records_dropped_total",
                "Records that were not written to the folder for them, by reason.",
            ),
            &["reason"],
        )?;
        let exports = IntCounterVec::new(
            Opts::new(
                "handshake_otlp_metric_exports_total",
                "Exports of these metrics to a collector, by what became of them.",
            ),
            &["result"],
        )?;
        registry.register(Box::new(exports.clone()))?;
        registry.register(Box::new(dropped.clone()))?;
        registry.register(Box::new(run_seconds.clone()))?;
        registry.register(Box::new(runs.clone()))?;
        registry.register(Box::new(reloads.clone()))?;
        Ok(Self {
            run_seconds,
            runs,
            ring_size: late_gauge("handshake_ring_size_bytes", "Size of the ring buffer for records.")?,
            ring_peak: late_gauge(
                "handshake_ring_peak_bytes",
                "The most that waited in the ring buffer when it was read, of the last one to two minutes.",
            )?,
            peak: Peak::new(Instant::now()),
            inspections: gauge(
                "handshake_tls_inspection_queue_files",
                "Files that may hold a TLS library and await their inspection.",
            )?,
            records: [
                counter(
                    "handshake_records_written_total",
                    "Records that were written to the folder for them.",
                )?,
                counter("handshake_records_written_bytes_total", "Their bytes, compressed.")?,
                dropped.with_label_values(&["queue_full"]),
                dropped.with_label_values(&["disk"]),
            ],
            traces: Traces::new(registry)?,
            exports: Fate::ALL.map(|fate| exports.with_label_values(&[fate.as_str()])),
            reloads: ["success", "failure"].map(|result| reloads.with_label_values(&[result])),
            reloaded: gauge(
                "handshake_config_last_reload_successful",
                "Whether the last reload of the configuration succeeded; 1 before the first.",
            )?,
            reloaded_at: gauge(
                "handshake_config_last_reload_success_timestamp_seconds",
                "When the configuration in force was read.",
            )?,
        })
    }

    /// Takes how long each program has run, or that the kernel does not keep it.
    pub(super) fn run_times(&self, run_times: Option<&[RunTime]>) {
        let Some(run_times) = run_times else {
            self.run_seconds.reset();
            self.runs.reset();
            return;
        };
        for RunTime { program, time, runs } in run_times {
            let seconds = self.run_seconds.with_label_values(&[program]);
            // A difference below zero is one of rounding.
            seconds.inc_by((time.as_secs_f64() - seconds.get()).max(0.0));
            catch_up(&self.runs.with_label_values(&[program]), *runs);
        }
    }

    /// Takes how much of the ring was in use when it was read.
    pub(super) fn ring(&mut self, waiting: u64, size: u64) {
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let none: &[&str] = &[];
        self.ring_size.with_label_values(none).set(signed(size));
        self.ring_peak.with_label_values(none).set(signed(self.peak.of(waiting, Instant::now())));
    }

    pub(super) fn inspections(&self, files: usize) {
        self.inspections.set(i64::try_from(files).unwrap_or(i64::MAX));
    }

    /// Takes what became of the records.
    pub(super) fn records(&self, counts: Counts) {
        let Counts { written, bytes, dropped_queue, dropped_disk } = counts;
        for (counter, now) in self.records.iter().zip([written, bytes, dropped_queue, dropped_disk]) {
            catch_up(counter, now);
        }
    }

    /// Takes what became of the connections that are exported.
    pub(super) fn traces(&self, counts: &otlp::Counts) {
        let otlp::Counts { sampled, left_out, exported, dropped, .. } = *counts;
        let Traces { connections, exported: taken, dropped: lost } = &self.traces;
        for (counter, now) in connections.iter().zip([sampled, left_out]) {
            catch_up(counter, now);
        }
        catch_up(taken, exported);
        for (counter, now) in lost.iter().zip(dropped) {
            catch_up(counter, now);
        }
    }

    /// Takes what became of the exports of the metrics.
    pub(super) fn exports(&self, fates: &otlp::Fates) {
        for (counter, now) in self.exports.iter().zip(fates) {
            catch_up(counter, *now);
        }
    }

    /// Counts an attempt to read the configuration anew.
    pub(super) fn reloaded(&self, is_success: bool) {
        self.reloads[usize::from(!is_success)].inc();
        if is_success {
            self.in_force();
        } else {
            self.reloaded.set(0);
        }
    }

    /// The configuration has just been read.
    pub(super) fn in_force(&self) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.reloaded_at.set(now.as_secs().try_into().unwrap_or(i64::MAX));
        self.reloaded.set(1);
    }
}

/// The export of connections to a collector.
struct Traces {
    connections: [IntCounter; 2],
    exported: IntCounter,
    dropped: [IntCounter; Loss::ALL.len()],
}

impl Traces {
    fn new(registry: &Registry) -> prometheus::Result<Self> {
        let connections = IntCounterVec::new(
            Opts::new(
                "handshake_otlp_connections_total",
                "Connections that ended while traces are exported, by whether theirs is.",
            ),
            &["sampled"],
        )?;
        let exported = IntCounter::new(
            "handshake_otlp_spans_exported_total",
            "Spans that the collector has confirmed to have taken.",
        )?;
        let dropped = IntCounterVec::new(
            Opts::new("handshake_otlp_spans_dropped_total", "Spans that were not exported, by reason."),
            &["reason"],
        )?;
        registry.register(Box::new(connections.clone()))?;
        registry.register(Box::new(exported.clone()))?;
        registry.register(Box::new(dropped.clone()))?;
        Ok(Self {
            connections: ["true", "false"].map(|sampled| connections.with_label_values(&[sampled])),
            exported,
            dropped: Loss::ALL.map(|loss| dropped.with_label_values(&[loss.as_str()])),
        })
    }
}

/// The most of the last one to two [`SPAN`]s: a scrape must not take away what the next one asks for.
struct Peak {
    since: Instant,
    now: u64,
    before: u64,
}

impl Peak {
    const fn new(since: Instant) -> Self {
        Self { since, now: 0, before: 0 }
    }

    fn of(&mut self, value: u64, at: Instant) -> u64 {
        let elapsed = at.saturating_duration_since(self.since);
        if elapsed >= SPAN {
            self.before = if elapsed < SPAN * 2 { self.now } else { 0 };
            (self.since, self.now) = (at, 0);
        }
        self.now = self.now.max(value);
        self.now.max(self.before)
    }
}

fn build_info(registry: &Registry) -> prometheus::Result<()> {
    let family = IntGaugeVec::new(
        Opts::new("handshake_build_info", "Always 1; the labels say what is running."),
        &["version", "arch"],
    )?;
    family.with_label_values(&[env!("CARGO_PKG_VERSION"), std::env::consts::ARCH]).set(1);
    registry.register(Box::new(family))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peak_is_kept_for_one_to_two_minutes() {
        let begin = Instant::now();
        let mut peak = Peak::new(begin);
        let mut at = |seconds, value| peak.of(value, begin + Duration::from_secs(seconds));
        assert_eq!([at(0, 5), at(10, 900), at(59, 7)], [5, 900, 900]);
        assert_eq!([at(60, 8), at(119, 3)], [900, 900], "a second scrape sees it too");
        assert_eq!([at(120, 2), at(121, 1)], [8, 8]);
        assert_eq!(at(500, 4), 4, "nothing was read meanwhile");
    }

    #[test]
    fn run_times_are_absent_while_the_kernel_does_not_keep_them() {
        let registry = Registry::new();
        let itself = Itself::new(&registry).unwrap();
        let text =
            || super::super::exposition::render(&registry.gather(), super::super::Format::Text).unwrap();
        let run = |ms, runs| RunTime { program: "a".to_owned(), time: Duration::from_millis(ms), runs };
        itself.run_times(Some(&[run(250, 3)]));
        itself.run_times(Some(&[run(1500, 4)]));
        assert!(text().contains("handshake_bpf_run_seconds_total{program=\"a\"} 1.5\n"), "{}", text());
        assert!(text().contains("handshake_bpf_runs_total{program=\"a\"} 4\n"), "{}", text());
        itself.run_times(None);
        assert!(!text().contains("handshake_bpf_run"), "{}", text());
        itself.run_times(Some(&[run(2000, 9)]));
        assert!(text().contains("handshake_bpf_runs_total{program=\"a\"} 9\n"), "{}", text());
    }
}
