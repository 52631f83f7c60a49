//! Where TLS begins in a stream: at once, or behind plaintext (STARTTLS).

use core::hint::black_box;

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
/// ClientHello below 64 KiB. Its header may be spread over several records.
#[inline(always)]
pub(super) const fn may_open(bytes: &[u8; HEAD], have: u32) -> bool {
    let [kind, major, minor, high, low, message, second, third, _] = *bytes;
    let length = u16::from_be_bytes([high, low]);
    let goes_on = match length {
        1 => (have < 7 || second == content::HANDSHAKE) && (have < 8 || third == 3),
        2 => (have < 7 || second == 0) && (have < 8 || third == content::HANDSHAKE),
        _ => have < 7 || second == 0,
    };
    kind == content::HANDSHAKE
        && (have < 2 || major == 3)
        && (have < 3 || minor <= 4)
        && (have < 5 || (length >= 1 && length <= 1 << 14))
        && (have < 6 || message == handshake::CLIENT_HELLO)
        && goes_on
}

/// The same of all [`OPENING`] bytes: the hello's own version is TLS 1.0 to 1.2, too, where it is among them.
#[inline(always)]
const fn opens(bytes: &[u8; OPENING as usize]) -> bool {
    let [head @ .., major, minor] = *bytes;
    let length = u16::from_be_bytes([head[3], head[4]]);
    may_open(&head, 9) && (length < 6 || (major == 3 && minor >= 1 && minor <= 3))
}

/// The longest header of the PROXY protocol, version 1: with its line break.
const PROXY_LINE: u32 = 107;
/// How every such header begins; the shortest is longer.
const PROXY: [u8; 6] = *b"PROXY ";
/// How every header of version 2 begins, and where its addresses do.
const PROXY_2: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const PROXY_2_FIXED: u32 = 16;

/// Whether these may be the first bytes of a header of the PROXY protocol.
#[must_use]
#[inline(always)]
pub const fn may_be_proxy_header(bytes: &[u8; 6]) -> bool {
    matches!(bytes, b"PROXY " | b"\r\n\r\n\0\r")
}

/// The length of the header of the PROXY protocol that begins here (haproxy's proxy-protocol.txt, versions 1
/// and 2), if something follows it in this packet; else 0.
#[must_use]
#[inline(always)]
pub fn proxy_header(payload: &impl Payload) -> u32 {
    let mut start = [0; 6];
    if !payload.load(0, &mut start) || !may_be_proxy_header(&start) {
        return 0;
    }
    let length = if start == PROXY { proxy_line(payload) } else { proxy_2(payload) };
    if length < payload.len() { length } else { 0 }
}

/// The line of version 1, with its end.
#[inline(always)]
fn proxy_line(payload: &impl Payload) -> u32 {
    // Without a branch on what the bytes are: the verifier would follow each place where the line may end.
    let (mut end, mut is_open) = (0, 1);
    for at in 6..PROXY_LINE {
        let mut byte = [0];
        if !payload.load(at, &mut byte) {
            break;
        }
        let is_end = black_box(u32::from(byte[0] ^ b'\n').wrapping_sub(1) >> 31);
        end += is_open * is_end * (at + 1);
        is_open *= 1 - is_end;
    }
    end
}

#[inline(always)]
fn proxy_2(payload: &impl Payload) -> u32 {
    let mut fixed = [0; PROXY_2_FIXED as usize];
    let [signature @ .., version, _, high, low] = {
        if !payload.load(0, &mut fixed) {
            return 0;
        }
        fixed
    };
    let is_header = signature == PROXY_2 && version >> 4 == 2;
    if is_header { PROXY_2_FIXED + u32::from(u16::from_be_bytes([high, low])) } else { 0 }
}
