//! Files of untrusted users: none of them ends the program, stops it from serving, or hides a genuine library
//! for long.
//!
//! Needs root: run through `cargo xtask test`.

#[path = "hostile_files/churn.rs"]
mod churn;
#[path = "hostile_files/descriptors.rs"]
mod descriptors;
#[path = "hostile_files/fuse.rs"]
mod fuse;
#[path = "hostile_files/mappings.rs"]
mod mappings;
#[path = "hostile_files/odd.rs"]
mod odd;
mod program;
#[path = "hostile_files/proper.rs"]
mod proper;
#[path = "hostile_files/serving.rs"]
mod serving;
#[path = "hostile_files/silent.rs"]
mod silent;
#[path = "hostile_files/stuck.rs"]
mod stuck;
#[path = "hostile_files/truncation.rs"]
mod truncation;
#[path = "hostile_files/untrusted.rs"]
mod untrusted;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Every daemon sees the files of all tests, so they run one at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}
