//! The units that the names of metrics end in.

use prometheus::proto::{MetricFamily, MetricType};

const UNITS: [&str; 2] = ["seconds", "bytes"];

/// The unit of a family.
pub(crate) fn unit(family: &MetricFamily) -> Option<&'static str> {
    let name = base(family);
    UNITS.into_iter().find(|unit| name.ends_with(&format!("_{unit}")))
}

/// Its name without the suffix of a counter, which belongs to the samples.
pub(crate) fn base(family: &MetricFamily) -> &str {
    match family.name().strip_suffix("_total") {
        Some(name) if family.get_field_type() == MetricType::COUNTER => name,
        _ => family.name(),
    }
}
