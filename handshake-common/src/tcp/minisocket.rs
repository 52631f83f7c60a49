//! What the kernel side tells of one time-wait minisocket, when user space asks for those of a network
//! namespace: what becomes of a connection after its socket.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::vocabulary::{Family, MinisocketStep};

/// Name of the iterator program in the eBPF object.
pub const PROGRAM: &str = "minisockets";

/// The kernel's kind of iterator, `bpf_iter_tcp` (5.9).
pub const ITERATOR: &str = "tcp";

/// A `struct tcp_timewait_sock`. The record that ends an iteration has zeros but for the clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Minisocket {
    /// When this was read: CLOCK_MONOTONIC, nanoseconds.
    pub now_ns: u64,
    /// `jiffies` at that moment.
    pub jiffies: u64,
    /// `tw_timer.expires`, jiffies.
    pub expires: u64,
    /// `skc_cookie`: the cookie of the socket that it replaced; 0 if nobody had asked for it by then.
    pub cookie: u64,
    /// Addresses in network order; IPv4 in the first four bytes.
    pub local: [u8; 16],
    /// See `local`.
    pub remote: [u8; 16],
    /// `tw_timer.flags`: in which slot of the timer wheel it waits.
    pub timer_flags: u32,
    /// `tw_entry_stamp` (6.14): the lower 32 bits of CLOCK_MONOTONIC in milliseconds when it was made, or
    /// when a FIN with a time stamp came to it; 0 where the kernel has no such field.
    pub entry_stamp_ms: u32,
    /// Host order.
    pub local_port: u16,
    /// Host order.
    pub remote_port: u16,
    /// [`Family`] code.
    pub family: u8,
    /// `tw_substate`: FIN_WAIT2 or TIME_WAIT ([`super::states`]); 0 ends an iteration.
    pub substate: u8,
    /// No meaning.
    pub padding: [u8; 2],
}

/// Bytes of one record.
pub const SIZE: u32 = 80;

const _: () = assert!(size_of::<Minisocket>() == SIZE as usize, "no padding, and both sides know the size");

/// Something that happens to a minisocket, as a hook on the kernel's functions saw it: a record of the ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct MinisocketNews {
    /// [`crate::Kind`] code.
    pub kind: u8,
    /// [`MinisocketStep`] code.
    pub step: u8,
    /// The flags of the segment that ended it, the 14th byte of its TCP header, and [`A_SEGMENT`]; 0: none
    /// did.
    pub segment: u16,
    /// Inode of the network namespace.
    pub netns: u32,
    /// As it was when that happened.
    pub minisocket: Minisocket,
}

/// See [`MinisocketNews::segment`].
pub const A_SEGMENT: u16 = 1 << 8;
/// A SYN, among its flags.
pub const SYN: u16 = 1 << 1;
/// A RST, among its flags.
pub const RST: u16 = 1 << 2;

const _: () = assert!(size_of::<MinisocketNews>() == 88, "no padding, and both sides know the size");

impl MinisocketNews {
    /// Reads a raw record from the ring buffer. Returns `None` if the length is wrong or the step is unknown.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Self::read_from_bytes(bytes).ok().filter(|news| news.step().is_some())
    }

    /// What happened.
    #[must_use]
    pub const fn step(&self) -> Option<MinisocketStep> {
        MinisocketStep::from_code(self.step)
    }
}

impl Minisocket {
    /// Reads one record. Returns `None` if the length is wrong.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Self::read_from_bytes(bytes).ok()
    }

    /// The address family on the wire.
    #[must_use]
    pub const fn family(&self) -> Option<Family> {
        Family::from_code(self.family)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_another_length_are_no_record() {
        assert_eq!(Minisocket::from_bytes(&[0; SIZE as usize]), Some(Minisocket::default()));
        assert_eq!(Minisocket::from_bytes(&[0; SIZE as usize + 1]), None);
        let raw = Minisocket { cookie: 7, substate: 6, ..Minisocket::default() };
        assert_eq!(Minisocket::from_bytes(raw.as_bytes()), Some(raw));
    }
}
