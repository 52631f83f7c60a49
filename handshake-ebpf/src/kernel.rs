//! What a program may do in the kernel, depending on the kind of its pointers, and what it reads from a
//! socket.

use core::{ffi::c_void, marker::PhantomData};

use aya_ebpf::{
    bindings::pt_regs,
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{
            bpf_get_current_task, bpf_get_current_task_btf, bpf_get_smp_processor_id, bpf_get_socket_cookie,
            bpf_ktime_get_ns, bpf_task_pt_regs,
        },
    },
};
use handshake_common::{
    Connection, ConnectionFlags, Family, layout::ABSENT, tcp::Sock, tls::library::session::Activity,
};

pub(crate) use crate::memory::{Direct, Memory, Probed, constant, layout};
use crate::{
    maps::Endpoints,
    process::{Process, Task},
};

/// What a program may do with the pointers from its tracepoint.
pub(crate) trait Access {
    type Memory: Memory;
    /// A number unique to this socket.
    fn cookie(sk: *const c_void) -> u64;
    /// Whether that is the same number each time.
    #[inline(always)]
    fn has_cookies() -> bool {
        false
    }
    /// The address of a socket as a mere number, for functions of their own, which take no typed pointer.
    fn address(sk: *const c_void) -> u64;
    /// The current task.
    fn process() -> Process;
    /// What the current task has done so far.
    fn activity() -> Activity;
    /// The identity of the current task.
    fn task() -> Task;
}

/// What a task has done so far.
///
/// # Safety
/// `task` is one that `M` can read.
#[inline(always)]
unsafe fn activity<M: Memory>(task: *const c_void) -> Activity {
    // SAFETY: the caller's promise.
    unsafe {
        let ran: u64 = M::read(task, layout!(task_exec_runtime));
        let delayed: u64 =
            if layout!(task_run_delay) == ABSENT { 0 } else { M::read(task, layout!(task_run_delay)) };
        Activity::new(M::read(task, layout!(task_nvcsw)), ran.wrapping_add(delayed))
    }
}

/// BTF-typed programs.
pub(crate) struct Typed;
impl Access for Typed {
    type Memory = Direct;

    #[inline(always)]
    fn cookie(sk: *const c_void) -> u64 {
        if layout!(has_tracing_helpers) == 0 {
            return own_number();
        }
        // SAFETY: a BTF-typed socket.
        unsafe { bpf_get_socket_cookie(sk.cast_mut()) }
    }

    #[inline(always)]
    fn has_cookies() -> bool {
        layout!(has_tracing_helpers) != 0
    }

    #[inline(always)]
    fn address(sk: *const c_void) -> u64 {
        // SAFETY: a variable of this function.
        unsafe { Probed::read((&raw const sk).cast(), 0) }
    }

    #[inline(always)]
    fn process() -> Process {
        if layout!(has_tracing_helpers) == 0 {
            return Untyped::process();
        }
        // SAFETY: the helper returns the current task, BTF-typed.
        unsafe { Process::read::<Direct>(bpf_get_current_task_btf() as *const c_void) }
    }

    #[inline(always)]
    fn activity() -> Activity {
        if layout!(has_tracing_helpers) == 0 {
            return Untyped::activity();
        }
        // SAFETY: the helper returns the current task, BTF-typed.
        unsafe { activity::<Direct>(bpf_get_current_task_btf() as *const c_void) }
    }

    #[inline(always)]
    fn task() -> Task {
        if layout!(has_tracing_helpers) == 0 {
            return Untyped::task();
        }
        // SAFETY: the helper returns the current task, BTF-typed.
        unsafe { Task::read::<Direct>(bpf_get_current_task_btf() as *const c_void) }
    }
}

/// Programs on perf tracepoints.
pub(crate) struct Untyped;
impl Access for Untyped {
    type Memory = Probed;

    #[inline(always)]
    fn cookie(_sk: *const c_void) -> u64 {
        own_number()
    }

    #[inline(always)]
    fn address(sk: *const c_void) -> u64 {
        sk as u64
    }

    #[inline(always)]
    fn process() -> Process {
        // SAFETY: the helper returns the current task.
        unsafe { Process::read::<Probed>(bpf_get_current_task() as *const c_void) }
    }

    #[inline(always)]
    fn activity() -> Activity {
        // SAFETY: the helper returns the current task.
        unsafe { activity::<Probed>(bpf_get_current_task() as *const c_void) }
    }

    #[inline(always)]
    fn task() -> Task {
        // SAFETY: the helper returns the current task.
        unsafe { Task::read::<Probed>(bpf_get_current_task() as *const c_void) }
    }
}

