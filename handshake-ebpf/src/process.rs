//! Whose connection it is, where the current task is certain to be the one that acts on the socket.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{bpf_get_current_cgroup_id, bpf_get_current_task};
use handshake_common::Connection;

use crate::kernel::{Memory, Probed, layout};

/// A kernel thread, `include/linux/sched.h`.
const PF_KTHREAD: u32 = 0x0020_0000;

/// Writes down the current process (its group leader). Call only where a task acts on its own socket: `connect()`,
/// `close()`, `shutdown()`. A kernel thread is taken only `with_kernel`: it may connect on its own, but it may
/// also close what a process had left to it.
#[inline(always)]
pub fn note(connection: &mut Connection, with_kernel: bool) {
    // SAFETY: the helper returns the current task_struct, and Probed catches every fault.
    unsafe {
        let task = bpf_get_current_task() as *const c_void;
        let flags: u32 = Probed::read(task, layout!(task_flags));
        if flags & PF_KTHREAD != 0 && !with_kernel {
            return;
        }
        let leader: usize = Probed::read(task, layout!(task_group_leader));
        connection.pid = Probed::read(task, layout!(task_tgid));
        connection.comm = Probed::read(leader as *const c_void, layout!(task_comm));
        connection.cgroup = bpf_get_current_cgroup_id();
    }
}
