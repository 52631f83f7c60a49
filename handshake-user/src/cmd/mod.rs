//! The commands, one file or folder each.

pub mod check;
pub mod daemon;
pub mod explain;
mod live;
pub mod top;
pub mod trace;