/// Programs that filter packets: typed as well, but without a task and without the tracing helpers.
pub(crate) struct Filtered;
impl Access for Filtered {
    type Memory = Direct;

    #[inline(always)]
    fn cookie(_sk: *const c_void) -> u64 {
        own_number()
    }

    #[inline(always)]
    fn address(sk: *const c_void) -> u64 {
        Typed::address(sk)
    }

    #[inline(always)]
    fn process() -> Process {
        Untyped::process()
    }

    #[inline(always)]
    fn activity() -> Activity {
        Untyped::activity()
    }

    #[inline(always)]
    fn task() -> Task {
        Untyped::task()
    }
}

impl KernelSock<Filtered> {
    /// The full TCP socket that a packet belongs to.
    #[inline(always)]
    pub(crate) fn of_packet(sk: *const c_void) -> Option<Self> {
        if sk.is_null() {
            return None;
        }
        // The context's pointer is to a `bpf_sock`, whose members are not those of the kernel's structure.
        let tp = Direct::tcp_sock(sk);
        if tp.is_null() { None } else { Some(Self::of_tcp(tp)) }
    }

    /// A BTF-typed `tcp_sock`.
    #[inline(always)]
    pub(crate) fn of_tcp(tp: *const c_void) -> Self {
        Self { sk: tp, tp, access: PhantomData }
    }

    /// Both ends.
    #[inline(always)]
    pub(crate) fn ends(&self) -> Endpoints {
        let mut ends = Endpoints::default();
        read_endpoints::<Direct>(self.sk, &mut ends);
        // `skc_num` is 0 once the state is CLOSE.
        ends.local_port = self.local_port();
        ends
    }
}

/// The current thread, in the initial pid namespace.
#[expect(clippy::cast_possible_truncation, reason = "the lower half is the thread's id")]
#[inline(always)]
pub(crate) fn thread() -> u32 {
    bpf_get_current_pid_tgid() as u32
}

/// The stack pointer at which the current task entered the kernel. Only for hooks newer than the helper
/// (5.15).
#[inline(always)]
pub(crate) fn user_stack() -> u64 {
    // SAFETY: the current task, and its registers, which every task has.
    unsafe {
        let regs = bpf_task_pt_regs(bpf_get_current_task_btf()) as *const pt_regs;
        #[cfg(bpf_target_arch = "x86_64")]
        return (&raw const (*regs).rsp).read_volatile();
        #[cfg(bpf_target_arch = "aarch64")]
        return (&raw const (*regs).sp).read_volatile();
    }
}

/// Replaces the socket cookie on kernels that provide none.
#[inline(always)]
fn own_number() -> u64 {
    // SAFETY: no arguments.
    number_at(unsafe { bpf_ktime_get_ns() })
}

/// A unique number, provided that no CPU takes two in the same nanosecond.
#[inline(always)]
pub(crate) fn number_at(now_ns: u64) -> u64 {
    // SAFETY: no arguments.
    now_ns ^ (u64::from(unsafe { bpf_get_smp_processor_id() }) << 52)
}

/// `include/uapi/linux/stat.h`: the type of a file in `inode.i_mode`.
pub(crate) const S_IFMT: u16 = 0o170_000;
pub(crate) const S_IFREG: u16 = 0o100_000;
pub(crate) const S_IFSOCK: u16 = 0o140_000;

const IPPROTO_TCP: u16 = 6;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
/// Bytes 8 to 11 of `::ffff:a.b.c.d`.
const V4_MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);
const SOCK_DONE: u64 = 1 << 1;
const RCV_SHUTDOWN: u8 = 1;

/// A `struct sock` of a tracepoint.
pub(crate) struct KernelSock<A> {
    sk: *const c_void,
    tp: *const c_void,
    access: PhantomData<A>,
}

impl<A: Access> KernelSock<A> {
    /// Returns `None` for anything but a full TCP socket: other protocols, request sockets, time-wait
    /// minisockets.
    #[inline(always)]
    pub(crate) fn new(sk: *const c_void) -> Option<Self> {
        if sk.is_null() {
            return None;
        }
        // SAFETY: the tracepoint's own pointer.
        let protocol: u16 = unsafe { A::Memory::read(sk, layout!(sk_protocol)) };
        if protocol != IPPROTO_TCP {
            return None;
        }
        let tp = A::Memory::tcp_sock(sk);
        if tp.is_null() { None } else { Some(Self { sk, tp, access: PhantomData }) }
    }

    #[inline(always)]
    pub(crate) fn pointer(&self) -> *const c_void {
        self.sk
    }

