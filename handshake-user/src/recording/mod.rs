//! Records in files, one JSON object a line, compressed.
//!
//! A [`Recorder`] takes events from the thread that reads the ring, and never makes it wait: a thread of its
//! own compresses and writes. What it cannot keep up with, and what the disk refuses, is dropped and counted.

mod file;
mod folder;
mod look_back;
mod recorder;

pub use self::{
    folder::{Folder, Limits, name_of_now},
    recorder::{Counts, NoLookBack, Recorder, Target, Written},
};
