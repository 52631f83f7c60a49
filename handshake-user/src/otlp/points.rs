//! The metrics of `/metrics` as OTLP has them, by "Prometheus and `OpenMetrics` Compatibility" of
//! OpenTelemetry's specification. Pure. docs/otlp.md says what becomes of what.

use std::time::SystemTime;

use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    common::v1::KeyValue,
    metrics::v1::{
        AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint,
        ResourceMetrics, ScopeMetrics, Sum, metric::Data, number_data_point::Value,
    },
    resource::v1::Resource,
};
use prometheus::proto::{self, MetricFamily, MetricType};

use super::attributes::{Common, SCHEMA_URL, nanos, scope, text};
use crate::{unit::unit, untrusted::Untrusted};

/// The metrics at a moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// As they are shown.
    pub families: Vec<MetricFamily>,
    /// When they were read.
    pub time: SystemTime,
    /// Whose they are.
    pub host: Option<Untrusted>,
}

/// The request that exports them; counters began at `start`.
pub(super) fn request(
    snapshot: &Snapshot,
    start: SystemTime,
    common: &Common,
) -> ExportMetricsServiceRequest {
    let time = nanos(snapshot.time);
    // The clock may have been set back since.
    let span = Span { start: nanos(start).min(time), time };
    let scope_metrics = ScopeMetrics {
        scope: Some(scope()),
        metrics: snapshot.families.iter().map(|family| span.metric(family)).collect(),
        schema_url: SCHEMA_URL.to_owned(),
    };
    let resource = Resource { attributes: resource(snapshot.host.as_ref(), common), ..Resource::default() };
    let resource_metrics = ResourceMetrics {
        resource: Some(resource),
        scope_metrics: vec![scope_metrics],
        schema_url: SCHEMA_URL.to_owned(),
    };
    ExportMetricsServiceRequest { resource_metrics: vec![resource_metrics] }
}

/// How many points they are.
pub(super) fn count(families: &[MetricFamily]) -> u64 {
    families.iter().map(|family| family.get_metric().len() as u64).sum()
}

fn resource(host: Option<&Untrusted>, common: &Common) -> Vec<KeyValue> {
    let host = host.map(Untrusted::raw);
    let service = common.service.as_deref().unwrap_or("handshake");
    let mut attributes = vec![
        text("service.name", service),
        text("service.version", env!("CARGO_PKG_VERSION")),
        text("os.type", "linux"),
    ];
    attributes.extend(host.map(|host| text("host.name", host)));
    common.add_to(&mut attributes);
    // Two programs of one host may have been told apart.
    let instance = host.filter(|_| attributes.iter().all(|one| one.key != "service.instance.id"));
    attributes.extend(instance.map(|host| text("service.instance.id", host)));
    attributes
}

/// Since when things are counted, and when they were read; nanoseconds since 1970.
#[derive(Clone, Copy)]
struct Span {
    start: u64,
    time: u64,
}

impl Span {
    fn metric(self, family: &MetricFamily) -> Metric {
        let (kind, data) = match family.get_field_type() {
            MetricType::COUNTER => ("counter", Data::Sum(self.sum(family))),
            MetricType::HISTOGRAM => ("histogram", Data::Histogram(self.histogram(family))),
            // There are no others here.
            MetricType::GAUGE | MetricType::SUMMARY | MetricType::UNTYPED => {
                ("gauge", Data::Gauge(self.gauge(family)))
            }
        };
        let unit = match unit(family) {
            Some("seconds") => "s",
            Some("bytes") => "By",
            _ => "",
        };
        Metric {
            name: family.name().to_owned(),
            description: family.help().to_owned(),
            unit: unit.to_owned(),
            metadata: vec![text("prometheus.type", kind)],
            data: Some(data),
        }
    }

    fn sum(self, family: &MetricFamily) -> Sum {
        let point = |metric: &proto::Metric| NumberDataPoint {
            start_time_unix_nano: self.start,
            ..self.number(metric, metric.get_counter().get_value())
        };
        Sum {
            data_points: family.get_metric().iter().map(point).collect(),
            aggregation_temporality: AggregationTemporality::Cumulative as i32,
            is_monotonic: true,
        }
    }

    fn gauge(self, family: &MetricFamily) -> Gauge {
        let point = |metric: &proto::Metric| self.number(metric, metric.get_gauge().get_value());
        Gauge { data_points: family.get_metric().iter().map(point).collect() }
    }

    fn number(self, metric: &proto::Metric, value: f64) -> NumberDataPoint {
        NumberDataPoint {
            attributes: labels(metric),
            time_unix_nano: self.time,
            value: Some(Value::AsDouble(value)),
            ..NumberDataPoint::default()
        }
    }

    fn histogram(self, family: &MetricFamily) -> Histogram {
        let point = |metric: &proto::Metric| {
            let histogram = metric.get_histogram();
            let (bounds, below): (Vec<_>, Vec<_>) = histogram
                .get_bucket()
                .iter()
                .map(|bucket| (bucket.upper_bound(), bucket.cumulative_count()))
                .unzip();
            let count = histogram.get_sample_count();
            let mut before = 0;
            // The last has what is above all bounds.
            let own = below.into_iter().chain([count]).map(|below| {
                let own = below.saturating_sub(before);
                before = below;
                own
            });
            HistogramDataPoint {
                attributes: labels(metric),
                start_time_unix_nano: self.start,
                time_unix_nano: self.time,
                count,
                sum: Some(histogram.get_sample_sum()),
                bucket_counts: own.collect(),
                explicit_bounds: bounds,
                ..HistogramDataPoint::default()
            }
        };
        Histogram {
            data_points: family.get_metric().iter().map(point).collect(),
            aggregation_temporality: AggregationTemporality::Cumulative as i32,
        }
    }
}

