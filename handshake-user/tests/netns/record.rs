//! One line of `handshake trace --output json`, read by its published names only.

use std::{fmt, net::SocketAddr, time::Duration};

use serde_json::Value;

use crate::program::machine::tolerance;

/// How far a reported duration may be from that on the link.
const TOLERANCE: Duration = Duration::from_millis(5);

#[derive(Clone, Debug)]
pub(crate) struct Record(Value);

impl Record {
    pub(crate) fn parse(line: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(line).map(Self)
    }

    /// The value at a path such as `open.duration_us`. Returns `None` if it is absent, which means unknown.
    pub(crate) fn get(&self, path: &str) -> Option<&Value> {
        path.split('.').try_fold(&self.0, |value, name| value.get(name))
    }

    #[track_caller]
    pub(crate) fn text(&self, path: &str) -> Option<&str> {
        self.get(path)
            .map(|value| value.as_str().unwrap_or_else(|| panic!("{path} is not a string: {value}")))
    }

    #[track_caller]
    pub(crate) fn number(&self, path: &str) -> Option<u64> {
        self.get(path).map(|value| value.as_u64().unwrap_or_else(|| panic!("{path} is not a count: {value}")))
    }

    #[track_caller]
    pub(crate) fn micros(&self, path: &str) -> Option<Duration> {
        self.number(path).map(Duration::from_micros)
    }

    pub(crate) fn is_event(&self, event: &str) -> bool {
        self.get("event").and_then(Value::as_str) == Some(event)
    }

    #[track_caller]
    pub(crate) fn id(&self) -> &str {
        self.text("id").expect("every record has an id")
    }

    pub(crate) fn end(&self, name: &str) -> Option<SocketAddr> {
        let end = self.get(name)?;
        let port = u16::try_from(end.get("port")?.as_u64()?).ok()?;
        Some(SocketAddr::new(end.get("addr")?.as_str()?.parse().ok()?, port))
    }

    /// What packets tell of a handshake is unknown if two of them were looked at in the same microsecond
    /// (docs/limitations.md).
    #[track_caller]
    fn assert_known(&self, path: &str) {
        let is_of_packets = path.starts_with("tls.") || path.starts_with("setup.");
        assert_time!(!is_of_packets || self.get(path).is_some(), "{path} is unknown in {self}");
    }

    #[track_caller]
    pub(crate) fn assert_is(&self, path: &str, word: &str) {
        self.assert_known(path);
        assert_eq!(self.text(path), Some(word), "{path} in {self}");
    }

    /// One of these words, or unknown: for what cannot always be known.
    #[track_caller]
    pub(crate) fn assert_one_of_or_unknown(&self, path: &str, words: &[&str]) {
        if let Some(word) = self.text(path) {
            assert!(words.contains(&word), "{path} is {word}, not one of {words:?}, in {self}");
        }
    }

    #[track_caller]
    pub(crate) fn assert_count(&self, path: &str, count: usize) {
        self.assert_known(path);
        assert_eq!(self.number(path), Some(count as u64), "{path} in {self}");
    }

    #[track_caller]
    pub(crate) fn assert_unknown(&self, path: &str) {
        assert_eq!(self.get(path), None, "{path} cannot be known, in {self}");
    }

    #[track_caller]
    pub(crate) fn assert_near(&self, path: &str, truth: Duration) {
        self.assert_within(path, truth, tolerance(TOLERANCE));
    }

    #[track_caller]
    pub(crate) fn assert_near_or_unknown(&self, path: &str, truth: Duration) {
        self.assert_within_or_unknown(path, truth, tolerance(TOLERANCE));
    }

    #[track_caller]
    pub(crate) fn assert_within(&self, path: &str, truth: Duration, tolerance: Duration) {
        self.assert_known(path);
        assert!(self.get(path).is_some(), "{path} is missing (the truth is {truth:?}) in {self}");
        self.assert_within_or_unknown(path, truth, tolerance);
    }

    #[track_caller]
    pub(crate) fn assert_within_or_unknown(&self, path: &str, truth: Duration, tolerance: Duration) {
        if let Some(actual) = self.micros(path) {
            assert_time!(
                actual.abs_diff(truth) <= tolerance,
                "{path} is {actual:?}, the truth is {truth:?}, in {self}"
            );
        }
    }

    /// The process is this one or unknown, never another one.
    #[track_caller]
    pub(crate) fn assert_process_or_unknown(&self, pid: u32) {
        if let Some(actual) = self.number("process.pid") {
            assert_eq!(actual, u64::from(pid), "process.pid in {self}");
        }
    }

    #[track_caller]
    pub(crate) fn assert_process(&self, pid: u32) {
        assert_eq!(self.number("process.pid"), Some(pid.into()), "process.pid in {self}");
    }

    /// What holds for every record.
    #[track_caller]
    pub(crate) fn assert_well_formed(&self) {
        assert_eq!(self.number("schema"), Some(1), "schema in {self}");
        assert!(self.text("time").is_some_and(|time| time.ends_with('Z')), "time in {self}");
        assert!(!self.id().is_empty(), "id in {self}");
        assert_no_null(&self.0, self);
        if let (Some(lifetime), Some(open)) = (self.micros("lifetime_us"), self.micros("open.duration_us")) {
            assert!(lifetime >= open, "lifetime_us is shorter than open.duration_us in {self}");
        }
        for path in [
            "open.duration_us",
            "open.rtt_us",
            "open.syn_retransmits",
            "tls.duration_us",
            "tls.compute_us",
            "tls.round_trips",
            "setup.duration_us",
            "setup.round_trips",
            "close.duration_us",
            "close.ack_wait_us",
            "close.app_wait_us",
            "close.time_wait_us",
            "close.grain_us",
        ] {
            // Panics if it is negative or not a number.
            let _ = self.number(path);
        }
    }
}

/// An unknown value is absent, never null.
#[track_caller]
fn assert_no_null(value: &Value, record: &Record) {
    match value {
        Value::Null => panic!("null in {record}"),
        Value::Array(values) => values.iter().for_each(|value| assert_no_null(value, record)),
        Value::Object(values) => values.values().for_each(|value| assert_no_null(value, record)),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

impl fmt::Display for Record {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}
