//! Connections as traces, and metrics, for a collector of OpenTelemetry: OTLP over HTTP (docs/otlp.md).
//!
//! `spans` says what a record is as spans, `ids` what they are called, [`Sampling`] which connections are
//! exported, `points` what the metrics are there; all four are pure. [`TraceExporter`] takes records,
//! [`MetricExporter`] metrics, and neither ever waits; their threads send them by `delivery` and `client`.

mod attributes;
mod client;
mod delivery;
mod endpoint;
mod ids;
mod metrics;
mod own;
mod points;
mod queue;
mod sampling;
mod spans;
mod target;
mod traces;

use std::{io, sync::Arc};

pub use self::{
    endpoint::{Endpoint, EndpointError, OptionalEndpoint},
    metrics::{Fate, Fates, MetricExporter},
    points::Snapshot,
    sampling::{Sampling, Share},
    target::{Signal, Signals, Target, Targets},
    traces::{Counts, Loss, TraceExporter},
};

/// What is exported, each through a thread of its own.
#[derive(Debug, Default)]
pub struct Exporters {
    /// Connections.
    pub traces: Option<TraceExporter>,
    /// Metrics.
    pub metrics: Option<MetricExporter>,
}

impl Exporters {
    /// Starts the threads. They give up all their capabilities.
    ///
    /// # Errors
    /// When that is not possible.
    pub fn start(targets: Targets, sampling: Sampling) -> io::Result<Self> {
        // Neither signal's connections are exported.
        let own = Arc::default();
        let traces = targets.traces.map(|target| TraceExporter::start(target, sampling, Arc::clone(&own)));
        let metrics = targets.metrics.map(|target| MetricExporter::start(target, Arc::clone(&own)));
        Ok(Self { traces: traces.transpose()?, metrics: metrics.transpose()? })
    }
}
