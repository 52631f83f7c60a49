//! Which files are mapped, from the better of two sources, and the identity of an open file.

use std::{
    fs::{self, File},
    vec,
};

use memmap2::MmapOptions;

use super::{
    file::{FileId, Mapped},
    maps,
    vma_iterator::{self, VmaIterator},
    watch::Alias,
};

/// Where mappings are read from.
#[derive(Debug)]
pub(super) enum MappingSource {
    /// The kernel's iterator.
    Iterator(VmaIterator),
    /// `/proc/PID/maps`.
    Maps,
}

/// One pass over all processes, in portions.
#[derive(Debug)]
pub(super) enum Sweep {
    /// From the iterator: a portion is the result of one read.
    Iterator(File),
    /// From `/proc`: a portion is one process.
    Maps(vec::IntoIter<u32>),
}

impl MappingSource {
    /// The executable mappings of a process; none if it has ended.
    #[must_use]
    pub(super) fn of(&self, pid: u32) -> Vec<Mapped> {
        match self {
            Self::Iterator(iterator) => iterator.of(pid).unwrap_or_else(|error| {
                tracing::debug!(pid, %error, "cannot iterate over its mappings");
                Vec::new()
            }),
            Self::Maps => maps::of(pid),
        }
    }

    /// Begins a pass over all processes.
    ///
    /// # Errors
    /// If the kernel refuses the iteration, or `/proc` is not mounted.
    pub(super) fn sweep(&self) -> std::io::Result<Sweep> {
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

    /// The identity of an open file, as mappings show it: it is mapped into this process and looked up there.
    /// No other interface shows the file below an overlay.
    #[must_use]
    pub(super) fn identify(&self, file: &File) -> Option<FileId> {
        Self::with_mapping(file, |start| at(start, self.of(std::process::id())))
    }

    /// The identity of an open file if it is the one that the kernel told of by this name.
    #[must_use]
    pub(super) fn identify_as(&self, file: &File, alias: Alias) -> Option<FileId> {
        let own = std::process::id();
        Self::with_mapping(file, |start| {
            // Shows what the kernel tells of mappings, below an overlay as well.
            let shown = at(start, maps::of(own))?;
            let id = match self {
                Self::Iterator(_) => at(start, self.of(own))?,
                Self::Maps => shown,
            };
            alias.is(shown, id).then_some(id)
        })
    }

    /// Passes on the address at which the file is mapped for a moment.
    fn with_mapping<T>(file: &File, look: impl FnOnce(u64) -> Option<T>) -> Option<T> {
        // SAFETY: only the address of the mapping is used. Its byte is never read, written or run, nor does
        // the kernel do so for us (no MAP_POPULATE, no mlockall), so no page is ever read from the file,
        // which may be truncated or not answer.
        let page = unsafe { MmapOptions::new().len(1).map_exec(file) }.ok()?;
        look(page.as_ptr() as u64)
    }
}

/// The file that is mapped at this address.
fn at(start: u64, mapped: Vec<Mapped>) -> Option<FileId> {
    mapped.into_iter().find(|own| own.range.start == start).map(|own| own.id)
}

impl Sweep {
    /// The next portion. Returns `None` at the end, and if the pass fails.
    pub(super) fn next(&mut self) -> Option<Vec<Mapped>> {
        match self {
            Self::Iterator(file) => vma_iterator::next(file).unwrap_or_else(|error| {
                tracing::warn!(%error, "the pass over the mappings of this host failed");
                None
            }),
            Self::Maps(pids) => pids.next().map(maps::of),
        }
    }
}
