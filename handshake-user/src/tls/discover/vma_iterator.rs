//! The kernel's iterator over mappings (`iter/task_vma`), which runs the program in
//! `handshake-ebpf/src/tls/discover.rs`: it shows the inode of every mapped file, also below an overlay.

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use aya::{Btf, programs::Iter};
use handshake_common::tls::discover::{self, Mapping};

use super::file::{FileId, Mapped};
use crate::kernel::{
    probe,
    syscall::{BPF_ITER_CREATE, BPF_LINK_CREATE, bpf},
};

/// `enum bpf_attach_type` of `include/uapi/linux/bpf.h`.
const BPF_TRACE_ITER: u32 = 28;

/// The most bytes that the kernel returns from one read.
const CHUNK: usize = 32 << 10;

/// The loaded program. Dropping it unloads it.
#[derive(Debug)]
pub struct VmaIterator {
    program: OwnedFd,
}

impl VmaIterator {
    /// Loads the program, and tries it on this process.
    ///
    /// # Errors
    /// If the kernel refuses the program (before 5.12), or cannot iterate over a single process (before 6.1).
    /// On those kernels `/proc/PID/maps` shows the inode below an overlay.
    pub fn load(program: &mut Iter, btf: &Btf) -> Result<Self, String> {
        let loaded = probe::load(|| program.load(discover::ITERATOR, btf));
        loaded.map_err(|error| probe::shorten(&error.to_string()))?;
        let fd = program.fd().map_err(|error| error.to_string())?.as_fd().try_clone_to_owned();
        let this = Self { program: fd.map_err(|error| error.to_string())? };
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
        let create = LinkCreate {
            program: self.program.as_raw_fd().cast_unsigned(),
            target: 0,
            attach_type: BPF_TRACE_ITER,
            flags: 0,
            info: (&raw const info) as u64,
            info_length: INFO,
            padding: 0,
        };
        // SAFETY: `info` outlives the call and has the length given.
        let link = unsafe { bpf(BPF_LINK_CREATE, &create) }?;
        // The link may be closed once the iteration is open.
        // SAFETY: a link and no flags; no pointers.
        unsafe { bpf(BPF_ITER_CREATE, &[link.as_raw_fd().cast_unsigned(), 0]) }.map(File::from)
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
