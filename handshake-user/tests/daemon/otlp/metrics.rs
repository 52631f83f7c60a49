//! Metrics, pushed to a collector.
#![expect(clippy::cast_precision_loss, reason = "small numbers")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, thread,
    time::Duration,
};

use nix::sys::signal::Signal;
use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    common::v1::KeyValue,
    metrics::v1::{AggregationTemporality, Metric, metric::Data, number_data_point::Value as Number},
};

use super::collector::{Collector, Manner, text, wait_for};
use crate::{
    close, connect, listen,
    program::{Daemon, Scrape, machine::patience},
};

const CONNECTIONS: &str = "handshake_otlp_connections_total";
const EXPORTS: &str = "handshake_otlp_metric_exports_total";
/// Metrics alone, as often as can be.
const METRICS: [(&str, &str); 2] =
    [("OTEL_TRACES_EXPORTER", "none"), ("OTEL_METRIC_EXPORT_INTERVAL", "1000")];

/// The latest metrics that it took.
fn latest(collector: &Collector) -> ExportMetricsServiceRequest {
    collector.seen.lock().unwrap().metrics.last().expect("no metrics").clone()
}

/// Families and their metrics.
fn by_name(request: &ExportMetricsServiceRequest) -> BTreeMap<String, Metric> {
    let [of] = &request.resource_metrics[..] else { panic!("{request:?}") };
    let [scope] = &of.scope_metrics[..] else { panic!("{request:?}") };
    assert_eq!(scope.scope.as_ref().unwrap().name, "handshake");
    let named: BTreeMap<_, _> = scope.metrics.iter().map(|it| (it.name.clone(), it.clone())).collect();
    assert_eq!(named.len(), scope.metrics.len(), "each once");
    named
}

/// A series as in the text of Prometheus, with its labels in order.
fn series(name: &str, labels: impl IntoIterator<Item = (String, String)>) -> String {
    let mut labels: Vec<_> = labels.into_iter().map(|(name, value)| format!("{name}={value:?}")).collect();
    labels.sort();
    format!("{name}{{{}}}", labels.join(","))
}

/// What only grows, as a scrape has it: counters, and the buckets, sums and counts of histograms.
fn growing(request: &ExportMetricsServiceRequest) -> BTreeMap<String, f64> {
    let mut values = BTreeMap::new();
    for (name, metric) in by_name(request) {
        let labels = |attributes: &[KeyValue]| -> Vec<(String, String)> {
            let value = |one: &KeyValue| text(attributes, &one.key).unwrap();
            attributes.iter().map(|one| (one.key.clone(), value(one))).collect()
        };
        let cumulative = AggregationTemporality::Cumulative as i32;
        match metric.data.unwrap() {
            Data::Sum(sum) => {
                assert!(sum.is_monotonic && sum.aggregation_temporality == cumulative, "{name}");
                for point in sum.data_points {
                    assert!(0 < point.start_time_unix_nano, "{name}");
                    assert!(point.start_time_unix_nano < point.time_unix_nano, "{name}");
                    let Some(Number::AsDouble(value)) = point.value else { panic!("{name}: {point:?}") };
                    values.insert(series(&name, labels(&point.attributes)), value);
                }
            }
            Data::Histogram(histogram) => {
                assert_eq!(histogram.aggregation_temporality, cumulative, "{name}");
                for point in histogram.data_points {
                    let of = labels(&point.attributes);
                    assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1, "{name}");
                    assert_eq!(point.bucket_counts.iter().sum::<u64>(), point.count, "{name}");
                    let mut below = 0;
                    for (at, own) in point.bucket_counts.iter().enumerate() {
                        below += own;
                        let bound = point.explicit_bounds.get(at);
                        let bound = bound.map_or_else(|| "+Inf".to_owned(), f64::to_string);
                        let with_bound = of.iter().cloned().chain([("le".to_owned(), bound)]);
                        values.insert(series(&format!("{name}_bucket"), with_bound), below as f64);
                    }
                    values.insert(series(&format!("{name}_count"), of.clone()), point.count as f64);
                    values.insert(series(&format!("{name}_sum"), of), point.sum.unwrap());
                }
            }
            _ => {}
        }
    }
    values
}

