//! What the kernel side must know of one library file to read a session object: found by user space in
//! the probed file itself, and passed on in the map `TARGETS`. The cookie of a uprobe is its index there.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Name of the map in the eBPF object.
pub const MAP: &str = "TARGETS";

/// How many library files can be probed at once.
pub const MAX_TARGETS: u32 = 1024;

/// The lower bits of a uprobe's cookie are the index of the [`Target`]. This bit above them is set if the
/// probed function is only for servers, [`COOKIE_CLIENT`] if it is only for clients; if neither is, the
/// session object has the role.
pub const COOKIE_SERVER: u64 = 1 << 32;
/// See [`COOKIE_SERVER`].
pub const COOKIE_CLIENT: u64 = 1 << 33;
/// At an exit of a function: [`Base::is_frame_pointer`].
const COOKIE_FRAME_POINTER: u64 = 1 << 34;
/// From this bit on: the register with the result, by its number in the machine's encoding.
const COOKIE_RESULT: u32 = 36;
/// From this bit on: [`Base::depth`].
const COOKIE_DEPTH: u32 = 44;

/// Where the stack pointer of a function's entry is at one of its instructions: a number of bytes above a
/// register. It distinguishes one call of a function from all others in progress in the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// The frame pointer, not the stack pointer.
    pub is_frame_pointer: bool,
    /// Bytes.
    pub depth: u32,
}

impl Base {
    /// At the entry itself, and where only the return address is left on the stack.
    pub const STACK_POINTER: Self = Self { is_frame_pointer: false, depth: 0 };

    /// Whether it fits into a cookie.
    #[must_use]
    pub const fn is_plausible(&self) -> bool {
        self.depth < 1 << (u64::BITS - COOKIE_DEPTH)
    }

    /// As part of the cookie of a probe at an exit, where that register has the result.
    #[must_use]
    pub const fn cookie(self, result: u8) -> u64 {
        let frame_pointer = if self.is_frame_pointer { COOKIE_FRAME_POINTER } else { 0 };
        frame_pointer | (result as u64 & 0xff) << COOKIE_RESULT | (self.depth as u64) << COOKIE_DEPTH
    }

    /// The inverse of [`Base::cookie`]: the base, and the register.
    #[expect(clippy::cast_possible_truncation, reason = "the part of the cookie that is meant")]
    #[must_use]
    #[inline(always)]
    pub const fn of_cookie(cookie: u64) -> (Self, u8) {
        let depth = (cookie >> COOKIE_DEPTH) as u32;
        (
            Self { is_frame_pointer: cookie & COOKIE_FRAME_POINTER != 0, depth },
            (cookie >> COOKIE_RESULT) as u8,
        )
    }
}

/// The path from a session object to one of its fields, through at most two pointers:
/// `*(*(object + steps[0]) + steps[1]) + steps[2]`; only the first `hops + 1` steps are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Path {
    /// Byte offsets; between two of them a pointer is followed.
    pub steps: [u16; 3],
    /// How many pointers are followed: 0 to 2. 3 and more: the path is not known.
    pub hops: u8,
    /// Bytes of the field: 1, 2, 4 or 8; 32 for a ClientHello.random.
    pub width: u8,
}

impl Path {
    /// The field cannot be found in this file.
    pub const UNKNOWN: Self = Self { steps: [0; 3], hops: u8::MAX, width: 0 };

    /// A field of the object itself.
    #[must_use]
    pub const fn direct(offset: u16, width: u8) -> Self {
        Self { steps: [offset, 0, 0], hops: 0, width }
    }

    /// Whether the field can be found.
    #[must_use]
    #[inline(always)]
    pub const fn is_known(&self) -> bool {
        self.hops <= 2
    }
}

/// Words of four bytes of a [`Statem`] that are read at once.
pub const STATEM_WORDS: usize = 16;

/// OpenSSL's `struct ossl_statem_st` inside the session object (ssl/statem/statem.h): its states are so close
/// together that one read gets them all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Statem {
    /// Byte offset of the words.
    pub from: u16,
    /// Which word is `state`; 1 is the error state.
    pub flow_state: u8,
    /// Which word is `hand_state`; 0 before, 1 complete.
    pub hand_state: u8,
    /// Which word is `in_init`.
    pub in_init: u8,
    /// 1: all of them are known; otherwise none is.
    pub known: u8,
    /// Always 0.
    pub reserved: [u8; 2],
}

impl Statem {
    /// The states cannot be found in this file.
    pub const UNKNOWN: Self =
        Self { from: 0, flow_state: 0, hand_state: 0, in_init: 0, known: 0, reserved: [0; 2] };

    /// The states at these three fields; `None` unless they are different words of one block.
    #[must_use]
    pub fn at(flow_state: Path, hand_state: Path, in_init: Path) -> Option<Self> {
        let states = [flow_state, hand_state, in_init];
        let from = states.iter().map(|state| state.steps[0]).min()?;
        let mut words = [0; 3];
        for (word, state) in words.iter_mut().zip(states) {
            let bytes = usize::from(state.steps[0] - from);
            if state.hops != 0 || state.width != 4 || !bytes.is_multiple_of(4) || bytes / 4 >= STATEM_WORDS {
                return None;
            }
            *word = u8::try_from(bytes / 4).ok()?;
        }
        let [flow_state, hand_state, in_init] = words;
        let differ = flow_state != hand_state && flow_state != in_init && hand_state != in_init;
        differ.then_some(Self { from, flow_state, hand_state, in_init, known: 1, reserved: [0; 2] })
    }
}

