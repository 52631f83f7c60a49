//! `bpf(2)`, for the commands that aya does not have.

use std::{
    io,
    os::fd::{FromRawFd as _, OwnedFd},
};

/// Of `enum bpf_cmd` in `include/uapi/linux/bpf.h`.
pub(crate) const BPF_PROG_LOAD: libc::c_long = 5;
/// See above.
pub(crate) const BPF_LINK_CREATE: libc::c_long = 28;
/// See above.
pub(crate) const BPF_ITER_CREATE: libc::c_long = 33;

/// A command that returns a descriptor.
///
/// # Errors
/// The kernel's refusal.
///
/// # Safety
/// `attr` must be the beginning of `union bpf_attr` as the command reads it: the kernel takes the rest for
/// zeros. Its pointers must be to memory that outlives the call and has the lengths that it says.
pub(crate) unsafe fn bpf<T>(command: libc::c_long, attr: &T) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads no more bytes of `attr` than the size it is given; the caller has promised the
    // rest.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    match i32::try_from(fd) {
        // SAFETY: the kernel has just returned it, and nothing else owns it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
