//! Who listens: what the kernel side keeps of a listening socket, and what it tells user space of one.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Name of the map of [`Listener`]s, by [`Holder::key`].
pub const MAP: &str = "LISTENERS";
/// How many listening sockets are known at most; connections to further ones name no process.
pub const MAX: usize = 8192;
/// [`Queue::state`] of a socket that listens.
pub const LISTEN: u64 = super::states::LISTEN as u64;

/// A listening socket and the process that listens on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Listener {
    /// When this entry was made: `bpf_ktime_get_ns`.
    pub since_ns: u64,
    /// cgroup v2 id of the process; 0 = unknown.
    pub cgroup: u64,
    /// Name of the process (its group leader), NUL-padded.
    pub comm: [u8; 16],
    /// Address that it is bound to in network order, IPv4 in the first four bytes; all zeros: any.
    pub local: [u8; 16],
    /// Process id (tgid) in the initial pid namespace; 0: it is not certain which program listens.
    pub pid: u32,
    /// Inode of the network namespace.
    pub netns: u32,
    /// Host order.
    pub port: u16,
    /// [`crate::Family`] code of the socket: one of IPv6 may take IPv4 as well.
    pub family: u8,
    /// No padding.
    pub reserved: u8,
    /// `sk_drops` when this entry was made.
    pub drops: u32,
}

/// What the iterator over open files tells: a process that has a listening socket open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Holder {
    /// Identifies the listening socket.
    pub key: u64,
    /// When the process was born: nanoseconds of CLOCK_MONOTONIC.
    pub born_ns: u64,
    /// See [`Listener::cgroup`].
    pub cgroup: u64,
    /// See [`Listener::comm`].
    pub comm: [u8; 16],
    /// See [`Listener::pid`].
    pub pid: u32,
    /// Not 0: it was forked and runs the program of its parent still (`PF_FORKNOEXEC`).
    pub is_forked: u32,
    /// How full the socket's queue is.
    pub backlog: Backlog,
}

/// A listening socket's queue of connections that wait for `accept()`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Backlog {
    /// `sk_ack_backlog`: connections that are established and wait for `accept()`.
    pub length: u32,
    /// `sk_max_ack_backlog`: the backlog of `listen()`, limited by net.core.somaxconn. The kernel lets one
    /// more wait.
    pub limit: u32,
    /// `sk_drops`: packets that the socket has dropped, at 32 bits.
    pub drops: u32,
    /// Whether this kernel has all three numbers.
    pub is_known: u32,
}

impl Holder {
    /// Bytes of one record.
    pub const SIZE: u32 = 64;
    /// Name of the iterator program in the eBPF object.
    pub const PROGRAM: &str = "listener_holders";
    /// The kernel's kind of iterator.
    pub const ITERATOR: &str = "task_file";

    /// Reads one record. Returns `None` if the length is wrong.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Self::read_from_bytes(bytes).ok()
    }
}

/// What the iterator over the map tells: a listening socket, and how full its queue is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Queue {
    /// Identifies the listening socket.
    pub key: u64,
    /// What is known of it.
    pub listener: Listener,
    /// See [`Backlog`].
    pub backlog: Backlog,
    /// `skc_state`; anything but [`LISTEN`]: the socket has gone.
    pub state: u64,
}

impl Queue {
    /// Bytes of one record.
    pub const SIZE: u32 = 96;
    /// Name of the iterator program in the eBPF object.
    pub const PROGRAM: &str = "listener_queues";
    /// The kernel's kind of iterator.
    pub const ITERATOR: &str = "bpf_map_elem";

    /// Reads one record. Returns `None` if the length is wrong.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Self::read_from_bytes(bytes).ok()
    }

    /// Whether the kernel refuses further connections (`sk_acceptq_is_full`).
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.backlog.length > self.backlog.limit
    }

    /// Packets that the socket has dropped since its entry was made.
    #[must_use]
    pub const fn drops(&self) -> u32 {
        self.backlog.drops.wrapping_sub(self.listener.drops)
    }
}

const _: () = assert!(size_of::<Listener>() == 64, "no padding, and both sides know the size");
const _: () = assert!(size_of::<Holder>() == Holder::SIZE as usize, "no padding");
const _: () = assert!(size_of::<Queue>() == Queue::SIZE as usize, "no padding");

// SAFETY: plain integers, repr(C), no padding.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Listener {}
