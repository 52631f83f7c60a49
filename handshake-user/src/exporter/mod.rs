//! Records as Prometheus metrics, and the HTTP server that shows them.

pub mod http;
pub mod metrics;
pub mod page;
