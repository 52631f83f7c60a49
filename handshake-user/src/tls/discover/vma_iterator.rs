//! The kernel's iterator over mappings (`iter/task_vma`), which runs the program in
//! `handshake-ebpf/src/tls/discover.rs`: it shows the inode of every mapped file, also below an overlay.

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
};

use aya::{
    Btf, Ebpf,
    programs::{Iter, ProgramError},
};
use handshake_common::tls::discover::{self, Mapping};
use thiserror::Error;

use super::file::{FileId, Mapped};
use crate::kernel::probe;

/// `enum bpf_cmd`, `enum bpf_attach_type` of `include/uapi/linux/bpf.h`.
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_ITER_CREATE: libc::c_long = 33;
const BPF_TRACE_ITER: u32 = 28;

/// The most bytes that the kernel returns from one read.
const CHUNK: usize = 32 << 10;

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
    pub fn all(&self) -> io::Result<File> {
        self.open(0)
    }

    /// The executable mappings of a process; none if it has ended.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn of(&self, pid: u32) -> io::Result<Vec<Mapped>> {
        let mut file = match self.open(pid) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(Vec::new()),
            file => file?,
        };
        let mut mapped = Vec::new();
        while let Some(more) = next(&mut file)? {
            mapped.extend(more);
        }
        Ok(mapped)
    }

    /// An iteration over the process `pid`, 0 for all.
    fn open(&self, pid: u32) -> io::Result<File> {
        /// `union bpf_iter_link_info`, of which `task.tid`: one thread stands for all of its process.
        #[repr(C)]
        struct Info {
            tid: u32,
            rest: [u32; 3],
        }
        const INFO: u32 = 16;
        const _: () = assert!(size_of::<Info>() == INFO as usize);
        /// The part of `union bpf_attr` that `BPF_LINK_CREATE` reads.
        #[repr(C)]
        struct LinkCreate {
            program: u32,
            target: u32,
            attach_type: u32,
            flags: u32,
            info: u64,
            info_length: u32,
            padding: u32,
        }
        let info = Info { tid: pid, rest: [0; 3] };
        let link = bpf(
            BPF_LINK_CREATE,
            &LinkCreate {
                program: self.program.as_raw_fd().cast_unsigned(),
                target: 0,
                attach_type: BPF_TRACE_ITER,
                flags: 0,
                info: (&raw const info) as u64,
                info_length: INFO,
                padding: 0,
            },
        )?;
        // The link may be closed once the iteration is open.
        bpf(BPF_ITER_CREATE, &[link.as_raw_fd().cast_unsigned(), 0]).map(File::from)
    }
}

/// The next records of an iteration. Returns `Ok(None)` at its end.
///
/// # Errors
/// If the kernel ends it early.
pub(super) fn next(file: &mut File) -> io::Result<Option<Vec<Mapped>>> {
    let mut chunk = vec![0; CHUNK];
    let length = loop {
        match file.read(&mut chunk) {
            // After a million mappings without a record, the kernel wants to be asked again.
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            length => break length?,
        }
    };
    let records = chunk[..length].chunks(discover::SIZE as usize).filter_map(Mapping::from_bytes);
    Ok((length > 0).then(|| records.map(|record| Mapped::from(&record)).collect()))
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

/// A command of `bpf(2)` that returns a file descriptor.
fn bpf<T>(command: libc::c_long, attr: &T) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads no more bytes of `attr` than the size it is given; the pointer in it is to
    // memory that outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    match i32::try_from(fd) {
        // SAFETY: the kernel has just returned it, and nothing else owns it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
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
