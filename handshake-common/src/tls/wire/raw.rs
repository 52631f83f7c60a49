//! What the kernel side sends of a handshake on the wire: excerpts of the stream while it goes on, and a sighting at its
//! end. Both carry a number, because the first bytes of a connection may come before its socket.

use super::state::Wire;
use crate::{
    class::{Kind, Role},
    connection::{self, Connection},
};

/// A raw record: some bytes of a ClientHello or ServerHello, record headers included. The bytes follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Excerpt {
    /// [`Kind::Hello`].
    pub kind: u8,
    /// [`Role`] code of who sent them.
    pub sender: u8,
    /// How many bytes there are; what follows them in the record is nothing.
    pub length: u16,
    /// TCP sequence number of the first.
    pub seq: u32,
    /// The same as in the [`Sighting`].
    pub number: u64,
}

/// How many ports can be named whose handshakes alone are looked at.
pub const MOST_PORTS: usize = 16;
/// Name of the global in the eBPF object that holds them.
pub const PORTS_SYMBOL: &str = "WIRE_PORTS";

/// The most bytes that one excerpt carries; a longer hello makes several.
pub const MOST_EXCERPT: usize = 2048;

/// A raw record: a handshake that the wire shows no more of, and the connection that it was made on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Sighting {
    /// With [`Kind::Wire`].
    pub connection: Connection,
    /// Tells it from all other handshakes.
    pub number: u64,
    /// 1: the whole ClientHello was in the SYN.
    pub hello_in_syn: u64,
    /// What the walker found.
    pub wire: Wire,
}

/// Size of an excerpt without its bytes.
pub const HEADER: usize = size_of::<Excerpt>();
/// Size of a sighting.
pub const SIZE: usize = size_of::<Sighting>();

const _: () = assert!(HEADER == 16, "no padding");
const _: () = assert!(SIZE == connection::SIZE + 16 + super::state::SIZE, "no padding");

impl Excerpt {
    /// Reads an excerpt and its bytes out of the ring buffer.
    ///
    /// # Errors
    /// `None` when it is none, or is shorter than it says.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (header, rest) = bytes.split_at_checked(HEADER)?;
        // SAFETY: the length is checked, every bit pattern is a valid Excerpt (integers only), and read_unaligned asks
        // nothing of the address.
        let excerpt = unsafe { header.as_ptr().cast::<Self>().read_unaligned() };
        let bytes = rest.get(..usize::from(excerpt.length))?;
        let known = excerpt.kind == Kind::Hello.code() && excerpt.sender().is_some();
        known.then_some((excerpt, bytes))
    }

    /// Who sent the bytes.
    #[must_use]
    pub const fn sender(&self) -> Option<Role> {
        Role::from_code(self.sender)
    }
}

impl Sighting {
    /// Reads a sighting out of bytes from the ring buffer.
    ///
    /// # Errors
    /// `None` when the length is wrong or it is none.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != SIZE {
            return None;
        }
        // SAFETY: the length is checked, every bit pattern is a valid Sighting (integers only), and read_unaligned asks
        // nothing of the address.
        let sighting = unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() };
        (sighting.connection.stage == Kind::Wire.code() && sighting.wire.role().is_some()).then_some(sighting)
    }

    /// The bytes that [`Sighting::from_bytes`] reads.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        // SAFETY: repr(C) without padding (asserted above), so every byte is initialised.
        unsafe { core::slice::from_raw_parts(core::ptr::from_ref(self).cast(), SIZE) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_survive_and_wrong_ones_are_refused() {
        let mut sighting = Sighting { number: 7, ..Sighting::default() };
        sighting.connection.stage = Kind::Wire.code();
        assert_eq!(Sighting::from_bytes(sighting.as_bytes()), None, "no handshake");
        sighting.wire.role = Role::Server.code();
        assert_eq!(Sighting::from_bytes(sighting.as_bytes()), Some(sighting));
        assert_eq!(Sighting::from_bytes(&sighting.as_bytes()[1..]), None);
    }

    #[test]
    fn an_excerpt_has_the_bytes_that_it_says() {
        let mut bytes = [0; HEADER + 4];
        (bytes[0], bytes[1]) = (Kind::Hello.code(), Role::Client.code());
        bytes[2..4].copy_from_slice(&3_u16.to_ne_bytes());
        bytes[HEADER..].copy_from_slice(b"abcd");
        let (excerpt, content) = Excerpt::from_bytes(&bytes).unwrap();
        assert_eq!((excerpt.sender(), content), (Some(Role::Client), &b"abc"[..]));
        assert_eq!(Excerpt::from_bytes(&bytes[..HEADER + 2]), None);
        bytes[1] = 0;
        assert_eq!(Excerpt::from_bytes(&bytes), None, "from nobody");
    }
}