    #[inline(always)]
    fn sk<T: Copy + Default>(&self, offset: u32) -> T {
        // SAFETY: `new` was given the tracepoint's own socket.
        unsafe { A::Memory::read(self.sk, offset) }
    }

    #[inline(always)]
    fn tp<T: Copy + Default>(&self, offset: u32) -> T {
        // SAFETY: `new` has checked that this is a tcp_sock.
        unsafe { A::Memory::read(self.tp, offset) }
    }

    /// A one-bit bitfield; clear where the kernel has no such field.
    #[inline(always)]
    fn bit(&self, offset: u32, mask: u32) -> bool {
        offset != ABSENT && u32::from(self.tp::<u8>(offset)) & mask != 0
    }

    /// `skc_state`.
    #[inline(always)]
    pub(crate) fn state(&self) -> u32 {
        u32::from(self.sk::<u8>(layout!(skc_state)))
    }

    /// The local port, host order; 0: none was chosen yet. Unlike `skc_num` it stays after CLOSE.
    #[inline(always)]
    pub(crate) fn local_port(&self) -> u16 {
        u16::from_be(self.tp(layout!(inet_sport)))
    }

    /// The address of the head of the list of segments in flight, which identifies this socket.
    #[inline(always)]
    pub(crate) fn list_head(&self) -> u64 {
        // SAFETY: inside the tcp_sock.
        unsafe { self.tp.byte_add(layout!(tsorted_sent_queue) as usize) as u64 }
    }

    /// What the head of that list points at: itself where the list is empty.
    #[inline(always)]
    pub(crate) fn list_first(&self) -> u64 {
        self.tp::<usize>(layout!(tsorted_sent_queue)) as u64
    }

    /// `retrans_stamp`: the first SYN's time while in SYN_SENT.
    #[inline(always)]
    pub(crate) fn retrans_stamp(&self) -> u32 {
        self.tp(layout!(retrans_stamp))
    }

    /// Reads the ends. From `tcp_sock`, which begins with the other two: the verifiers of 6.2 to 6.18 search
    /// the kernel's types three times by name (0.3 ms each, in every path) for a pointer read through a
    /// trusted one, as the tracepoint's own is.
    #[inline(always)]
    pub(crate) fn endpoints(&self, ends: &mut Endpoints) -> Option<Family> {
        read_endpoints::<A::Memory>(self.tp, ends)
    }

    /// Stores both ends of the connection. The local port is `inet_sport`: `skc_num` is 0 when CLOSE is
    /// reported.
    #[inline(always)]
    pub(crate) fn identify(&self, connection: &mut Connection) {
        let mut ends = Endpoints::default();
        let family = self.endpoints(&mut ends);
        connection.family = Family::code_of(family);
        connection.local = ends.local;
        connection.remote = ends.remote;
        connection.netns = ends.netns;
        connection.local_port = self.local_port();
        connection.remote_port = ends.remote_port;
    }
}

/// Reads both ends from a `sock_common`, the first member of `struct sock` and of `struct request_sock`. IPv4
/// addresses, also those of v4-mapped sockets, are stored in the first four bytes.
#[inline(always)]
pub(crate) fn read_endpoints<M: Memory>(common: *const c_void, ends: &mut Endpoints) -> Option<Family> {
    // SAFETY: `common` is a tracepoint's pointer, or was read through one.
    unsafe {
        ends.remote_port = u16::from_be(M::read(common, layout!(skc_dport)));
        ends.local_port = M::read(common, layout!(skc_num));
        let net: usize = M::read(common, layout!(skc_net));
        ends.netns = M::read(net as *const c_void, layout!(net_inum));
        let family: u16 = M::read(common, layout!(skc_family));
        if family == AF_INET6 {
            let high: u64 = M::read(common, layout!(skc_v6_daddr));
            let prefix: u32 = M::read(common, layout!(skc_v6_daddr) + 8);
            if high != 0 || prefix != V4_MAPPED {
                ends.remote = pair(high, M::read(common, layout!(skc_v6_daddr) + 8));
                ends.local = pair(
                    M::read(common, layout!(skc_v6_rcv_saddr)),
                    M::read(common, layout!(skc_v6_rcv_saddr) + 8),
                );
                return Some(Family::Ipv6);
            }
        } else if family != AF_INET {
            return None;
        }
        let (remote, local): (u32, u32) =
            (M::read(common, layout!(skc_daddr)), M::read(common, layout!(skc_rcv_saddr)));
        ends.remote = pair(u64::from_ne_bytes(front(remote)), 0);
        ends.local = pair(u64::from_ne_bytes(front(local)), 0);
        Some(Family::Ipv4)
    }
}

