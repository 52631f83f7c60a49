//! The shapes that records take on their way out.

pub mod http;
pub mod ladder;
pub mod metrics;
pub mod savings;
pub mod summary;
pub mod table;
pub mod text;
