//! BPF iterators: programs that the kernel runs over its own objects while user space reads a file.

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use aya::{Btf, programs::Iter};

use super::probe;

/// `enum bpf_cmd`, `enum bpf_attach_type` of `include/uapi/linux/bpf.h`.
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_ITER_CREATE: libc::c_long = 33;
const BPF_TRACE_ITER: u32 = 28;

/// The most bytes that the kernel returns from one read.
const CHUNK: usize = 32 << 10;

/// A loaded iterator program. Dropping it unloads it.
#[derive(Debug)]
pub(crate) struct Iterator {
    program: OwnedFd,
}

impl Iterator {
    /// Loads the program as an iterator of this kind (`bpf_iter_KIND` in the kernel).
    ///
    /// # Errors
    /// The reason, if the kernel refuses it.
    pub(crate) fn load(program: &mut Iter, kind: &str, btf: &Btf) -> Result<Self, String> {
        let loaded = probe::load(|| program.load(kind, btf));
        loaded.map_err(|error| probe::shorten(&error.to_string()))?;
        let fd = program.fd().map_err(|error| error.to_string())?.as_fd().try_clone_to_owned();
        Ok(Self { program: fd.map_err(|error| error.to_string())? })
    }

    /// Begins an iteration; `scope` is the beginning of `union bpf_iter_link_info`: what to iterate over.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(crate) fn open(&self, scope: u32) -> io::Result<File> {
        /// `union bpf_iter_link_info`.
        #[repr(C)]
        struct Info {
            scope: u32,
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
        let info = Info { scope, rest: [0; 3] };
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

    /// Begins an iteration over the elements of a map.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(crate) fn open_map(&self, map: BorrowedFd<'_>) -> io::Result<File> {
        self.open(map.as_raw_fd().cast_unsigned())
    }
}

/// The next records of an iteration, each of `size` bytes. Returns `Ok(None)` at its end.
///
/// # Errors
/// If the kernel ends it early.
pub(crate) fn next<T>(
    file: &mut File,
    size: u32,
    read: impl Fn(&[u8]) -> Option<T>,
) -> io::Result<Option<Vec<T>>> {
    let mut chunk = vec![0; CHUNK];
    let length = loop {
        match file.read(&mut chunk) {
            // After a million objects without a record, the kernel wants to be asked again.
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            length => break length?,
        }
    };
    let records = chunk[..length].chunks(size as usize).filter_map(read);
    Ok((length > 0).then(|| records.collect()))
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
