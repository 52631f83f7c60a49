//! TLS records (RFC 8446 §5.1): what their headers say, and the log that the tracker keeps of them.

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::vocabulary::Role;

/// Content types (RFC 8446 §B.1).
pub mod content {
    /// `change_cipher_spec`
    pub const CHANGE_CIPHER_SPEC: u8 = 20;
    /// alert
    pub const ALERT: u8 = 21;
    /// handshake
    pub const HANDSHAKE: u8 = 22;
    /// `application_data`; since TLS 1.3 everything that is encrypted
    pub const APPLICATION_DATA: u8 = 23;
}

/// Handshake types (RFC 8446 §4).
pub mod handshake {
    /// `client_hello`
    pub const CLIENT_HELLO: u8 = 1;
    /// `server_hello`; a HelloRetryRequest is one, too
    pub const SERVER_HELLO: u8 = 2;
    /// `server_key_exchange` (RFC 5246 §7.4.3)
    pub const SERVER_KEY_EXCHANGE: u8 = 12;
}

/// Bytes of a record header.
pub const HEADER: u32 = 5;
/// Bytes of the header of a handshake message.
pub const MESSAGE_HEADER: u32 = 4;
/// The most that the tracker looks at: the record header and the header of the handshake message behind it.
pub const HEAD: usize = 9;
/// The most that a record may carry: 2^14 and what TLS 1.2 allows for protection (RFC 5246 §6.2.3).
const MAX_LENGTH: u16 = (1 << 14) + 2048;

/// The first bytes of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// See [`content`].
    pub content: u8,
    /// Bytes behind the header.
    pub length: u16,
    /// First byte behind the header: type of a plaintext handshake message, level of a plaintext alert.
    pub first: u8,
    /// Second byte behind the header: description of a plaintext alert.
    pub second: u8,
    /// Length of the handshake message that begins here.
    pub message: u32,
}

impl Head {
    /// How many bytes are needed of a record that begins with these five.
    #[must_use]
    #[inline(always)]
    pub const fn needed(bytes: &[u8; HEAD]) -> usize {
        let length = u16::from_be_bytes([bytes[3], bytes[4]]) as usize;
        let most = match bytes[0] {
            content::HANDSHAKE => 4,
            content::ALERT => 2,
            _ => 0,
        };
        5 + if length < most { length } else { most }
    }

    /// Reads the bytes that [`Head::needed`] asks for. Returns `None` if this is no record of SSL 3.0 to TLS
    /// 1.3.
    #[must_use]
    #[inline(always)]
    pub const fn parse(bytes: &[u8; HEAD]) -> Option<Self> {
        let [kind, major, minor, high, low, first, a, b, c] = *bytes;
        let length = u16::from_be_bytes([high, low]);
        let empty_is_wrong = kind != content::APPLICATION_DATA && length == 0;
        if major != 3 || minor > 4 || length > MAX_LENGTH || empty_is_wrong {
            return None;
        }
        Some(Self { content: kind, length, first, second: a, message: u32::from_be_bytes([0, a, b, c]) })
    }
}

/// The bits of [`Record::kind`] that hold the content type.
const CONTENT_MASK: u8 = 7;

/// What a log entry is besides its content type, one bit each above the three bits of the type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct RecordFlags(u8);

bitflags! {
    impl RecordFlags: u8 {
        /// The server sent it.
        const FROM_SERVER = 1 << 3;
        /// Application data that the client sent before it had the server's decisive message: early data
        /// before the ServerHello (TLS 1.3), a false start before the server's Finished (TLS 1.2).
        const EARLY = 1 << 4;
        /// [`RecordFlags::EARLY`] is not certain: part of the server's side was not seen.
        const UNSURE = 1 << 5;
        /// A handshake message or alert behind ChangeCipherSpec (TLS 1.2 and before).
        const ENCRYPTED = 1 << 6;
        /// A fatal alert.
        const FATAL = 1 << 7;
    }
}

/// One noteworthy record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Record {
    /// When it was seen, in units of 1024 ns since [`super::Wire::hello_ns`].
    pub at: u32,
    /// Bytes behind the header, as the header says.
    pub length: u16,
    /// Content type − 20 in the lower three bits, a [`RecordFlags`] above.
    pub kind: u8,
    /// Plaintext handshake: the first byte (the message's type, if a message begins here). Plaintext alert:
    /// its description. Otherwise 0.
    pub detail: u8,
}

impl Record {
    /// The kind of a record with this content type.
    #[must_use]
    #[inline(always)]
    pub const fn kind_of(content: u8, flags: RecordFlags) -> u8 {
        (content.wrapping_sub(content::CHANGE_CIPHER_SPEC) & CONTENT_MASK) | flags.bits()
    }

    /// See [`content`].
    #[must_use]
    #[inline(always)]
    pub const fn content(&self) -> u8 {
        (self.kind & CONTENT_MASK) + content::CHANGE_CIPHER_SPEC
    }

    /// Whether all of these flags are set.
    #[must_use]
    #[inline(always)]
    pub const fn is(&self, flags: RecordFlags) -> bool {
        self.kind & flags.bits() == flags.bits()
    }

    /// Who sent it.
    #[must_use]
    #[inline(always)]
    pub const fn sender(&self) -> Role {
        if self.is(RecordFlags::FROM_SERVER) { Role::Server } else { Role::Client }
    }
}
