//! The commands, one file or folder each.

pub mod check;
pub mod daemon;
mod decompress;
pub mod explain;
mod live;
pub mod record;
mod records;
pub mod report;
pub mod top;
pub mod trace;
