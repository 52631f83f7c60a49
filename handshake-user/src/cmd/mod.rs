//! The commands, one file or folder each.

pub mod check;
pub mod daemon;
pub mod explain;
pub mod trace;
