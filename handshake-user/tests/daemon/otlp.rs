//! What the daemon exports over OTLP.

#[path = "otlp/collector.rs"]
mod collector;
#[path = "otlp/metrics.rs"]
mod metrics;
#[path = "otlp/traces.rs"]
mod traces;