/// An empty label is none, as in Prometheus.
fn labels(metric: &proto::Metric) -> Vec<KeyValue> {
    let labels = metric.get_label().iter().filter(|label| !label.value().is_empty());
    labels.map(|label| text(label.name(), label.value())).collect()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use opentelemetry_semantic_conventions::attribute::{
        HOST_NAME, OS_TYPE, SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_VERSION,
    };
    use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry};

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn families() -> Vec<MetricFamily> {
        let registry = Registry::new();
        let counter = IntCounterVec::new(Opts::new("a_bytes_total", "A."), &["empty", "role"]).unwrap();
        counter.with_label_values(&["", "client"]).inc_by(3);
        let bounds = vec![0.25, 1.0];
        let histogram =
            HistogramVec::new(HistogramOpts::new("b_seconds", "B.").buckets(bounds), &[]).unwrap();
        for seconds in [0.5, 0.75, 1.0, 7.0] {
            histogram.with_label_values::<&str>(&[]).observe(seconds);
        }
        let gauge = IntGauge::new("c_connections", "C.").unwrap();
        gauge.set(5);
        registry.register(Box::new(counter)).unwrap();
        registry.register(Box::new(histogram)).unwrap();
        registry.register(Box::new(gauge)).unwrap();
        registry.gather()
    }

    #[test]
    fn each_family_is_a_metric_of_its_kind_with_its_unit() {
        let snapshot = Snapshot { families: families(), time: at(70), host: Some("web1".into()) };
        let request = request(&snapshot, at(10), &Common::default());
        assert_eq!(count(&snapshot.families), 3);
        let [of] = &request.resource_metrics[..] else { panic!("{request:?}") };
        let [scope] = &of.scope_metrics[..] else { panic!("{request:?}") };
        let named: Vec<_> = scope.metrics.iter().map(|it| (it.name.as_str(), it.unit.as_str())).collect();
        assert_eq!(named, [("a_bytes_total", "By"), ("b_seconds", "s"), ("c_connections", "")]);
        let [counter, histogram, gauge] = &scope.metrics[..] else { panic!("{request:?}") };
        let cumulative = AggregationTemporality::Cumulative as i32;
        let (start, now) = (10_000_000_000, 70_000_000_000);

        let Some(Data::Sum(sum)) = &counter.data else { panic!("{counter:?}") };
        assert!(sum.is_monotonic && sum.aggregation_temporality == cumulative);
        assert_eq!(counter.metadata, [text("prometheus.type", "counter")]);
        let [point] = &sum.data_points[..] else { panic!("{sum:?}") };
        assert_eq!((point.start_time_unix_nano, point.time_unix_nano), (start, now));
        assert_eq!(
            (&point.attributes[..], point.value),
            (&[text("role", "client")][..], Some(Value::AsDouble(3.0)))
        );

        let Some(Data::Histogram(data)) = &histogram.data else { panic!("{histogram:?}") };
        assert_eq!(data.aggregation_temporality, cumulative);
        let [point] = &data.data_points[..] else { panic!("{data:?}") };
        assert_eq!((point.start_time_unix_nano, point.time_unix_nano), (start, now));
        assert_eq!(point.explicit_bounds, [0.25, 1.0]);
        assert_eq!((&point.bucket_counts[..], point.count, point.sum), (&[0, 3, 1][..], 4, Some(9.25)));

        let Some(Data::Gauge(data)) = &gauge.data else { panic!("{gauge:?}") };
        let [point] = &data.data_points[..] else { panic!("{data:?}") };
        assert_eq!((point.start_time_unix_nano, point.value), (0, Some(Value::AsDouble(5.0))));
        assert_eq!((gauge.description.as_str(), point.time_unix_nano), ("C.", now));
    }

    #[test]
    fn resource_is_the_program_on_its_host_unless_the_operator_says_otherwise() {
        let common = |pairs: &[(&str, &str)]| Common {
            service: None,
            attributes: pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        };
        let version = text(SERVICE_VERSION, env!("CARGO_PKG_VERSION"));
        let (name, os) = (text(SERVICE_NAME, "handshake"), text(OS_TYPE, "linux"));
        let host = "web1".into();
        let plain = [
            name.clone(),
            version.clone(),
            os.clone(),
            text(HOST_NAME, "web1"),
            text(SERVICE_INSTANCE_ID, "web1"),
        ];
        assert_eq!(resource(Some(&host), &common(&[])), plain);
        assert_eq!(resource(None, &common(&[])), [name, version, os]);
        let told = resource(Some(&host), &common(&[(SERVICE_INSTANCE_ID, "two"), (HOST_NAME, "b")]));
        assert_eq!(told[3..], [text(HOST_NAME, "web1"), text(SERVICE_INSTANCE_ID, "two")]);
    }

    #[test]
    fn start_is_not_after_the_end_when_the_clock_is_set_back() {
        let snapshot = Snapshot { families: families(), time: at(5), host: None };
        let request = request(&snapshot, at(10), &Common::default());
        let Some(Data::Sum(sum)) = &request.resource_metrics[0].scope_metrics[0].metrics[0].data else {
            panic!()
        };
        assert_eq!(sum.data_points[0].start_time_unix_nano, 5_000_000_000);
    }
}
