//! Records as text, for a person to read.

pub mod chart;
pub mod ladder;
pub mod markup;
pub(crate) mod rows;
pub mod savings;
pub mod summary;
pub mod table;
pub mod text;