#[inline(always)]
const fn front(address: u32) -> [u8; 8] {
    let [a, b, c, d] = address.to_ne_bytes();
    [a, b, c, d, 0, 0, 0, 0]
}

#[inline(always)]
fn pair(high: u64, low: u64) -> [u8; 16] {
    zerocopy::transmute!([high, low])
}

impl<A: Access> Sock for KernelSock<A> {
    #[inline(always)]
    fn err(&self) -> u32 {
        self.sk(layout!(sk_err))
    }

    #[inline(always)]
    fn soft_err(&self) -> u32 {
        self.sk(layout!(sk_err_soft))
    }

    #[inline(always)]
    fn done(&self) -> bool {
        self.sk::<u64>(layout!(sk_flags)) & SOCK_DONE != 0
    }

    #[inline(always)]
    fn receive_shutdown(&self) -> bool {
        self.sk::<u8>(layout!(sk_shutdown)) & RCV_SHUTDOWN != 0
    }

    #[inline(always)]
    fn holds_final_ack(&self) -> bool {
        self.sk::<i32>(layout!(sk_write_pending)) != 0
            || self.tp::<u8>(layout!(rskq_defer_accept)) != 0
            || self.tp::<u8>(layout!(pingpong)) != 0
    }

    #[inline(always)]
    fn srtt_us(&self) -> u32 {
        self.tp(layout!(srtt_us))
    }

    #[inline(always)]
    fn total_retrans(&self) -> u32 {
        self.tp(layout!(total_retrans))
    }

    #[inline(always)]
    fn data_segs_in(&self) -> u32 {
        self.tp(layout!(data_segs_in))
    }

    #[inline(always)]
    fn bytes_acked(&self) -> u64 {
        self.tp(layout!(bytes_acked))
    }

    #[inline(always)]
    fn has_in_flight(&self) -> bool {
        layout!(packets_out) == ABSENT || self.tp::<u32>(layout!(packets_out)) != 0
    }

    #[inline(always)]
    fn lacks_ends(&self) -> bool {
        // When CLOSE is reported, `skc_num` is left only of a port that the program had bound.
        self.local_port() == 0
            || (self.sk::<u16>(layout!(skc_num)) != 0 && self.tp::<u32>(layout!(write_seq)) == 0)
    }

    #[inline(always)]
    fn has_unsent(&self) -> bool {
        self.tp::<u32>(layout!(write_seq)) != self.tp::<u32>(layout!(snd_nxt))
    }

    #[inline(always)]
    fn all_acked(&self) -> bool {
        self.tp::<u32>(layout!(write_seq)) == self.tp::<u32>(layout!(snd_una))
    }

    #[inline(always)]
    fn owes_ack(&self) -> bool {
        self.tp::<u32>(layout!(rcv_nxt)) != self.tp::<u32>(layout!(rcv_wup))
    }

    #[inline(always)]
    fn last_sent_ns(&self) -> u64 {
        self.tp(layout!(tcp_wstamp_ns))
    }

    #[inline(always)]
    fn segment_clock_ns(&self) -> u64 {
        self.tp(layout!(tcp_clock_cache))
    }

    #[inline(always)]
    fn newest_acked_sent_us(&self) -> u64 {
        self.tp(layout!(rack_mstamp))
    }

    #[inline(always)]
    fn syn_facts(&self) -> ConnectionFlags {
        let mut flags = ConnectionFlags::empty();
        flags.set(
            ConnectionFlags::SYN_FASTOPEN,
            self.bit(layout!(syn_fastopen.offset), layout!(syn_fastopen.mask)),
        );
        flags.set(ConnectionFlags::SYN_DATA, self.bit(layout!(syn_data.offset), layout!(syn_data.mask)));
        flags.set(
            ConnectionFlags::DEFERRED_SYN,
            self.bit(layout!(fastopen_connect.offset), layout!(fastopen_connect.mask)),
        );
        flags
    }

    #[inline(always)]
    fn syn_data_acked(&self) -> bool {
        self.bit(layout!(syn_data_acked.offset), layout!(syn_data_acked.mask))
    }

    #[inline(always)]
    fn child_made_ns(&self) -> u64 {
        // Set when the child was made (tcp_init_buffer_space). Moved on only when the program reads after the
        // receiver has estimated a round trip (tcp_rcv_space_adjust).
        if self.tp::<u32>(layout!(rcv_rtt_us)) == 0 {
            self.tp::<u64>(layout!(rcvq_time_us)) * 1000
        } else {
            0
        }
    }

    #[inline(always)]
    fn usec_timestamps(&self) -> bool {
        self.bit(layout!(tcp_usec_ts.offset), layout!(tcp_usec_ts.mask))
    }
}
