//! A packet as the tracker sees it, and what the tracker says about it.

use crate::vocabulary::Role;

/// The payload of a packet: what is behind its TCP header.
pub trait Payload {
    /// Its length, bytes.
    fn len(&self) -> u32;

    /// Whether there is none.
    #[inline(always)]
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies `N` bytes from `offset` on; false if they are not all there.
    fn load<const N: usize>(&self, offset: u32, into: &mut [u8; N]) -> bool;
}

impl Payload for &[u8] {
    fn len(&self) -> u32 {
        u32::try_from(<[u8]>::len(self)).unwrap_or(u32::MAX)
    }

    fn load<const N: usize>(&self, offset: u32, into: &mut [u8; N]) -> bool {
        let found = usize::try_from(offset).ok().and_then(|offset| self.get(offset..)?.first_chunk());
        found.is_some_and(|bytes| {
            *into = *bytes;
            true
        })
    }
}

/// Where a packet goes, seen from this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// It leaves (egress).
    Sent,
    /// It comes (ingress).
    Received,
}

/// What the tracker must know of a packet besides its payload.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// See [`Direction`].
    pub direction: Direction,
    /// Sequence number of the first payload byte: one more than the header's if SYN is set (Fast Open, RFC
    /// 7413).
    pub seq: u32,
    /// Acknowledgement number; 0 without the ACK flag.
    pub ack: u32,
    /// CLOCK_MONOTONIC, ns.
    pub now_ns: u64,
}

/// What becomes of the connection's [`Wire`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// No ClientHello so far: nothing worth keeping is in the `Wire`.
    Watch,
    /// The handshake is under way: the following packets with payload are wanted. Others would tell nothing.
    Follow,
    /// The same, and those without payload are wanted, too.
    FollowAll,
    /// There is nothing more to know: publish the `Wire` and let go of the connection.
    Publish,
}

/// What is due after a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketAction {
    /// See [`Next`].
    pub next: Next,
    /// Who sent the bytes to be copied: the TLS client or server.
    pub sender: Role,
    /// The bytes of this packet's payload that belong to a hello: where they begin …
    pub copy_offset: u32,
    /// … and how many they are; 0: none.
    pub copy_length: u32,
}

impl PacketAction {
    /// Nothing to copy, and nothing to follow.
    pub const WATCH: Self = Self { next: Next::Watch, sender: Role::Client, copy_offset: 0, copy_length: 0 };
}
