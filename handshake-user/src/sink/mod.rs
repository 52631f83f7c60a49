//! The shapes that records take on their way out.

pub mod http;
pub mod metrics;
pub mod summary;
pub mod table;