/// The text of a scrape: the type of each family, and the value of each series.
fn scraped(daemon: &Daemon) -> (BTreeMap<String, String>, BTreeMap<String, f64>) {
    let (_, _, body) = daemon.request("GET", "/metrics");
    let (mut types, mut values) = (BTreeMap::new(), BTreeMap::new());
    for line in body.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|line| line.split_once(' ')) {
            types.insert(name.to_owned(), kind.to_owned());
        } else if !line.starts_with('#') {
            let (of, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = of.trim_end_matches('}').split_once('{').unwrap_or((of, ""));
            // No value here has a comma.
            let labels = labels.split(',').filter(|label| !label.is_empty());
            let labels = labels.map(|label| {
                let (name, value) = label.split_once('=').unwrap();
                (name.to_owned(), value.trim_matches('"').to_owned())
            });
            let labels = labels.filter(|(_, value)| !value.is_empty());
            values.insert(series(name, labels), value.parse().unwrap());
        }
    }
    (types, values)
}

#[test]
fn metrics_are_those_of_the_page() {
    let collector = Collector::start(Manner::Takes);
    let daemon = collector.daemon_with(&["--otlp-signal", "metrics,traces"], &METRICS);
    let (listener, at, _) = listen("127.77.69.1");
    for _ in 0..5 {
        close(connect(&listener, at));
    }
    daemon.metrics_until(|text| text.contains("handshake_tcp_close_ack_wait_seconds_bucket"));
    let (types, before) = scraped(&daemon);
    // One that began after that.
    let requests = collector.requests();
    wait_for("two more exports", || collector.requests() >= requests + 2);
    let request = latest(&collector);
    let (_, after) = scraped(&daemon);

    let exported = by_name(&request);
    let kinds = exported.iter().map(|(name, metric)| {
        let kind = match metric.data.as_ref().unwrap() {
            Data::Sum(_) => "counter",
            Data::Histogram(_) => "histogram",
            _ => "gauge",
        };
        assert_eq!(text(&metric.metadata, "prometheus.type").as_deref(), Some(kind));
        (name.clone(), kind.to_owned())
    });
    let kinds: BTreeMap<_, _> = kinds.collect();
    // Families of others' connections may have come meanwhile.
    for (name, kind) in &types {
        assert_eq!(kinds.get(name), Some(kind), "{name}");
    }
    let unit = |name: &str| exported[name].unit.clone();
    assert_eq!(unit("handshake_tcp_close_ack_wait_seconds"), "s");
    assert_eq!(
        (unit("handshake_records_written_bytes_total"), unit("handshake_connections")),
        ("By".into(), String::new())
    );

    let growing = growing(&request);
    let mut compared = BTreeSet::new();
    for (series, value) in &growing {
        let least = before.get(series).copied().unwrap_or(0.0);
        let most = *after.get(series).unwrap_or_else(|| panic!("{series} is not on the page"));
        assert!(least <= *value && *value <= most, "{series}: {least}, {value}, {most}");
        compared.insert(series.split('{').next().unwrap().to_owned());
    }
    // None is missing.
    for series in before.keys() {
        let name = series.split('{').next().unwrap();
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
        let is_histogram = family.is_some_and(|family| types.get(family).is_some_and(|it| it == "histogram"));
        if is_histogram || types.get(name).is_some_and(|it| it == "counter") {
            assert!(growing.contains_key(series), "{series}");
        }
    }
    let opens = "handshake_tcp_opens_total{family=\"ipv4\",outcome=\"established\",role=\"client\"}";
    assert!(growing[opens] >= 5.0, "{compared:?}");
    assert!(compared.contains("handshake_tcp_close_ack_wait_seconds_bucket"), "{compared:?}");

    let resource = request.resource_metrics[0].resource.clone().unwrap().attributes;
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(text(&resource, "service.name").as_deref(), Some("handshake"));
    assert_eq!(text(&resource, "service.version").as_deref(), Some(env!("CARGO_PKG_VERSION")));
    for name in ["host.name", "service.instance.id"] {
        assert_eq!(text(&resource, name).as_deref(), Some(host.trim()));
    }
    // No traces, and so no records of connections without TLS.
    assert!(collector.seen.lock().unwrap().taken.is_empty());
    let scrape = daemon.scrape();
    if !daemon.said().contains("records fill them") {
        assert_eq!(scrape.sum("handshake_events_total", &["stage=\"open\""]), 0.0);
    }
    assert_eq!(scrape.sum(CONNECTIONS, &[]), 0.0);
    let exports = |result: &str| scrape.sum(EXPORTS, &[&format!("result=\"{result}\"")]);
    assert!(exports("success") >= 2.0);
    assert_eq!(exports("success"), scrape.sum(EXPORTS, &[]));
}

