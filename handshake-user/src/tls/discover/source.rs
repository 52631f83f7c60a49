//! Which files are mapped, from the better of two sources, and the identity of an open file.

use std::{
    fs::{self, File},
    vec,
};

use memmap2::MmapOptions;

use super::{
    file::{FileId, Mapped},
    maps,
    open::Stat,
    vma_iterator::VmaIterator,
    watch::Alias,
};
use crate::kernel::iterator::Iteration;

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
    /// All at once from the iterator: a portion is the result of one read.
    All(Iteration),
    /// One after the other.
    Each(vec::IntoIter<u32>),
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

    /// Begins a pass over all processes, `one_by_one` if the iterator must not stop at one that does not
    /// answer.
    ///
    /// # Errors
    /// If the kernel refuses the iteration, or `/proc` is not mounted.
    pub(super) fn sweep(&self, one_by_one: bool) -> std::io::Result<Sweep> {
        if let Self::Iterator(iterator) = self
            && !one_by_one
        {
            return iterator.all().map(Sweep::All);
        }
        let pids = fs::read_dir("/proc")?.flatten();
        let pids: Vec<u32> = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        Ok(Sweep::Each(pids.into_iter()))
    }

    /// Whether an open file is the one that this mapping shows.
    #[must_use]
    pub(super) fn is_same(&self, file: &File, stat: Stat, mapped: &Mapped) -> bool {
        match self {
            Self::Iterator(_) if stat.is_served => {
                (stat.device, stat.number) == (mapped.id.dev, mapped.id.ino)
            }
            Self::Iterator(_) => self.identify(file, stat) == Some(mapped.id),
            Self::Maps => true,
        }
    }

    /// The identity of an open file, as mappings show it: it is mapped into this process and looked up there.
    /// No other interface shows the file below an overlay. `None` also if it must not be mapped.
    #[must_use]
    pub(super) fn identify(&self, file: &File, stat: Stat) -> Option<FileId> {
        Self::with_mapping(file, stat, |start| at(start, self.of(std::process::id())))
    }

    /// The identity of an open file if it is the one that the kernel told of by this name.
    #[must_use]
    pub(super) fn identify_as(&self, file: &File, stat: Stat, alias: Alias) -> Option<FileId> {
        if stat.is_served {
            let id = match self {
                Self::Iterator(_) => alias.id(),
                Self::Maps => FileId { generation: 0, ..alias.id() },
            };
            return ((stat.device, stat.number) == (id.dev, id.ino)).then_some(id);
        }
        let own = std::process::id();
        Self::with_mapping(file, stat, |start| {
            // Shows what the kernel tells of mappings, below an overlay as well.
            let shown = at(start, maps::of(own))?;
            let id = match self {
                Self::Iterator(_) => at(start, self.of(own))?,
                Self::Maps => shown,
            };
            alias.is(shown, id).then_some(id)
        })
    }

    /// Passes on the address at which the file is mapped for a moment, unless it must not be.
    fn with_mapping<T>(file: &File, stat: Stat, look: impl FnOnce(u64) -> Option<T>) -> Option<T> {
        if stat.is_served {
            return None;
        }
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