/// One library file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Target {
    /// Code of the [`crate::Library`].
    pub library: u8,
    /// Always 0; keeps the layout free of padding.
    pub reserved: [u8; 7],
    /// OpenSSL: `ssl->version`, as on the wire (0x0303). GnuTLS: `gnutls_protocol_t`. Go: `Conn.vers`.
    pub version: Path,
    /// Not zero: this end is the server. Go: `Conn.isClient`, not zero: the client.
    pub server: Path,
    /// OpenSSL: the states of the handshake.
    pub statem: Statem,
    /// Not zero: the session was resumed.
    pub resumed: Path,
    /// OpenSSL: `ext.early_data`; 0 not sent, 1 rejected, 2 accepted.
    pub early_data: Path,
    /// Not zero: there was a HelloRetryRequest (Go: `Conn.didHRR`).
    pub hello_retry: Path,
    /// The handshake is complete (Go: `Conn.isHandshakeComplete`).
    pub complete: Path,
    /// Cipher suite as on the wire, in the lower 16 bits.
    pub cipher: Path,
    /// ClientHello.random, 32 bytes at the end of the path.
    pub random: Path,
    /// The first byte of the application protocol that was chosen; its width says nothing.
    pub alpn: Path,
    /// How many bytes the application protocol has.
    pub alpn_length: Path,
    /// File descriptor of the socket that is read from; only where [`Target::fd_guard`] holds.
    pub fd: Path,
    /// A word that shows that the object behind it is an ordinary socket …
    pub fd_guard: Path,
    /// … by having this value (OpenSSL: `BIO_TYPE_SOCKET` 0x0505 at the BIO's method; 0: no guard).
    pub fd_guard_value: u64,
}

const _: () = assert!(size_of::<Target>() == 8 + 13 * 8 + 8, "no padding, and both sides know the size");

impl Target {
    /// A library whose name alone is known: handshakes are timed, their class is unknown.
    #[must_use]
    pub const fn opaque(library: u8) -> Self {
        Self {
            library,
            reserved: [0; 7],
            version: Path::UNKNOWN,
            server: Path::UNKNOWN,
            statem: Statem::UNKNOWN,
            resumed: Path::UNKNOWN,
            early_data: Path::UNKNOWN,
            hello_retry: Path::UNKNOWN,
            complete: Path::UNKNOWN,
            cipher: Path::UNKNOWN,
            random: Path::UNKNOWN,
            alpn: Path::UNKNOWN,
            alpn_length: Path::UNKNOWN,
            fd: Path::UNKNOWN,
            fd_guard: Path::UNKNOWN,
            fd_guard_value: 0,
        }
    }
}

// SAFETY: integers only, repr(C), and no padding (asserted above).
#[cfg(feature = "user")]
unsafe impl aya::Pod for Target {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookie_holds_an_exit() {
        for (base, result) in [
            (Base::STACK_POINTER, 0),
            (Base { is_frame_pointer: true, depth: 8 }, 12),
            (Base { is_frame_pointer: false, depth: (1 << 20) - 1 }, 31),
        ] {
            assert!(base.is_plausible());
            let cookie = base.cookie(result) | COOKIE_SERVER | u64::from(u32::MAX);
            assert_eq!(Base::of_cookie(cookie), (base, result));
            assert_eq!(cookie & (COOKIE_CLIENT - 1), COOKIE_SERVER | u64::from(u32::MAX), "the rest of it");
        }
        assert!(!Base { is_frame_pointer: false, depth: 1 << 20 }.is_plausible());
    }

    #[test]
    fn states_of_one_block_are_its_words() {
        let at = |flow, hand, init| {
            Statem::at(Path::direct(flow, 4), Path::direct(hand, 4), Path::direct(init, 4))
        };
        let statem = at(0x48, 0x5c, 0x64).unwrap();
        assert_eq!((statem.from, statem.flow_state, statem.hand_state, statem.in_init), (0x48, 0, 5, 7));
        assert_eq!(at(0x64, 0x5c, 0x48).unwrap().from, 0x48, "in any order");
        assert_eq!(at(0x48, 0x5c, 0x5c), None, "two at one place");
        assert_eq!(at(0x48, 0x5c, 0x88), None, "too far");
        assert_eq!(at(0x48, 0x5d, 0x64), None, "between two words");
        assert_eq!(Statem::at(Path::UNKNOWN, Path::direct(0, 4), Path::direct(4, 4)), None);
        let behind = Path { steps: [0, 8, 0], hops: 1, width: 4 };
        assert_eq!(Statem::at(behind, Path::direct(4, 4), Path::direct(8, 4)), None, "behind a pointer");
    }
}