#[test]
fn metrics_that_could_not_be_delivered_are_replaced_by_the_next_and_by_the_last() {
    let mut collector = Collector::start(Manner::Hangs);
    let variables = [&METRICS[..], &[("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "300")]].concat();
    let daemon = collector.daemon_with(&["--otlp-signal", "metrics"], &variables);
    let result = |scrape: &Scrape, result: &str| scrape.sum(EXPORTS, &[&format!("result=\"{result}\"")]);
    wait_for("a second attempt", || collector.requests() >= 2);
    let scrape = daemon.scrape_until(|scrape| result(scrape, "replaced") >= 1.0);
    assert!(result(&scrape, "replaced") >= 1.0);
    assert_eq!(result(&scrape, "success"), 0.0);
    assert_eq!(daemon.request("GET", "/healthz").0, 200);
    assert!(daemon.said().contains("metrics are not exported: no answer in time"), "{}", daemon.said());

    collector.kill();
    collector.behave(Manner::Takes);
    thread::sleep(Duration::from_secs(2));
    collector.come_back();
    wait_for("the latest", || !collector.seen.lock().unwrap().metrics.is_empty());
    // Each is told once, and none that was replaced.
    let times = |collector: &Collector| -> Vec<u64> {
        let seen = collector.seen.lock().unwrap();
        let points = seen.metrics.iter().map(|request| {
            let Some(Data::Sum(sum)) = &by_name(request)["handshake_tcp_opens_total"].data else { panic!() };
            sum.data_points[0].time_unix_nano
        });
        points.collect()
    };
    wait_for("two more", || times(&collector).len() >= 3);
    assert!(times(&collector).is_sorted_by(|one, next| one < next), "{:?}", times(&collector));

    for (manner, name) in
        [(Manner::Says(400), "refused"), (Manner::Raves, "unconfirmed"), (Manner::Rejects(1), "rejected")]
    {
        collector.behave(manner);
        let before = result(&daemon.scrape(), name);
        let scrape = daemon.scrape_until(|scrape| result(scrape, name) > before);
        assert!(result(&scrape, name) > before, "{name}");
    }

    // What happened last is told at the end.
    collector.behave(Manner::Takes);
    let (listener, at, _) = listen("127.77.70.1");
    let before = daemon.scrape().sum("handshake_tcp_opens_total", &[]);
    close(connect(&listener, at));
    assert!(daemon.end(Signal::SIGTERM).0.success());
    let growing = growing(&latest(&collector));
    let opens: f64 = growing
        .iter()
        .filter(|(name, _)| name.starts_with("handshake_tcp_opens_total{"))
        .map(|(_, it)| it)
        .sum();
    assert!(opens >= before + 2.0, "{opens}, {before}");
}

#[test]
fn end_does_not_wait_for_a_collector_of_metrics_that_hangs() {
    let collector = Collector::start(Manner::Hangs);
    let daemon = collector.daemon_with(&["--otlp-signal", "metrics"], &METRICS);
    wait_for("an attempt", || collector.requests() >= 1);
    let (status, took, log) = daemon.end(Signal::SIGTERM);
    assert!(status.success() && took < patience(Duration::from_secs(30)), "{took:?}");
    let log = String::from_utf8(log).unwrap();
    assert!(log.contains("the last metrics were not exported before the end"), "{log}");
}
