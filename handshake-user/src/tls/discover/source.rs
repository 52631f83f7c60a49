//! What is mapped, by the better of two ways, and which file a file truly is.

use std::{
    fs::{self, File},
    vec,
};

use memmap2::MmapOptions;

use super::{
    FileId, Mapped,
    iterator::{self, Iterator},
    maps,
};

/// The way of asking.
#[derive(Debug)]
pub enum Source {
    /// The kernel's iterator.
    Iterator(Iterator),
    /// `/proc/PID/maps`.
    Maps,
}

/// One pass over all processes, in portions.
#[derive(Debug)]
pub enum Sweep {
    /// By the iterator: a portion is what one read gives.
    Iterator(File),
    /// By `/proc`: a portion is a process.
    Maps(vec::IntoIter<u32>),
}

impl Source {
    /// What a process has mapped; nothing when it is gone.
    #[must_use]
    pub fn of(&self, pid: u32) -> Vec<Mapped> {
        match self {
            Self::Iterator(iterator) => iterator.of(pid).unwrap_or_else(|error| {
                tracing::debug!(pid, %error, "cannot iterate over its mappings");
                Vec::new()
            }),
            Self::Maps => maps::of(pid),
        }
    }

    /// Begins a pass.
    ///
    /// # Errors
    /// When the kernel refuses the iteration or there is no `/proc`.
    pub fn sweep(&self) -> std::io::Result<Sweep> {
        match self {
            Self::Iterator(iterator) => iterator.all().map(Sweep::Iterator),
            Self::Maps => {
                let pids = fs::read_dir("/proc")?.flatten();
                let pids: Vec<u32> =
                    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
                Ok(Sweep::Maps(pids.into_iter()))
            }
        }
    }

    /// Which file this is, told as mappings are: we map it ourselves and look. No other way tells what is below an overlay.
    #[must_use]
    pub fn identify(&self, file: &File) -> Option<FileId> {
        // SAFETY: only the address of the mapping is used. Its byte is never read, written or run, nor does the kernel do so for
        // us (no MAP_POPULATE, no mlockall), so no page is ever asked of the file, which may be cut short or not answer.
        let page = unsafe { MmapOptions::new().len(1).map_exec(file) }.ok()?;
        let start = page.as_ptr() as u64;
        self.of(std::process::id()).into_iter().find(|own| own.range.start == start).map(|own| own.id)
    }
}

impl Sweep {
    /// The next portion; `None` at the end. A pass that breaks off ends, too.
    pub fn next(&mut self) -> Option<Vec<Mapped>> {
        match self {
            Self::Iterator(file) => iterator::next(file).unwrap_or_else(|error| {
                tracing::warn!(%error, "the pass over the mappings of this host broke off");
                None
            }),
            Self::Maps(pids) => pids.next().map(maps::of),
        }
    }
}
