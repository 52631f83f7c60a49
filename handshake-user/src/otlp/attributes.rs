//! Attributes, and what every request has.

use std::time::{SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};

/// The semantic conventions that the names of attributes are from.
pub(super) const SCHEMA_URL: &str = "https://opentelemetry.io/schemas/1.42.0";

/// What an operator says of everything that is exported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Common {
    /// Name of the service in place of the process.
    pub(super) service: Option<String>,
    /// Attributes of the resource.
    pub(super) attributes: Vec<(String, String)>,
}

impl Common {
    /// Adds what the operator says, but for what is known better.
    pub(super) fn add_to(&self, attributes: &mut Vec<KeyValue>) {
        let given = self.attributes.iter().map(|(key, value)| text(key, value));
        let given: Vec<_> = given.filter(|one| attributes.iter().all(|known| known.key != one.key)).collect();
        attributes.extend(given);
    }
}

/// Who observed it.
pub(super) fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: "handshake".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    }
}

pub(super) fn attribute(key: &str, value: any_value::Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

pub(super) fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, any_value::Value::StringValue(value.to_owned()))
}

pub(super) fn number(key: &str, value: i64) -> KeyValue {
    attribute(key, any_value::Value::IntValue(value))
}

pub(super) fn flag(key: &str, value: bool) -> KeyValue {
    attribute(key, any_value::Value::BoolValue(value))
}

/// Since 1970; 2554 is beyond what fits.
pub(super) fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
