//! The kernel's iterators: eBPF programs that run once for each object of a kind when user space reads, and
//! write binary records (Linux 5.8).

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use aya::{Btf, Ebpf, programs::Iter};

use super::{
    probe,
    syscall::{BPF_ITER_CREATE, BPF_LINK_CREATE, bpf},
};

/// `enum bpf_attach_type` of `include/uapi/linux/bpf.h`.
const BPF_TRACE_ITER: u32 = 28;

/// The most bytes that the kernel returns from one read.
pub const CHUNK: usize = 32 << 10;

/// How long the kernel may work on one iteration. A large host takes a second; a process that changes as fast
/// as it is looked at, or starts others as fast, has no end.
pub const LIMIT: Duration = Duration::from_secs(10);

/// Loads a program of the object as an iterator of this kind.
///
/// # Errors
/// If the object lacks it, or the kernel refuses it.
pub fn load(ebpf: &mut Ebpf, name: &str, kind: &str, btf: &Btf) -> anyhow::Result<OwnedFd> {
    let program: &mut Iter =
        ebpf.program_mut(name).context("the eBPF object lacks the program")?.try_into()?;
    probe::load(|| program.load(kind, btf))?;
    Ok(program.fd()?.as_fd().try_clone_to_owned()?)
}

/// Runs an iteration over `scope` (see [`open`]) to its end, in `limit` at most, and hands out its records,
/// each of this size.
///
/// # Errors
/// If the kernel refuses, or ends it early, or does not end it in time.
pub fn each(
    program: BorrowedFd<'_>,
    scope: u32,
    size: u32,
    limit: Duration,
    mut take: impl FnMut(&[u8]),
) -> io::Result<()> {
    let mut iteration = Iteration { left: limit, ..open(program, scope)? };
    let mut chunk = vec![0; CHUNK];
    loop {
        let bytes = iteration.read(&mut chunk)?;
        if bytes.is_empty() {
            return Ok(());
        }
        bytes.chunks(size as usize).for_each(&mut take);
    }
}

/// Begins an iteration. Those over tasks keep to the process `scope` (0: all), those over the elements of a
/// map need its descriptor; those over sockets keep to the network namespace of the calling thread. The link
/// may be closed once the iteration is open.
///
/// # Errors
/// If the kernel refuses.
pub fn open(program: BorrowedFd<'_>, scope: u32) -> io::Result<Iteration> {
    /// `union bpf_iter_link_info`: `task.tid` (one thread stands for all of its process) or `map.map_fd`.
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
    let create = LinkCreate {
        program: program.as_raw_fd().cast_unsigned(),
        target: 0,
        attach_type: BPF_TRACE_ITER,
        flags: 0,
        info: (&raw const info) as u64,
        info_length: INFO,
        padding: 0,
    };
    // SAFETY: `info` outlives the call and has the length given.
    let link = unsafe { bpf(BPF_LINK_CREATE, &create) }?;
    // SAFETY: a link and no flags; no pointers.
    let file = unsafe { bpf(BPF_ITER_CREATE, &[link.as_raw_fd().cast_unsigned(), 0]) }.map(File::from)?;
    Ok(Iteration { file, left: LIMIT })
}

/// An iteration that has begun.
#[derive(Debug)]
pub struct Iteration {
    file: File,
    /// Of its limit.
    left: Duration,
}

impl Iteration {
    /// The next records, at most [`CHUNK`] bytes; none at its end.
    ///
    /// # Errors
    /// If the kernel ends it early, or has not ended it in time.
    pub fn read<'c>(&mut self, chunk: &'c mut [u8]) -> io::Result<&'c [u8]> {
        loop {
            let begin = Instant::now();
            let read = self.file.read(chunk);
            self.left = self.left.saturating_sub(begin.elapsed());
            match read {
                Ok(0) => return Ok(&[]),
                _ if self.left.is_zero() => {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "the kernel's iteration does not end in time: this host is too large, or a process keeps it going",
                    ));
                }
                // After a million objects without a record, the kernel wants to be asked again.
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                length => return Ok(&chunk[..length?]),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iteration_without_an_end_is_given_up() {
        let file = File::open("/dev/zero").unwrap();
        let mut iteration = Iteration { file, left: Duration::from_millis(20) };
        let mut chunk = vec![0; CHUNK];
        let begin = Instant::now();
        let error = loop {
            match iteration.read(&mut chunk) {
                Ok(bytes) => assert_eq!(bytes.len(), CHUNK),
                Err(error) => break error,
            }
            assert!(begin.elapsed() < Duration::from_secs(10), "it goes on");
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn kernel_that_wants_to_be_asked_again_for_ever_is_given_up() {
        let (end, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        end.set_nonblocking(true).unwrap();
        let file = File::from(OwnedFd::from(end));
        let mut iteration = Iteration { file, left: Duration::from_millis(20) };
        assert_eq!(iteration.read(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
