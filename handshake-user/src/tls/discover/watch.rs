//! New executable mappings of the whole host, exec and dlopen alike: `PERF_RECORD_MMAP2`, in one ring a CPU that user
//! space looks into at its own pace.

use std::{io, os::unix::ffi::OsStrExt as _, path::PathBuf};

use perf_event::{Builder, Sampler, data::Record, events::Software};

use super::{FileId, maps};
use crate::bounded;

/// Of one CPU, bytes: about 800 mappings, as some 200 program starts make.
const RING: usize = 128 << 10;

/// Records per look: some milliseconds.
const BATCH: usize = 20_000;

/// How the record names a file: enough to know it again, though it may be the overlay's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Alias {
    dev: (u32, u32),
    ino: u64,
    generation: u64,
}

impl Alias {
    /// Its file system, as `stat` numbers it.
    #[must_use]
    pub fn device(self) -> u64 {
        rustix::fs::makedev(self.dev.0, self.dev.1)
    }

    /// Whether it can be the name of this file.
    #[must_use]
    pub fn may_be(self, id: FileId) -> bool {
        self.ino == id.ino && (id.generation == 0 || self.generation == u64::from(id.generation))
    }
}

/// A process has mapped a file.
#[derive(Clone, Debug)]
pub struct Heard {
    /// The process.
    pub pid: u32,
    /// An address in the mapping.
    pub at: u64,
    /// The file.
    pub alias: Alias,
    /// As the process sees it.
    pub path: PathBuf,
}

/// The rings.
#[derive(Debug)]
pub struct Watch {
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
    /// Begins to listen on every CPU that is online.
    ///
    /// # Errors
    /// When the kernel refuses: without `CAP_PERFMON`, or under `kernel.perf_event_paranoid`.
    pub fn start() -> io::Result<Self> {
        let online = bounded::read_to_string("/sys/devices/system/cpu/online", bounded::SMALL)?;
        let ring = |cpu| {
            let mut event = Builder::new(Software::DUMMY);
            // The watermark is never reached: nobody is to be woken.
            event.any_pid().one_cpu(cpu).mmap(true).mmap2(true).enabled(true).wakeup_watermark(2 * RING);
            event.build()?.sampled(RING).map(Ring)
        };
        Ok(Self { rings: cpus(&online).map(ring).collect::<io::Result<_>>()? })
    }

    /// Hands every new mapping of a file to `each`; true when some were lost.
    pub fn listen(&mut self, mut each: impl FnMut(Heard)) -> bool {
        let mut lost = false;
        for Ring(ring) in &mut self.rings {
            let mut left = BATCH;
            while let Some(record) = ring.next_record() {
                match record.parse_record() {
                    Ok(Record::Mmap2(mapped)) => {
                        if let (Some(major), Some(minor), Some(ino @ 1..), Some(generation)) =
                            (mapped.maj(), mapped.min(), mapped.ino(), mapped.ino_generation())
                        {
                            each(Heard {
                                pid: mapped.pid,
                                at: mapped.addr,
                                alias: Alias { dev: (major, minor), ino, generation },
                                path: maps::shown(mapped.filename_os().as_bytes()),
                            });
                        }
                    }
                    Ok(Record::Lost(_)) => lost = true,
                    Ok(_) | Err(_) => {}
                }
                left -= 1;
                if left == 0 {
                    break;
                }
            }
        }
        lost
    }
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
    fn lists_of_cpus() {
        assert_eq!(cpus("0-2,8\n").collect::<Vec<_>>(), [0, 1, 2, 8]);
        assert_eq!(cpus("0").collect::<Vec<_>>(), [0]);
        assert_eq!(cpus("").count(), 0);
    }
}
