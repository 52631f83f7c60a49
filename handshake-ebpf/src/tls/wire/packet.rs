//! A packet, from its network header on.

use core::hint::black_box;

use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_skb_load_bytes};
use handshake_common::tls::wire::{Payload, may_be_proxy_header, record::content};

use crate::maps::Endpoints;

const IPPROTO_TCP: u8 = 6;
/// `struct ipv6hdr`, `struct tcphdr`, bytes without options.
const IPV6: usize = 40;
const TCP: usize = 20;

/// The linear part of a packet; the kernel has pulled all headers into it.
#[derive(Clone, Copy)]
struct Linear {
    start: usize,
    end: usize,
}

impl Linear {
    #[inline(always)]
    fn of(skb: *mut __sk_buff) -> Self {
        // SAFETY: the program's context. Volatile: the verifier wants the loads as they are. The compiler
        // must not know that the context has 32 bits for them, or it would compare no more than those.
        unsafe {
            Self {
                start: black_box((&raw const (*skb).data).read_volatile() as usize),
                end: black_box((&raw const (*skb).data_end).read_volatile() as usize),
            }
        }
    }

    #[inline(always)]
    fn bytes<const N: usize>(self, at: usize) -> Option<[u8; N]> {
        let from = self.start + at;
        // SAFETY: no byte is read but those before the end.
        if from + N > self.end { None } else { Some(unsafe { (from as *const [u8; N]).read_volatile() }) }
    }

    #[inline(always)]
    fn byte(self, at: usize) -> Option<u8> {
        self.bytes::<1>(at).map(|[byte]| byte)
    }
}

/// Where a TCP header is, and its payload.
#[derive(Clone, Copy)]
pub(crate) struct Headers {
    linear: Linear,
    is_ipv6: bool,
    tcp: usize,
    /// Where its payload is.
    payload: u32,
    /// Bytes of payload.
    pub(crate) length: u32,
}

impl Headers {
    /// Finds the headers. Returns `None` if it is not TCP, is IPv6 with extension headers, or is shorter than
    /// its headers say.
    #[expect(clippy::cast_possible_truncation, reason = "the length of headers")]
    #[inline(always)]
    pub(crate) fn find(skb: *mut __sk_buff) -> Option<Self> {
        let linear = Linear::of(skb);
        let first = linear.byte(0)?;
        let (is_ipv6, tcp) = match first >> 4 {
            4 if linear.byte(9)? == IPPROTO_TCP => (false, usize::from(first & 15) * 4),
            6 if linear.byte(6)? == IPPROTO_TCP => (true, IPV6),
            _ => return None,
        };
        let payload = (tcp + usize::from(linear.byte(tcp + 12)? >> 4) * 4) as u32;
        // SAFETY: the program's context.
        let total = unsafe { (&raw const (*skb).len).read_volatile() };
        Some(Self { linear, is_ipv6, tcp, payload, length: total.checked_sub(payload)? })
    }

    /// Whether the payload begins like a handshake record, or like a PROXY header that one may follow.
    /// Returns `None` if its first bytes are not in the linear part, so that [`Self::loads_handshake`] must
    /// decide.
    #[inline(always)]
    pub(crate) fn begins_handshake(&self) -> Option<bool> {
        match self.linear.byte(self.payload as usize)? {
            content::HANDSHAKE => Some(true),
            b'P' | b'\r' => self.linear.bytes(self.payload as usize).map(|start| may_be_proxy_header(&start)),
            _ => Some(false),
        }
    }

    /// The same, wherever the bytes are.
    #[inline(always)]
    pub(crate) fn loads_handshake(&self, skb: *mut __sk_buff) -> bool {
        let (mut first, mut start) = ([0], [0; 6]);
        load(skb, self.payload, &mut first)
            && (first[0] == content::HANDSHAKE
                || (load(skb, self.payload, &mut start) && may_be_proxy_header(&start)))
    }
}

/// A TCP segment.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Packet {
    /// Where its payload is.
    offset: u32,
    /// Bytes of payload.
    pub(crate) length: u32,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) syn: u32,
    is_ipv6: u32,
    source_port: u32,
    destination_port: u32,
}

impl Packet {
    /// Reads the TCP header.
    #[inline(always)]
    pub(crate) fn read(headers: &Headers) -> Option<Self> {
        let tcp = headers.linear.bytes::<TCP>(headers.tcp)?;
        let (syn, has_ack) = (u32::from(tcp[13] >> 1 & 1), u32::from(tcp[13] >> 4 & 1));
        let seq = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
        let ack = u32::from_be_bytes([tcp[8], tcp[9], tcp[10], tcp[11]]);
        Some(Self {
            offset: headers.payload,
            length: headers.length,
            seq: seq.wrapping_add(syn),
            ack: ack * has_ack,
            syn,
            is_ipv6: u32::from(headers.is_ipv6),
            source_port: u32::from(u16::from_be_bytes([tcp[0], tcp[1]])),
            destination_port: u32::from(u16::from_be_bytes([tcp[2], tcp[3]])),
        })
    }

    /// What is left of it behind so many bytes of its payload.
    #[inline(always)]
    pub(crate) fn behind(self, bytes: u32) -> Self {
        Self {
            offset: self.offset + bytes,
            length: self.length.saturating_sub(bytes),
            seq: self.seq.wrapping_add(bytes),
            ..self
        }
    }

    /// Fills in the ends of an incoming packet, like [`crate::kernel::read_endpoints`].
    #[expect(clippy::cast_possible_truncation, reason = "ports, widened for the verifier")]
    #[inline(always)]
    pub(crate) fn ends(&self, skb: *mut __sk_buff, ends: &mut Endpoints) {
        (ends.remote, ends.local) = ([0; 16], [0; 16]);
        if self.is_ipv6 == 1 {
            load(skb, 8, &mut ends.remote);
            load(skb, 24, &mut ends.local);
        } else {
            let (mut source, mut destination) = ([0; 4], [0; 4]);
            load(skb, 12, &mut source);
            load(skb, 16, &mut destination);
            ends.remote[..4].copy_from_slice(&source);
            ends.local[..4].copy_from_slice(&destination);
        }
        ends.remote_port = self.source_port as u16;
        ends.local_port = self.destination_port as u16;
    }

    /// Its payload.
    #[inline(always)]
    pub(crate) fn payload(&self, skb: *mut __sk_buff) -> Bytes {
        Bytes { skb, offset: self.offset, length: self.length }
    }
}

/// The payload of a packet.
pub(crate) struct Bytes {
    skb: *mut __sk_buff,
    offset: u32,
    length: u32,
}

impl Bytes {
    /// Where its payload is.
    #[inline(always)]
    pub(crate) fn at(&self, offset: u32) -> (*mut __sk_buff, u32) {
        (self.skb, self.offset + offset)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "N is some bytes")]
#[inline(always)]
fn load<const N: usize>(skb: *mut __sk_buff, offset: u32, into: &mut [u8; N]) -> bool {
    // SAFETY: the program's context, and room for N bytes; the helper checks that the packet has them.
    unsafe { bpf_skb_load_bytes(skb.cast(), offset, into.as_mut_ptr().cast(), N as u32) == 0 }
}

impl Payload for Bytes {
    #[inline(always)]
    fn len(&self) -> u32 {
        self.length
    }

    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32, into: &mut [u8; N]) -> bool {
        load(self.skb, self.offset + offset, into)
    }
}
