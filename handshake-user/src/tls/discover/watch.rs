//! New executable mappings on the whole host, by `execve` and `dlopen` alike: `PERF_RECORD_MMAP2`, from one
//! ring per CPU, which user space reads at its own pace.

use std::{io, os::unix::ffi::OsStrExt as _, path::PathBuf};

use perf_event::{
    Builder, Sampler,
    data::{Mmap2, Record},
    events::Software,
};

use super::{file::FileId, maps};
use crate::bounded;

/// The size of the ring of one CPU, bytes: about 800 mappings, or 200 program starts.
const RING: usize = 128 << 10;

/// Records read from one ring at a time: a few milliseconds of work.
const BATCH: usize = 20_000;

/// How a record identifies a file: enough to recognise it, though below an overlay it is not the [`FileId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Alias {
    dev: (u32, u32),
    ino: u64,
    generation: u64,
}

impl Alias {
    /// The device of its file system, as `stat` encodes it.
    #[must_use]
    pub(crate) fn device(self) -> u64 {
        rustix::fs::makedev(self.dev.0, self.dev.1)
    }

    /// Whether an inode number, as `stat` shows it, is that of this file.
    #[must_use]
    pub(crate) fn has_number(self, ino: u64) -> bool {
        self.ino == ino
    }

    /// The identity of the file, if none is below it.
    #[must_use]
    pub(crate) fn id(self) -> FileId {
        // `i_generation` has 32 bits.
        let generation = u32::try_from(self.generation).unwrap_or(0);
        FileId { dev: self.device(), ino: self.ino, generation }
    }

    /// Whether it names this file, which `/proc/PID/maps` shows as `shown`.
    #[must_use]
    pub(crate) fn is(self, shown: FileId, id: FileId) -> bool {
        let is_shown = |file: FileId| self.device() == file.dev && self.ino == file.ino;
        // Below an overlay it is the generation of another inode.
        let is_older = is_shown(id) && id.generation != 0 && u64::from(id.generation) != self.generation;
        is_shown(shown) && !is_older
    }
}

/// A process has mapped a file.
#[derive(Clone, Debug)]
pub(crate) struct NewMapping {
    /// The process.
    pub pid: u32,
    /// An address in the mapping.
    pub at: u64,
    /// The file.
    pub alias: Alias,
    /// Its path as the process sees it.
    pub path: PathBuf,
}

/// The rings.
#[derive(Debug)]
pub(crate) struct Watch {
    rings: Vec<Ring>,
}

/// [`Sampler`] without `Debug`.
struct Ring(Sampler);

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ring")
    }
}

impl Watch {
    /// Opens a ring on every CPU that is online.
    ///
    /// # Errors
    /// If the kernel refuses: without `CAP_PERFMON`, depending on `kernel.perf_event_paranoid`.
    pub(crate) fn start() -> io::Result<Self> {
        let online = bounded::read_to_string("/sys/devices/system/cpu/online", bounded::SMALL)?;
        let ring = |cpu| {
            let mut event = Builder::new(Software::DUMMY);
            // The watermark is never reached, so that nothing is woken.
            event.any_pid().one_cpu(cpu).mmap(true).mmap2(true).enabled(true).wakeup_watermark(2 * RING);
            event.build()?.sampled(RING).map(Ring)
        };
        Ok(Self { rings: cpus(&online).map(ring).collect::<io::Result<_>>()? })
    }

    /// Passes every new mapping of a file to `each`. Returns whether some were lost.
    pub(crate) fn listen(&mut self, mut each: impl FnMut(NewMapping)) -> bool {
        let mut lost = false;
        for Ring(ring) in &mut self.rings {
            for _ in 0..BATCH {
                let Some(record) = ring.next_record() else { break };
                match record.parse_record() {
                    Ok(Record::Mmap2(record)) => new_mapping(&record).into_iter().for_each(&mut each),
                    Ok(Record::Lost(_)) => lost = true,
                    Ok(_) | Err(_) => {}
                }
            }
        }
        lost
    }
}

/// Returns `None` if it is not of a file.
fn new_mapping(record: &Mmap2<'_>) -> Option<NewMapping> {
    let (dev, ino) = ((record.maj()?, record.min()?), record.ino().filter(|ino| *ino != 0)?);
    Some(NewMapping {
        pid: record.pid,
        at: record.addr,
        alias: Alias { dev, ino, generation: record.ino_generation()? },
        path: maps::shown(record.filename_os().as_bytes()),
    })
}

/// The numbers in a list such as `0-3,8`.
pub(crate) fn cpus(list: &str) -> impl Iterator<Item = usize> {
    list.trim().split(',').flat_map(|part| {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        match (from.parse(), to.parse::<usize>()) {
            (Ok(from), Ok(to)) => from..to.saturating_add(1),
            _ => 0..0,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_with_the_number_of_an_earlier_one_is_another() {
        let alias = Alias { dev: (8, 1), ino: 5, generation: 3 };
        let file = |minor, ino, generation| FileId { dev: rustix::fs::makedev(8, minor), ino, generation };
        assert!(alias.is(file(1, 5, 0), file(1, 5, 3)));
        assert!(!alias.is(file(1, 5, 0), file(1, 5, 4)));
        assert!(!alias.is(file(2, 5, 0), file(2, 5, 3)) && !alias.is(file(1, 6, 0), file(1, 6, 3)));
        assert!(alias.is(file(1, 5, 0), file(1, 5, 0)), "the kernel does not show its generation");
        assert!(alias.is(file(1, 5, 0), file(9, 7, 4)), "below an overlay");
    }

    #[test]
    fn cpu_list_is_expanded() {
        assert_eq!(cpus("0-2,8\n").collect::<Vec<_>>(), [0, 1, 2, 8]);
        assert_eq!(cpus("0").collect::<Vec<_>>(), [0]);
        assert_eq!(cpus("").count(), 0);
    }
}
