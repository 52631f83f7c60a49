//! The kernel's iterator over mappings (`iter/task_vma`), which runs the program in
//! `handshake-ebpf/src/tls/discover.rs`: it shows the inode of every mapped file, also below an overlay.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use aya::{
    Btf, Ebpf,
    programs::{Iter, ProgramError},
};
use handshake_common::tls::discover::{self, Mapping};
use thiserror::Error;

use super::file::{FileId, Mapped};
use crate::kernel::{
    iterator::{self, Iteration},
    probe,
};

/// More executable mappings of one process than are looked at: it may have 65 530 mappings, if the host does
/// not allow more.
const MAX_MAPPINGS: usize = 1 << 17;

/// Why the iterator cannot be used. `/proc/PID/maps` is read instead, which shows the inode below an overlay.
#[derive(Debug, Error)]
pub enum IteratorError {
    /// The object lacks the program, or another thread has the object.
    #[error("the eBPF object lacks the program")]
    NoProgram,
    /// The kernel refused the program (before 5.12).
    #[error("{}", probe::shorten(&.0.to_string()))]
    Program(#[from] ProgramError),
    /// The kernel refused an iteration.
    #[error("{0}")]
    Iteration(#[from] io::Error),
    /// The kernel iterates over more than the one process (before 6.1), or by other process ids.
    #[error("the kernel's iterator does not keep to one process, or not to this PID namespace")]
    OtherProcesses,
}

/// The loaded program. Dropping it unloads it.
#[derive(Debug)]
pub struct VmaIterator {
    program: OwnedFd,
}

impl VmaIterator {
    /// Loads the program, and tries it on this process.
    ///
    /// # Errors
    /// If the kernel refuses the program, or does not iterate over this process alone.
    pub fn load(ebpf: &mut Ebpf, btf: &Btf) -> Result<Self, IteratorError> {
        let program = ebpf.program_mut(discover::PROGRAM).ok_or(IteratorError::NoProgram)?;
        let program: &mut Iter = program.try_into()?;
        probe::load(|| program.load(discover::ITERATOR, btf))?;
        let this = Self { program: program.fd()?.as_fd().try_clone_to_owned()? };
        let own = std::process::id();
        let mapped = this.of(own)?;
        if mapped.is_empty() || mapped.iter().any(|mapped| mapped.pid != own) {
            return Err(IteratorError::OtherProcesses);
        }
        Ok(this)
    }

    /// Begins an iteration over all processes, to be read by [`next`].
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn all(&self) -> io::Result<Iteration> {
        self.open(0)
    }

    /// The executable mappings of a process by their addresses, each once; none if it has ended.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn of(&self, pid: u32) -> io::Result<Vec<Mapped>> {
        let mut iteration = match self.open(pid) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(Vec::new()),
            iteration => iteration?,
        };
        let mut mapped = Vec::new();
        while let Some(more) = next(&mut iteration)? {
            if !add_further(&mut mapped, more) {
                break;
            }
        }
        Ok(mapped)
    }

    /// An iteration over the process `pid`, 0 for all.
    fn open(&self, pid: u32) -> io::Result<Iteration> {
        iterator::open(self.program.as_fd(), pid)
    }
}

/// Adds the mappings behind those that are known. Returns whether there were any.
///
/// Asked after the end of an iteration over one process, the kernel goes back to where it last let go of the
/// process: because its buffer was full, or because the process waited to change its mappings
/// (`task_vma_seq_get_next`). It would tell of the rest for ever. In the middle of an iteration it tells
/// again of a mapping that has grown meanwhile.
fn add_further(mapped: &mut Vec<Mapped>, more: Vec<Mapped>) -> bool {
    let before = mapped.len();
    for one in more {
        let is_further = |last: &Mapped| last.pid != one.pid || last.range.end <= one.range.start;
        if mapped.last().is_none_or(is_further) {
            mapped.push(one);
        }
    }
    (before + 1..=MAX_MAPPINGS).contains(&mapped.len())
}

/// The next records of an iteration. Returns `Ok(None)` at its end.
///
/// # Errors
/// If the kernel ends it early, or has not ended it in time.
pub(super) fn next(iteration: &mut Iteration) -> io::Result<Option<Vec<Mapped>>> {
    let mut chunk = vec![0; iterator::CHUNK];
    let bytes = iteration.read(&mut chunk)?;
    let records = bytes.chunks(discover::SIZE as usize).filter_map(Mapping::from_bytes);
    Ok((!bytes.is_empty()).then(|| records.map(|record| Mapped::from(&record)).collect()))
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
