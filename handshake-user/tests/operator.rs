//! What an operator relies on: the names of units, containers and pods.
//!
//! Needs root: run through `cargo xtask test`.

#[path = "operator/cgroups.rs"]
mod cgroups;
mod program;
