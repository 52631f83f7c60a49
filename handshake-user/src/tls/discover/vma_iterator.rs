//! The kernel's iterator over mappings (`iter/task_vma`), which runs the program in
//! `handshake-ebpf/src/tls/discover.rs`: it shows the inode of every mapped file, also below an overlay.

use std::{fs::File, io};

use aya::{Btf, programs::Iter};
use handshake_common::tls::discover::{self, Mapping};

use super::file::{FileId, Mapped};
use crate::kernel::iterator::{self, Iterator};

/// The loaded program. Dropping it unloads it.
#[derive(Debug)]
pub struct VmaIterator {
    program: Iterator,
}

impl VmaIterator {
    /// Loads the program, and tries it on this process.
    ///
    /// # Errors
    /// If the kernel refuses the program (before 5.12), or cannot iterate over a single process (before 6.1).
    /// On those kernels `/proc/PID/maps` shows the inode below an overlay.
    pub fn load(program: &mut Iter, btf: &Btf) -> Result<Self, String> {
        let this = Self { program: Iterator::load(program, discover::ITERATOR, btf)? };
        let own = std::process::id();
        let mapped = this.of(own).map_err(|error| error.to_string())?;
        if mapped.is_empty() || mapped.iter().any(|mapped| mapped.pid != own) {
            return Err(
                "the kernel's iterator does not keep to one process, or not to this PID namespace".into()
            );
        }
        Ok(this)
    }

    /// Begins an iteration over all processes, to be read by [`next`].
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn all(&self) -> io::Result<File> {
        self.program.open(0)
    }

    /// The executable mappings of a process; none if it has ended.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn of(&self, pid: u32) -> io::Result<Vec<Mapped>> {
        // `union bpf_iter_link_info`, of which `task.tid`: one thread stands for all of its process.
        let mut file = match self.program.open(pid) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(Vec::new()),
            file => file?,
        };
        let mut mapped = Vec::new();
        while let Some(more) = next(&mut file)? {
            mapped.extend(more);
        }
        Ok(mapped)
    }
}

/// The next records of an iteration. Returns `Ok(None)` at its end.
///
/// # Errors
/// If the kernel ends it early.
pub(super) fn next(file: &mut File) -> io::Result<Option<Vec<Mapped>>> {
    iterator::next(file, discover::SIZE, |bytes| Mapping::from_bytes(bytes).as_ref().map(Mapped::from))
}

impl From<&Mapping> for Mapped {
    fn from(record: &Mapping) -> Self {
        Self {
            pid: record.pid,
            range: record.start..record.end,
            id: FileId {
                // `MAJOR` and `MINOR` of include/linux/kdev_t.h.
                dev: rustix::fs::makedev(record.dev >> 20, record.dev & 0xf_ffff),
                ino: record.ino,
                generation: record.generation,
            },
            main: record.main != 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_device_number_becomes_that_of_stat() {
        let record =
            Mapping { dev: (259 << 20) | 0x12c, ino: 7, generation: 9, main: 1, pid: 3, start: 1, end: 2 };
        let mapped = Mapped::from(&record);
        assert_eq!((rustix::fs::major(mapped.id.dev), rustix::fs::minor(mapped.id.dev)), (259, 300));
        assert_eq!((mapped.pid, mapped.range, mapped.main), (3, 1..2, true));
    }
}
