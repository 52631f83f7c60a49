//! The socket behind a file descriptor that the library's object holds. Needed for goroutines, which change
//! threads, and on kernels without tracepoints for what a call sends and receives.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_get_current_task;
use handshake_common::tls::library::{key::Key, session::Session, target::Target};

use super::{
    join::join,
    object::{self, UNKNOWN},
};
use crate::kernel::{KernelSock, Memory as _, Probed, S_IFMT, S_IFSOCK, Untyped, layout};

/// Looks up the socket of the session, unless it is known.
#[inline(always)]
pub(crate) fn find(key: &Key, session: &mut Session, target: &Target) {
    if session.sk != 0 {
        return;
    }
    if target.fd_guard_value != 0 && object::number(session.object, &target.fd_guard) != target.fd_guard_value
    {
        return;
    }
    let fd = object::number(session.object, &target.fd);
    if fd == UNKNOWN {
        return;
    }
    let Some(sk) = socket(fd) else { return };
    if let Some(sock) = KernelSock::<Untyped>::new(sk) {
        join(key, session, &sock);
    }
}

/// `current->files->fdt->fd[fd]->private_data->sk`, if that file is a socket.
#[inline(always)]
fn socket(fd: u64) -> Option<*const c_void> {
    // SAFETY: no arguments.
    let task = unsafe { bpf_get_current_task() } as *const c_void;
    let files = follow(task, layout!(task_files))?;
    let table = follow(files, layout!(files_fdt))?;
    // SAFETY: Probed catches every fault.
    let most: u32 = unsafe { Probed::read(table, layout!(fdt_max)) };
    if fd >= u64::from(most) {
        return None;
    }
    let descriptors = follow(table, layout!(fdt_fd))?;
    let file = follow(descriptors.cast::<u8>().wrapping_add(usize::try_from(fd).ok()? * 8).cast(), 0)?;
    let inode = follow(file, layout!(file_inode))?;
    // SAFETY: as above.
    let mode: u16 = unsafe { Probed::read(inode, layout!(inode_mode)) };
    if mode & S_IFMT != S_IFSOCK {
        return None;
    }
    follow(follow(file, layout!(file_private))?, layout!(socket_sk))
}

/// The pointer at `base + offset`. Returns `None` if it is null or cannot be read.
#[inline(always)]
fn follow(base: *const c_void, offset: u32) -> Option<*const c_void> {
    // SAFETY: Probed catches every fault.
    let pointer = unsafe { Probed::read::<usize>(base, offset) } as *const c_void;
    if pointer.is_null() { None } else { Some(pointer) }
}
