//! Connections as traces, for a collector of OpenTelemetry: OTLP over HTTP (docs/otlp.md).
//!
//! `spans` says what a record is as spans, `ids` what they are called, [`Sampling`] which connections are
//! exported; all three are pure. [`TraceExporter`] takes records and never waits; its thread sends them by
//! `client`.

mod client;
mod endpoint;
mod exporter;
mod ids;
mod own;
mod queue;
mod sampling;
mod spans;
mod target;

pub use self::{
    endpoint::{Endpoint, EndpointError, OptionalEndpoint},
    exporter::{Counts, Loss, TraceExporter},
    sampling::{Sampling, Share},
    target::Target,
};
