//! Files of strangers: none of them ends the program, keeps it from serving, or hides a proper library for
//! long.
//!
//! Needs root: run through `cargo xtask test`.

#[path = "hostile_files/churn.rs"]
mod churn;
#[path = "hostile_files/descriptors.rs"]
mod descriptors;
#[path = "hostile_files/mappings.rs"]
mod mappings;
#[path = "hostile_files/odd.rs"]
mod odd;
#[path = "daemon/program.rs"]
#[expect(dead_code, reason = "shared with the tests of the exporter")]
mod program;
#[path = "hostile_files/proper.rs"]
mod proper;
#[path = "hostile_files/serving.rs"]
mod serving;
#[path = "hostile_files/silent.rs"]
mod silent;
#[path = "hostile_files/stranger.rs"]
mod stranger;
#[path = "hostile_files/truncation.rs"]
mod truncation;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Every daemon sees the files of all tests, so there is one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}
