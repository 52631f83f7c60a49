//! Whose connection it is, where the current task is certain to be the one that acts on the socket.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_get_current_cgroup_id;
use handshake_common::Connection;

use crate::kernel::{Access, Memory, layout};

/// A kernel thread, `include/linux/sched.h`.
const PF_KTHREAD: u32 = 0x0020_0000;

/// What is read of a task.
pub struct Process {
    flags: u32,
    tgid: u32,
    /// Of the group leader: threads often have names of their own.
    comm: [u64; 2],
}

impl Process {
    /// Reads a `task_struct`.
    ///
    /// # Safety
    /// `task` must be the current task, BTF-typed for [`crate::kernel::Direct`].
    #[inline(always)]
    pub unsafe fn read<M: Memory>(task: *const c_void) -> Self {
        // SAFETY: the caller's promise; the leader of the current task lives as long as the task.
        unsafe {
            let leader = M::read::<usize>(task, layout!(task_group_leader)) as *const c_void;
            Self {
                flags: M::read(task, layout!(task_flags)),
                tgid: M::read(task, layout!(task_tgid)),
                comm: [M::read(leader, layout!(task_comm)), M::read(leader, layout!(task_comm) + 8)],
            }
        }
    }
}

impl Process {
    /// Writes down who it is; it must be the current one.
    #[inline(always)]
    pub fn name(&self, pid: &mut u32, comm: &mut [u8; 16], cgroup: &mut u64) {
        *pid = self.tgid;
        // SAFETY: sixteen bytes either way.
        *comm = unsafe { core::mem::transmute::<[u64; 2], [u8; 16]>(self.comm) };
        // SAFETY: no arguments.
        *cgroup = unsafe { bpf_get_current_cgroup_id() };
    }
}

/// Writes down the current process. Call only where a task acts on its own socket: `connect()`, `close()`,
/// `shutdown()`. A kernel thread is taken only `with_kernel`: it may connect on its own, but it may also close
/// what a process had left to it.
#[inline(always)]
pub fn note<A: Access>(connection: &mut Connection, with_kernel: bool) {
    let process = A::process();
    if process.flags & PF_KTHREAD != 0 && !with_kernel {
        return;
    }
    process.name(&mut connection.pid, &mut connection.comm, &mut connection.cgroup);
}
