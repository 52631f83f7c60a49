//! What the kernel side sends about a handshake on the wire: fragments of the hellos while it is in progress,
//! and a `WireHandshake` at its end. Both carry a number, because the first bytes of a connection may come
//! before its socket.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::state::Wire;
use crate::{
    connection::{self, Connection},
    vocabulary::{Kind, Role},
};

/// A raw record: some bytes of a ClientHello or ServerHello, record headers included. The bytes follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct HelloFragment {
    /// [`Kind::Hello`].
    pub kind: u8,
    /// [`Role`] code of the sender.
    pub sender: u8,
    /// The number of bytes; anything after them in the record is padding.
    pub length: u16,
    /// TCP sequence number of the first.
    pub seq: u32,
    /// The same as in the [`WireHandshake`].
    pub number: u64,
}

/// The most ports to which the wire view can be restricted.
pub const MAX_PORTS: usize = 16;
/// Name of the global in the eBPF object that holds them.
pub const PORTS_SYMBOL: &str = "WIRE_PORTS";

/// The most bytes that one fragment carries; a longer hello makes several.
pub const MAX_HELLO_FRAGMENT: usize = 2048;

/// A raw record: a handshake that has ended on the wire, and its connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct WireHandshake {
    /// With [`Kind::Wire`].
    pub connection: Connection,
    /// Distinguishes it from all other handshakes.
    pub number: u64,
    /// 1: the whole ClientHello was in the SYN.
    pub hello_in_syn: u64,
    /// What the tracker found.
    pub wire: Wire,
}

/// Size of a fragment without its bytes.
pub const HEADER: usize = size_of::<HelloFragment>();
/// Size of a `WireHandshake`.
pub const SIZE: usize = size_of::<WireHandshake>();

const _: () = assert!(HEADER == 16, "no padding");
const _: () = assert!(SIZE == connection::SIZE + 16 + super::state::SIZE, "no padding");

impl HelloFragment {
    /// Reads a fragment and its bytes from the ring buffer. Returns `None` if the record is of another kind
    /// or shorter than its header says.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (fragment, rest) = Self::read_from_prefix(bytes).ok()?;
        let bytes = rest.get(..usize::from(fragment.length))?;
        let known = fragment.kind == Kind::Hello.code() && fragment.sender().is_some();
        known.then_some((fragment, bytes))
    }

    /// Who sent the bytes.
    #[must_use]
    pub const fn sender(&self) -> Option<Role> {
        Role::from_code(self.sender)
    }
}

impl WireHandshake {
    /// Reads a raw record from the ring buffer. Returns `None` if the length is wrong, the kind is another,
    /// or no handshake had begun.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Self::read_from_bytes(bytes).ok().filter(|handshake| {
            handshake.connection.stage == Kind::Wire.code() && handshake.wire.role().is_some()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_survive_and_wrong_ones_are_refused() {
        let mut wire_handshake = WireHandshake { number: 7, ..WireHandshake::default() };
        wire_handshake.connection.stage = Kind::Wire.code();
        assert_eq!(WireHandshake::from_bytes(wire_handshake.as_bytes()), None, "no handshake");
        wire_handshake.wire.role = Role::Server.code();
        assert_eq!(WireHandshake::from_bytes(wire_handshake.as_bytes()), Some(wire_handshake));
        assert_eq!(WireHandshake::from_bytes(&wire_handshake.as_bytes()[1..]), None);
    }

    #[test]
    fn hello_fragment_carries_the_length_it_declares() {
        let mut bytes = [0; HEADER + 4];
        (bytes[0], bytes[1]) = (Kind::Hello.code(), Role::Client.code());
        bytes[2..4].copy_from_slice(&3_u16.to_ne_bytes());
        bytes[HEADER..].copy_from_slice(b"abcd");
        let (fragment, content) = HelloFragment::from_bytes(&bytes).unwrap();
        assert_eq!((fragment.sender(), content), (Some(Role::Client), &b"abc"[..]));
        assert_eq!(HelloFragment::from_bytes(&bytes[..HEADER + 2]), None);
        bytes[1] = 0;
        assert_eq!(HelloFragment::from_bytes(&bytes), None, "without a sender");
    }
}
