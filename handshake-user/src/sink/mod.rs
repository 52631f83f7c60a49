//! The shapes that records take on their way out.

pub mod summary;
pub mod table;
