//! Bursts: when the packets of a handshake passed by. Which flights they make, and what held one up, user
//! space says.

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::vocabulary::Role;

/// How many bursts of a handshake are kept.
pub const MAX_BURSTS: usize = 32;
/// The unit of [`Burst::size`], as a power of two of bytes.
pub(super) const SIZE_BITS: u32 = 6;

/// What the packets of a burst have in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(transparent)]
pub struct BurstFlags(u8);

bitflags! {
    impl BurstFlags: u8 {
        /// The server sent them.
        const FROM_SERVER = 1;
        /// They have no payload, and acknowledge everything that the other end has sent.
        const BARE = 1 << 1;
        /// They begin before what their sender has already sent: a retransmission, or overtaken ones.
        const AGAIN = 1 << 2;
        /// They begin behind bytes that have not passed by.
        const AHEAD = 1 << 3;
        /// They acknowledge everything that the other end has sent.
        const ACKS_ALL = 1 << 4;
        /// When they came, TCP on this end had bytes of its program that it had not sent.
        const UNSENT = 1 << 5;
        /// They carry bytes behind all that had passed by before.
        const NEW = 1 << 6;
    }
}

/// Packets of one end, close together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Burst {
    /// The first packet, in units of 1024 ns since [`Wire::hello_ns`].
    pub at: u32,
    /// From there to the last one, in the same units.
    pub took: u16,
    /// See [`BurstFlags`].
    pub flags: BurstFlags,
    /// An upper bound of their payload, in units of 64 bytes; 255: more.
    pub size: u8,
}

const _: () = assert!(size_of::<Burst>() == 8, "no padding");

impl Burst {
    /// Who sent it.
    #[must_use]
    pub const fn sender(&self) -> Role {
        if self.flags.contains(BurstFlags::FROM_SERVER) { Role::Server } else { Role::Client }
    }

    /// The first packet, in ns since [`Wire::hello_ns`].
    #[must_use]
    pub const fn first_ns(&self) -> u64 {
        (self.at as u64) << 10
    }

    /// The last packet, in ns since [`Wire::hello_ns`].
    #[must_use]
    pub const fn last_ns(&self) -> u64 {
        (self.at as u64 + self.took as u64) << 10
    }

    /// No more than so many bytes of payload; `None` if there may be more than 16 KiB.
    #[must_use]
    pub const fn most_bytes(&self) -> Option<u32> {
        if self.size == u8::MAX { None } else { Some((self.size as u32) << SIZE_BITS) }
    }
}
