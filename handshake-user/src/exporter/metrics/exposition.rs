//! Metrics as text, in the two formats that Prometheus reads.

use std::fmt::{self, Write};

use prometheus::{
    TextEncoder,
    proto::{LabelPair, Metric, MetricFamily, MetricType},
};

use crate::unit::{base, unit};

/// A text format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' own, 0.0.4.
    Text,
    /// `OpenMetrics` 1.0.0.
    OpenMetrics,
}

impl Format {
    /// What the response says of it.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Writes families in this format.
pub(super) fn render(families: &[MetricFamily], format: Format) -> prometheus::Result<String> {
    match format {
        Format::Text => TextEncoder::new().encode_to_string(families),
        Format::OpenMetrics => {
            let mut text = String::new();
            // Writing to a string cannot fail.
            families.iter().try_for_each(|family| write_family(&mut text, family)).unwrap_or_default();
            text.push_str("# EOF\n");
            Ok(text)
        }
    }
}

fn write_family(out: &mut String, family: &MetricFamily) -> fmt::Result {
    let name = base(family);
    let kind = match family.get_field_type() {
        MetricType::COUNTER => "counter",
        MetricType::GAUGE => "gauge",
        MetricType::HISTOGRAM => "histogram",
        // There are none here.
        MetricType::SUMMARY | MetricType::UNTYPED => "unknown",
    };
    writeln!(out, "# TYPE {name} {kind}")?;
    if let Some(unit) = unit(family) {
        writeln!(out, "# UNIT {name} {unit}")?;
    }
    write!(out, "# HELP {name} ")?;
    escape(out, family.help());
    out.push('\n');
    for metric in family.get_metric() {
        match family.get_field_type() {
            MetricType::COUNTER => {
                sample(out, (name, "_total"), metric, None, metric.get_counter().get_value())?;
            }
            MetricType::HISTOGRAM => histogram(out, name, metric)?,
            _ => sample(out, (name, ""), metric, None, metric.get_gauge().get_value())?,
        }
    }
    Ok(())
}

fn histogram(out: &mut String, name: &str, metric: &Metric) -> fmt::Result {
    let histogram = metric.get_histogram();
    for bucket in histogram.get_bucket() {
        let bound = canonical(bucket.upper_bound());
        sample(out, (name, "_bucket"), metric, Some(&bound), bucket.cumulative_count())?;
    }
    let count = histogram.get_sample_count();
    sample(out, (name, "_bucket"), metric, Some("+Inf"), count)?;
    sample(out, (name, "_sum"), metric, None, histogram.get_sample_sum())?;
    sample(out, (name, "_count"), metric, None, count)
}

fn sample(
    out: &mut String,
    (name, suffix): (&str, &str),
    metric: &Metric,
    bound: Option<&str>,
    value: impl fmt::Display,
) -> fmt::Result {
    out.push_str(name);
    out.push_str(suffix);
    let labels = metric.get_label().iter().map(|label: &LabelPair| (label.name(), label.value()));
    let mut before = '{';
    for (name, value) in labels.chain(bound.map(|bound| ("le", bound))) {
        out.push(before);
        before = ',';
        out.push_str(name);
        out.push_str("=\"");
        escape(out, value);
        out.push('"');
    }
    if before == ',' {
        out.push('}');
    }
    writeln!(out, " {value}")
}

fn escape(out: &mut String, text: &str) {
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            other => out.push(other),
        }
    }
}

/// A bound as every exporter of this format writes it, because it is a label's value: `1.0`, `0.0001`,
/// `5e-05`.
fn canonical(bound: f64) -> String {
    if (1e-4..1e10).contains(&bound) {
        return format!("{bound:?}");
    }
    let text = format!("{bound:e}");
    match text.split_once("e-") {
        Some((digits, power)) => format!("{digits}e-{power:0>2}"),
        None => text.replace('e', "e+"),
    }
}

#[cfg(test)]
mod tests {
    use prometheus::{Gauge, HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry};

    use super::*;

    #[test]
    fn openmetrics_has_suffixes_units_canonical_bounds_and_an_end() {
        let registry = Registry::new();
        let counter =
            IntCounterVec::new(Opts::new("a_seconds_total", "Says \"a\\b\"\nc."), &["name"]).unwrap();
        counter.with_label_values(&["x\"\\\ny"]).inc_by(3);
        let bounds = vec![1e-5, 1e-4, 0.25, 1.0, 100.0];
        let histogram =
            HistogramVec::new(HistogramOpts::new("b_seconds", "B.").buckets(bounds), &["role"]).unwrap();
        histogram.with_label_values(&["client"]).observe(0.5);
        let gauge = Gauge::new("c_bytes", "C.").unwrap();
        gauge.set(-1.5);
        registry.register(Box::new(counter)).unwrap();
        registry.register(Box::new(histogram)).unwrap();
        registry.register(Box::new(gauge)).unwrap();
        let text = render(&registry.gather(), Format::OpenMetrics).unwrap();
        assert_eq!(
            text,
            r#"# TYPE a_seconds counter
# UNIT a_seconds seconds
# HELP a_seconds Says \"a\\b\"\nc.
a_seconds_total{name="x\"\\\ny"} 3
# TYPE b_seconds histogram
# UNIT b_seconds seconds
# HELP b_seconds B.
b_seconds_bucket{role="client",le="1e-05"} 0
b_seconds_bucket{role="client",le="0.0001"} 0
b_seconds_bucket{role="client",le="0.25"} 0
b_seconds_bucket{role="client",le="1.0"} 1
b_seconds_bucket{role="client",le="100.0"} 1
b_seconds_bucket{role="client",le="+Inf"} 1
b_seconds_sum{role="client"} 0.5
b_seconds_count{role="client"} 1
# TYPE c_bytes gauge
# UNIT c_bytes bytes
# HELP c_bytes C.
c_bytes -1.5
# EOF
"#
        );
    }

    #[test]
    fn bounds_are_written_as_other_exporters_write_them() {
        let cases =
            [(1e-10, "1e-10"), (2.5e-5, "2.5e-05"), (0.005, "0.005"), (10.0, "10.0"), (1e12, "1e+12")];
        for (bound, text) in cases {
            assert_eq!(canonical(bound), text);
        }
    }
}
