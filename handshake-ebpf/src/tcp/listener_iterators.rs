//! What user space asks of the listening sockets: which processes hold them (`iter/task_file`), and how full
//! their queues are (`iter/bpf_map_elem` over the table). They run when user space asks, never by themselves.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_seq_write;
use handshake_common::{
    layout::ABSENT,
    tcp::{
        listener::{Backlog, Holder, Listener, Queue},
        states,
    },
};

use super::listener;
use crate::{
    iterator::Meta,
    kernel::{Direct, KernelSock, Memory as _, Probed, S_IFMT, S_IFSOCK, Untyped, layout},
    word_copy,
};

/// `include/linux/sched.h`: forked, and no `execve()` since.
const PF_FORKNOEXEC: u32 = 0x40;
/// `include/uapi/linux/in.h`.
const IPPROTO_MPTCP: u16 = 262;

/// `struct bpf_iter__task_file`.
#[repr(C)]
pub(crate) struct TaskFile {
    meta: *const Meta,
    task: *const c_void,
    fd: u64,
    file: *const c_void,
}

/// Writes one record for each listening TCP socket that a process has open, and enters it into the table if
/// it is not there: while its file is held it cannot go away.
///
/// # Safety
/// The kernel calls it with a context of this type.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
pub(crate) unsafe extern "C" fn listener_holders(ctx: *const TaskFile) -> i32 {
    // SAFETY: the context is the kernel's, the pointers out of it are BTF-typed, and the null pointers that
    // end an iteration are sent away first. `private_data` has no type: Probed catches every fault.
    unsafe {
        let (task, file) = ((*ctx).task, (*ctx).file);
        if task.is_null() || file.is_null() || layout!(tsorted_sent_queue) == ABSENT {
            return 0;
        }
        let inode = Direct::read::<usize>(file, layout!(file_inode)) as *const c_void;
        if Direct::read::<u16>(inode, layout!(inode_mode)) & S_IFMT != S_IFSOCK {
            return 0;
        }
        let socket = Direct::read::<usize>(file, layout!(file_private)) as *const c_void;
        let sk = subflow(Probed::read::<usize>(socket, layout!(socket_sk)) as *const c_void);
        let Some(sock) = KernelSock::<Untyped>::new(sk) else { return 0 };
        if sock.state() != states::LISTEN {
            return 0;
        }
        let mut found = listener::describe::<Probed>(sk, sock.local_port());
        // Of another family, whose protocol has the number of TCP by chance.
        if found.family == 0 {
            return 0;
        }
        let leader = Direct::read::<usize>(task, layout!(task_group_leader)) as *const c_void;
        let comm: [u64; 2] =
            [Direct::read(leader, layout!(task_comm)), Direct::read(leader, layout!(task_comm) + 8)];
        found.pid = Direct::read(task, layout!(task_tgid));
        found.comm = zerocopy::transmute!(comm);
        if layout!(task_cgroups) != ABSENT
            && layout!(css_set_cgroup) != ABSENT
            && layout!(cgroup_node) != ABSENT
            && layout!(node_id) != ABSENT
        {
            let set = Direct::read::<usize>(task, layout!(task_cgroups)) as *const c_void;
            let cgroup = Direct::read::<usize>(set, layout!(css_set_cgroup)) as *const c_void;
            let node = Direct::read::<usize>(cgroup, layout!(cgroup_node)) as *const c_void;
            found.cgroup = Direct::read(node, layout!(node_id));
        }
        let record = Holder {
            key: sock.list_head(),
            born_ns: Direct::read(leader, layout!(task_start_time)),
            cgroup: found.cgroup,
            comm: found.comm,
            pid: found.pid,
            is_forked: Direct::read::<u32>(leader, layout!(task_flags)) & PF_FORKNOEXEC,
            backlog: backlog(sk),
        };
        listener::add(record.key, &found);
        // When the buffer is full the kernel asks again for this file.
        let _ = bpf_seq_write((*(*ctx).meta).seq, (&raw const record).cast_mut().cast(), Holder::SIZE);
    }
    0
}

/// How full the queue of a listening socket is.
///
/// # Safety
/// `sk` is a pointer of the kernel's or null.
#[inline(always)]
unsafe fn backlog(sk: *const c_void) -> Backlog {
    if layout!(sk_ack_backlog) == ABSENT
        || layout!(sk_max_ack_backlog) == ABSENT
        || layout!(sk_drops) == ABSENT
    {
        return Backlog::default();
    }
    // SAFETY: Probed catches every fault.
    unsafe {
        Backlog {
            length: Probed::read(sk, layout!(sk_ack_backlog)),
            limit: Probed::read(sk, layout!(sk_max_ack_backlog)),
            drops: Probed::read(sk, layout!(sk_drops)),
            is_known: 1,
        }
    }
}

/// The TCP socket that listens for a socket of Multipath TCP; any other as it is.
///
/// # Safety
/// `sk` is a pointer of the kernel's or null.
#[inline(always)]
unsafe fn subflow(sk: *const c_void) -> *const c_void {
    // SAFETY: Probed catches every fault.
    unsafe {
        if layout!(mptcp_first) != ABSENT && Probed::read::<u16>(sk, layout!(sk_protocol)) == IPPROTO_MPTCP {
            return Probed::read::<usize>(sk, layout!(mptcp_first)) as *const c_void;
        }
    }
    sk
}

/// `struct bpf_iter__bpf_map_elem`.
#[repr(C)]
pub(crate) struct MapElem {
    meta: *const Meta,
    map: *const c_void,
    key: *const u64,
    value: *const Listener,
}

/// Writes one record for each socket of the table.
///
/// # Safety
/// The kernel calls it with a context of this type.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_map_elem")]
pub(crate) unsafe extern "C" fn listener_queues(ctx: *const MapElem) -> i32 {
    // SAFETY: the context is the kernel's, and the null pointers that end an iteration are sent away first. A
    // socket that went away meanwhile gives wrong numbers or none: Probed catches every fault.
    unsafe {
        let (key, value) = ((*ctx).key, (*ctx).value);
        if key.is_null() || value.is_null() {
            return 0;
        }
        let key = key.read_volatile();
        let sk = (key - u64::from(layout!(tsorted_sent_queue))) as *const c_void;
        let mut record = Queue {
            key,
            listener: Listener::default(),
            backlog: backlog(sk),
            state: u64::from(Probed::read::<u8>(sk, layout!(skc_state))),
        };
        word_copy::copy(value, &raw mut record.listener);
        let _ = bpf_seq_write((*(*ctx).meta).seq, (&raw const record).cast_mut().cast(), Queue::SIZE);
    }
    0
}
