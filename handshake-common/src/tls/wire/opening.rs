//! Where TLS begins in a stream: at once, or behind plaintext (STARTTLS).

use super::{
    packet::Payload,
    record::{HEAD, content, handshake},
};

/// What identifies a ClientHello: the record header, the message's header, and the legacy version.
pub(super) const OPENING: u32 = 11;

/// Whether a ClientHello may begin here, judging by these bytes.
#[must_use]
#[inline(always)]
pub fn begins_hello(payload: &impl Payload) -> bool {
    let length = payload.len();
    if length >= OPENING {
        let mut bytes = [0; OPENING as usize];
        return payload.load(0, &mut bytes) && opens(&bytes);
    }
    let mut bytes = [0; HEAD];
    let mut have = 0;
    for slot in &mut bytes {
        let mut byte = [0];
        if have >= length || !payload.load(have, &mut byte) {
            break;
        }
        *slot = byte[0];
        have += 1;
    }
    have > 0 && may_open(&bytes, have)
}

/// Whether these bytes may begin a ClientHello: a handshake record of SSL 3.0 to TLS 1.3, and in it a
/// ClientHello below 64 KiB.
#[inline(always)]
pub(super) const fn may_open(bytes: &[u8; HEAD], have: u32) -> bool {
    let [kind, major, minor, high, low, message, most_significant, _, _] = *bytes;
    let length = u16::from_be_bytes([high, low]);
    kind == content::HANDSHAKE
        && (have < 2 || major == 3)
        && (have < 3 || minor <= 4)
        && (have < 5 || (length >= 4 && length <= 1 << 14))
        && (have < 6 || message == handshake::CLIENT_HELLO)
        && (have < 7 || most_significant == 0)
}

/// The same of all [`OPENING`] bytes: the hello's own version is TLS 1.0 to 1.2, too.
#[inline(always)]
const fn opens(bytes: &[u8; OPENING as usize]) -> bool {
    let [head @ .., major, minor] = *bytes;
    may_open(&head, 9) && major == 3 && minor >= 1 && minor <= 3
}
