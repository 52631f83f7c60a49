//! The records that the kernel side writes to the ring.

use handshake_common::{
    Connection, Kind,
    tcp::minisocket::MinisocketNews,
    tls::{
        library::session::LibraryHandshake,
        wire::{HelloFragment, WireHandshake},
    },
};

/// One record from the ring.
#[expect(clippy::large_enum_variant, reason = "one at a time, on the stack")]
#[derive(Clone, Copy, Debug)]
pub enum RawRecord<'a> {
    /// A connection that was established, or failed to be, or closed.
    Connection(Connection),
    /// A TLS handshake as the library view saw it.
    LibraryHandshake(LibraryHandshake),
    /// A TLS handshake as the wire view saw it.
    WireHandshake(WireHandshake),
    /// Bytes of its hellos, before it is over.
    HelloFragment(HelloFragment, &'a [u8]),
    /// Something that happens to a time-wait minisocket.
    Minisocket(MinisocketNews),
}

impl<'a> RawRecord<'a> {
    /// Reads a record, whose first byte is its kind. Returns `None` if its kind or size is unknown.
    #[must_use]
    pub fn from_bytes(bytes: &'a [u8]) -> Option<Self> {
        match Kind::from_code(*bytes.first()?)? {
            Kind::Open | Kind::Close => Connection::from_bytes(bytes).map(Self::Connection),
            Kind::Library => LibraryHandshake::from_bytes(bytes).map(Self::LibraryHandshake),
            Kind::Wire => WireHandshake::from_bytes(bytes).map(Self::WireHandshake),
            Kind::Minisocket => MinisocketNews::from_bytes(bytes).map(Self::Minisocket),
            Kind::Hello => {
                HelloFragment::from_bytes(bytes).map(|(fragment, bytes)| Self::HelloFragment(fragment, bytes))
            }
        }
    }
}
