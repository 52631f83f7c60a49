//! The current task: its process, and what distinguishes it from every other.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_get_current_cgroup_id;
use handshake_common::tls::library::key::Key;

use crate::memory::{Memory, layout};

/// A kernel thread, `include/linux/sched.h`.
const PF_KTHREAD: u32 = 0x0020_0000;

/// What is read of a task.
pub(crate) struct Process {
    flags: u32,
    tgid: u32,
    /// Of the group leader: threads often have names of their own.
    comm: [u64; 2],
}

impl Process {
    /// Reads a `task_struct`.
    ///
    /// # Safety
    /// `task` must be the current task, BTF-typed for [`crate::memory::Direct`].
    #[inline(always)]
    pub(crate) unsafe fn read<M: Memory>(task: *const c_void) -> Self {
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
    #[inline(always)]
    pub(crate) fn is_kernel_thread(&self) -> bool {
        self.flags & PF_KTHREAD != 0
    }

    /// Stores id, name and cgroup of the process, which must be the current one.
    #[inline(always)]
    pub(crate) fn name(&self, pid: &mut u32, comm: &mut [u8; 16], cgroup: &mut u64) {
        *pid = self.tgid;
        *comm = zerocopy::transmute!(self.comm);
        // SAFETY: no arguments.
        *cgroup = unsafe { bpf_get_current_cgroup_id() };
    }
}

/// What identifies a task: ids alone are reused.
#[derive(Clone, Copy)]
pub(crate) struct Task {
    /// Its thread id.
    pub(crate) thread: u32,
    tgid: u32,
    execs: u32,
    born_ns: u64,
    process_born_ns: u64,
}

impl Task {
    /// Reads a `task_struct`.
    ///
    /// # Safety
    /// `task` must be the current task, BTF-typed for [`crate::memory::Direct`].
    #[inline(always)]
    pub(crate) unsafe fn read<M: Memory>(task: *const c_void) -> Self {
        // SAFETY: the caller's promise; the leader of the current task lives as long as the task.
        unsafe {
            let leader = M::read::<usize>(task, layout!(task_group_leader)) as *const c_void;
            Self {
                thread: M::read(task, layout!(task_pid)),
                tgid: M::read(task, layout!(task_tgid)),
                execs: M::read(task, layout!(task_self_exec_id)),
                born_ns: M::read(task, layout!(task_start_time)),
                process_born_ns: M::read(leader, layout!(task_start_time)),
            }
        }
    }

    /// The key of the thread itself.
    #[inline(always)]
    pub(crate) fn key(&self) -> Key {
        let Self { thread, tgid, execs, born_ns, .. } = *self;
        Key { address: u64::from(thread), born_ns, tgid, execs }
    }

    /// The key of what is at this address of its process.
    #[inline(always)]
    pub(crate) fn key_of(&self, address: u64) -> Key {
        let Self { tgid, execs, process_born_ns: born_ns, .. } = *self;
        Key { address, born_ns, tgid, execs }
    }
}
