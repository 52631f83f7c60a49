//! Where the running kernel keeps what the programs read. User space resolves every offset from the kernel's
//! BTF at start; the programs see it as one read-only global, so the verifier knows each offset as a
//! constant.

/// Name of the global in the eBPF object.
pub const SYMBOL: &str = "LAYOUT";

/// An offset that this kernel does not have.
pub const ABSENT: u32 = u32::MAX;

/// A bitfield of one bit: the byte it is in, and its mask there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Bit {
    /// Byte offset in the structure, or [`ABSENT`].
    pub offset: u32,
    /// One bit set.
    pub mask: u32,
}

impl Bit {
    /// A bit that this kernel does not have: reads as clear.
    pub const ABSENT: Self = Self { offset: ABSENT, mask: 0 };
}

/// Declares the layout once: the struct, and the list that user space resolves.
macro_rules! layout {
    (fields { $($field:ident: $type_name:literal $path:literal),+ $(,)? }
     bits { $($bit:ident: $bit_type:literal $bit_path:literal),+ $(,)? }
     values { $($value:ident),+ $(,)? }) => {
        /// Byte offsets within kernel structures. Everything of `tcp_sock` counts from the start of
        /// `tcp_sock`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(C)]
        pub struct Layout {
            $(#[doc = concat!("`", $type_name, ".", $path, "`")] pub $field: u32,)+
            $(#[doc = concat!("`", $bit_type, ".", $bit_path, "`")] pub $bit: Bit,)+
            $(#[doc = "1: the kernel gives tracing programs the socket cookie and the typed current task (5.12 and newer)."] pub $value: u32,)+
        }

        impl Layout {
            /// What the object carries before user space fills it in.
            pub const UNRESOLVED: Self =
                Self { $($field: ABSENT,)+ $($bit: Bit::ABSENT,)+ $($value: 0,)+ };

            /// Calls `resolve` for every member: (`field`, structure, dotted path).
            ///
            /// # Errors
            /// The first error of `resolve`.
            pub fn resolve_with<E>(
                mut field: impl FnMut(&'static str, &'static str, &'static str) -> Result<u32, E>,
                mut bit: impl FnMut(&'static str, &'static str, &'static str) -> Result<Bit, E>,
            ) -> Result<Self, E> {
                Ok(Self {
                    $($field: field(stringify!($field), $type_name, $path)?,)+
                    $($bit: bit(stringify!($bit), $bit_type, $bit_path)?,)+
                    $($value: 0,)+
                })
            }
        }
    };
}

layout! {
    fields {
        skc_family: "sock" "__sk_common.skc_family",
        skc_state: "sock" "__sk_common.skc_state",
        skc_num: "sock" "__sk_common.skc_num",
        skc_dport: "sock" "__sk_common.skc_dport",
        skc_daddr: "sock" "__sk_common.skc_daddr",
        skc_rcv_saddr: "sock" "__sk_common.skc_rcv_saddr",
        skc_v6_daddr: "sock" "__sk_common.skc_v6_daddr",
        skc_v6_rcv_saddr: "sock" "__sk_common.skc_v6_rcv_saddr",
        skc_net: "sock" "__sk_common.skc_net.net",
        sk_protocol: "sock" "sk_protocol",
        sk_err: "sock" "sk_err",
        sk_err_soft: "sock" "sk_err_soft",
        sk_flags: "sock" "__sk_common.skc_flags",
        sk_shutdown: "sock" "sk_shutdown",
        sk_write_pending: "sock" "sk_write_pending",
        sk_ack_backlog: "sock" "sk_ack_backlog",
        sk_max_ack_backlog: "sock" "sk_max_ack_backlog",
        sk_drops: "sock" "sk_drops",
        net_inum: "net" "ns.inum",
        inet_sport: "tcp_sock" "inet_conn.icsk_inet.inet_sport",
        pingpong: "tcp_sock" "inet_conn.icsk_ack.pingpong",
        rskq_defer_accept: "tcp_sock" "inet_conn.icsk_accept_queue.rskq_defer_accept",
        srtt_us: "tcp_sock" "srtt_us",
        total_retrans: "tcp_sock" "total_retrans",
        data_segs_in: "tcp_sock" "data_segs_in",
        bytes_acked: "tcp_sock" "bytes_acked",
        packets_out: "tcp_sock" "packets_out",
        tsorted_sent_queue: "tcp_sock" "tsorted_sent_queue",
        write_seq: "tcp_sock" "write_seq",
        snd_nxt: "tcp_sock" "snd_nxt",
        snd_una: "tcp_sock" "snd_una",
        rcv_nxt: "tcp_sock" "rcv_nxt",
        rcv_wup: "tcp_sock" "rcv_wup",
        tcp_wstamp_ns: "tcp_sock" "tcp_wstamp_ns",
        tcp_clock_cache: "tcp_sock" "tcp_clock_cache",
        rack_mstamp: "tcp_sock" "rack.mstamp",
        rcv_rtt_us: "tcp_sock" "rcv_rtt_est.rtt_us",
        rcvq_time_us: "tcp_sock" "rcvq_space.time",
        retrans_stamp: "tcp_sock" "retrans_stamp",
        snt_synack: "tcp_request_sock" "snt_synack",
        tw_cookie: "tcp_timewait_sock" "tw_sk.__tw_common.skc_cookie",
        tw_substate: "tcp_timewait_sock" "tw_sk.tw_substate",
        tw_timer_expires: "tcp_timewait_sock" "tw_sk.tw_timer.expires",
        tw_timer_flags: "tcp_timewait_sock" "tw_sk.tw_timer.flags",
        tw_entry_stamp: "tcp_timewait_sock" "tw_sk.tw_entry_stamp",
        task_flags: "task_struct" "flags",
        task_group_leader: "task_struct" "group_leader",
        task_tgid: "task_struct" "tgid",
        task_pid: "task_struct" "pid",
        task_start_time: "task_struct" "start_time",
        task_self_exec_id: "task_struct" "self_exec_id",
        task_comm: "task_struct" "comm",
        task_nvcsw: "task_struct" "nvcsw",
        task_exec_runtime: "task_struct" "se.sum_exec_runtime",
        task_run_delay: "task_struct" "sched_info.run_delay",
        task_files: "task_struct" "files",
        task_cgroups: "task_struct" "cgroups",
        css_set_cgroup: "css_set" "dfl_cgrp",
        cgroup_node: "cgroup" "kn",
        node_id: "kernfs_node" "id",
        files_fdt: "files_struct" "fdt",
        fdt_max: "fdtable" "max_fds",
        fdt_fd: "fdtable" "fd",
        file_private: "file" "private_data",
        file_inode: "file" "f_inode",
        inode_mode: "inode" "i_mode",
        socket_sk: "socket" "sk",
        mptcp_first: "mptcp_sock" "first",
        task_mm: "task_struct" "mm",
        mm_start_code: "mm_struct" "start_code",
        vma_start: "vm_area_struct" "vm_start",
        vma_end: "vm_area_struct" "vm_end",
        vma_flags: "vm_area_struct" "vm_flags",
        vma_file: "vm_area_struct" "vm_file",
        inode_ino: "inode" "i_ino",
        inode_generation: "inode" "i_generation",
        inode_sb: "inode" "i_sb",
        sb_dev: "super_block" "s_dev",
    }
    bits {
        syn_data: "tcp_sock" "syn_data",
        syn_fastopen: "tcp_sock" "syn_fastopen",
        syn_data_acked: "tcp_sock" "syn_data_acked",
        fastopen_connect: "tcp_sock" "fastopen_connect",
        tcp_usec_ts: "tcp_sock" "tcp_usec_ts",
    }
    values { has_tracing_helpers }
}

// SAFETY: integers only, repr(C), and no padding (all u32).
#[cfg(feature = "user")]
unsafe impl aya::Pod for Layout {}
