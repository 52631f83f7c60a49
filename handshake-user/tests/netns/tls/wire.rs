//! The TLS records that the link carried, with their times, parsed independently of the program under test.

use std::time::Instant;

use crate::testbed::{
    capture::{Capture, Fate, Seen},
    packet::{Packet, Side},
};

/// PostgreSQL's `SSLRequest`, in front of the `ClientHello`. The server accepts it with the letter S.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// RFC 8446 §5.1, RFC 5246 §6.2.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    ChangeCipherSpec,
    Alert,
    Handshake,
    Data,
}

#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) from: Side,
    pub(crate) kind: Kind,
    pub(crate) body: Vec<u8>,
    /// When its first byte was sent.
    pub(crate) begun: Instant,
    /// When its last byte was sent.
    pub(crate) sent: Instant,
    /// When its last byte was received.
    pub(crate) got: Instant,
}

/// A contiguous piece of the bytes of one direction.
struct Piece {
    start: usize,
    end: usize,
    sent: Instant,
    got: Instant,
}

/// Every record of that side, up to the first bytes that are not TLS.
pub(crate) fn records(flow: &Capture, from: Side) -> Vec<Record> {
    let (bytes, pieces) = stream(flow, from);
    let preamble = match from {
        Side::Client => bytes.starts_with(&SSL_REQUEST).then_some(SSL_REQUEST.len()),
        Side::Server => bytes.starts_with(b"S\x16").then_some(1),
    };
    let mut records = Vec::new();
    let mut at = preamble.unwrap_or_default();
    while let Some([kind, 3, _, high, low]) = bytes.get(at..).and_then(|rest| rest.first_chunk()) {
        let end = at + 5 + usize::from(u16::from_be_bytes([*high, *low]));
        let Some(body) = bytes.get(at + 5..end) else { break };
        let kind = match kind {
            20 => Kind::ChangeCipherSpec,
            21 => Kind::Alert,
            22 => Kind::Handshake,
            23 => Kind::Data,
            _ => break,
        };
        let holding =
            |byte: usize| pieces.iter().find(|piece| piece.start <= byte && byte < piece.end).unwrap();
        let (first, last) = (holding(at), holding(end - 1));
        // Segments overtake each other only in tests that delay some.
        records.push(Record {
            from,
            kind,
            body: body.to_vec(),
            begun: first.sent,
            sent: last.sent,
            got: first.got.max(last.got),
        });
        at = end;
    }
    records
}

/// The received bytes of one direction, in the order of their sequence numbers.
fn stream(flow: &Capture, from: Side) -> (Vec<u8>, Vec<Piece>) {
    let is_first = |packet: &Packet| packet.is_syn() || packet.is_syn_ack();
    let Some(start) = flow.from(from, is_first).first().map(|seen| seen.packet.seq.wrapping_add(1)) else {
        return Default::default();
    };
    let offset = |packet: &Packet| {
        let syn = u32::from(is_first(packet));
        usize::try_from(packet.seq.wrapping_add(syn).wrapping_sub(start)).unwrap()
    };
    let mut carried: Vec<&Seen> = flow.from(from, Packet::has_data);
    carried.sort_by_key(|seen| (offset(&seen.packet), seen.arrived));
    let (mut bytes, mut pieces) = (Vec::new(), Vec::new());
    for seen in carried {
        let Fate::Released(got) = seen.fate else { continue };
        let payload = &seen.packet.bytes[seen.packet.bytes.len() - seen.packet.payload..];
        let (start, at) = (bytes.len(), offset(&seen.packet));
        let Some(new) = start.checked_sub(at).and_then(|known| payload.get(known..)) else { continue };
        bytes.extend_from_slice(new);
        pieces.push(Piece { start, end: bytes.len(), sent: seen.arrived, got });
    }
    (bytes, pieces)
}
