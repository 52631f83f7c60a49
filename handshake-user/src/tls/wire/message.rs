//! Reassembles the hellos, and the beginning of the server's certificate, from the pieces that the kernel
//! side copied: parts of the stream in any order, some of them duplicated.

use handshake_common::tls::wire::{
    record::{MESSAGE_HEADER, content},
    state::{Stream, Wire},
};

use super::{certificate::Certificate, client_hello::ClientHello, reader::Reader, server_hello::ServerHello};

/// The maximum length of a hello with its record headers that is kept, in bytes.
pub const MAX_BYTES: usize = 4096;

/// Bytes of a record header.
const RECORD_HEADER: usize = 5;

/// A piece of one direction's stream.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'a> {
    /// TCP sequence number of the first byte.
    pub seq: u32,
    /// The bytes.
    pub bytes: &'a [u8],
}

/// The buffers in which the hellos of one connection are reassembled.
#[derive(Debug)]
pub struct Buffers([[u8; MAX_BYTES]; 4]);

impl Default for Buffers {
    fn default() -> Self {
        Self([[0; MAX_BYTES]; 4])
    }
}

/// The hellos of a handshake; there is a second pair after a HelloRetryRequest. `None` if there was none, it
/// was not seen completely, or it is malformed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hellos<'a> {
    /// From the client.
    pub client: [Option<ClientHello<'a>>; 2],
    /// From the server.
    pub server: [Option<ServerHello<'a>>; 2],
    /// The server's certificate, if it follows the first ServerHello in plaintext.
    pub certificate: Option<Certificate>,
}

impl<'a> Hellos<'a> {
    /// Reads the hellos that the walker found from the pieces copied in each direction.
    #[must_use]
    pub fn read(wire: &Wire, client: &[Piece<'_>], server: &[Piece<'_>], buffers: &'a mut Buffers) -> Self {
        let [client_1, client_2, server_1, server_2] = &mut buffers.0;
        let flight = messages(&wire.server, 0, server, server_1).unwrap_or_default();
        let (server_hello, behind) = flight.split_at(whole(flight).unwrap_or(flight.len()));
        Self {
            client: [
                message(&wire.client, 0, client, client_1).and_then(ClientHello::parse),
                message(&wire.client, 1, client, client_2).and_then(ClientHello::parse),
            ],
            server: [
                ServerHello::parse(server_hello),
                message(&wire.server, 1, server, server_2).and_then(ServerHello::parse),
            ],
            certificate: Certificate::parse(behind),
        }
    }
}

fn message<'b>(stream: &Stream, which: u8, pieces: &[Piece<'_>], buffer: &'b mut [u8]) -> Option<&'b [u8]> {
    let messages = messages(stream, which, pieces, buffer)?;
    Some(&messages[..whole(messages)?])
}

/// A hello and what follows it.
fn messages<'b>(stream: &Stream, which: u8, pieces: &[Piece<'_>], buffer: &'b mut [u8]) -> Option<&'b [u8]> {
    if which >= stream.hello_count {
        return None;
    }
    let length = join(pieces, stream.hellos[usize::from(which & 1)], buffer);
    Some(unwrap_all(&mut buffer[..length]))
}

/// Reassembles the pieces from `begin` up to the first gap. Returns the number of bytes.
#[must_use]
pub fn join(pieces: &[Piece<'_>], begin: u32, buffer: &mut [u8]) -> usize {
    let mut length = 0;
    while let Some(more) = pieces.iter().find_map(|piece| {
        let skipped = begin.wrapping_sub(piece.seq).wrapping_add(u32::try_from(length).ok()?);
        piece.bytes.get(usize::try_from(skipped).ok()?..).filter(|more| !more.is_empty())
    }) {
        let room = buffer.get_mut(length..).unwrap_or_default();
        if room.is_empty() {
            break;
        }
        let count = more.len().min(room.len());
        room[..count].copy_from_slice(&more[..count]);
        length += count;
    }
    length
}

/// Removes the record headers from bytes that begin with a handshake record. Returns the first message, if it
/// is complete.
#[must_use]
pub fn unwrap(bytes: &mut [u8]) -> Option<&[u8]> {
    let messages = unwrap_all(bytes);
    Some(&messages[..whole(messages)?])
}

/// Removes the record headers. Returns the messages up to the first record of another kind, or to where the
/// bytes end.
fn unwrap_all(bytes: &mut [u8]) -> &[u8] {
    let (mut from, mut to) = (0, 0);
    while let Some(length) = handshake_record(&bytes[from..]) {
        from += RECORD_HEADER;
        bytes.copy_within(from..from + length, to);
        from += length;
        to += length;
    }
    &bytes[..to]
}

/// How many bytes of its content there are of the handshake record that begins here.
fn handshake_record(bytes: &[u8]) -> Option<usize> {
    let mut reader = Reader(bytes);
    let [kind, _, _] = reader.array()?;
    let length = usize::from(reader.u16()?).min(reader.0.len());
    (kind == content::HANDSHAKE && length > 0).then_some(length)
}

/// The length of the first message with its header, if it is complete.
fn whole(bytes: &[u8]) -> Option<usize> {
    let [_, a, b, c] = *bytes.first_chunk()?;
    let whole = usize::try_from(MESSAGE_HEADER + u32::from_be_bytes([0, a, b, c])).ok()?;
    (whole <= bytes.len()).then_some(whole)
}
