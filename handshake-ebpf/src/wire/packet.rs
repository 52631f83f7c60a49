//! A packet, from its network header on.

use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_skb_load_bytes};
use handshake_common::tls::wire::{Payload, record::content};

use crate::maps::Endpoints;

const IPPROTO_TCP: u8 = 6;
/// `struct iphdr`, `struct ipv6hdr`, `struct tcphdr`, bytes without options.
const IPV4: usize = 20;
const IPV6: u32 = 40;
const TCP: usize = 20;

/// A TCP segment.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Packet {
    /// Where its payload is.
    offset: u32,
    /// Bytes of payload.
    pub length: u32,
    pub seq: u32,
    pub ack: u32,
    pub syn: u32,
    is_ipv6: u32,
    source_port: u32,
    destination_port: u32,
}

impl Packet {
    /// Reads the headers; `None` for what is not TCP, and for IPv6 with extension headers.
    #[inline(always)]
    pub fn read(skb: *mut __sk_buff) -> Option<Self> {
        let mut ip = [0; IPV4];
        if !load(skb, 0, &mut ip) {
            return None;
        }
        let (is_ipv6, protocol, tcp_offset) = match ip[0] >> 4 {
            4 => (0, ip[9], u32::from(ip[0] & 15) * 4),
            6 => (1, ip[6], IPV6),
            _ => return None,
        };
        let mut tcp = [0; TCP];
        if protocol != IPPROTO_TCP || !load(skb, tcp_offset, &mut tcp) {
            return None;
        }
        let offset = tcp_offset + u32::from(tcp[12] >> 4) * 4;
        // SAFETY: the program's context.
        let total = unsafe { (&raw const (*skb).len).read_volatile() };
        let (syn, has_ack) = (u32::from(tcp[13] >> 1 & 1), u32::from(tcp[13] >> 4 & 1));
        let seq = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
        let ack = u32::from_be_bytes([tcp[8], tcp[9], tcp[10], tcp[11]]);
        Some(Self {
            offset,
            length: total.checked_sub(offset)?,
            seq: seq.wrapping_add(syn),
            ack: ack * has_ack,
            syn,
            is_ipv6,
            source_port: u32::from(u16::from_be_bytes([tcp[0], tcp[1]])),
            destination_port: u32::from(u16::from_be_bytes([tcp[2], tcp[3]])),
        })
    }

    /// Writes down the ends of a packet that came in, in the way of [`crate::kernel::read_endpoints`].
    #[expect(clippy::cast_possible_truncation, reason = "ports, widened for the verifier")]
    #[inline(always)]
    pub fn ends(&self, skb: *mut __sk_buff, ends: &mut Endpoints) {
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

    /// What is behind its headers.
    #[inline(always)]
    pub fn payload(&self, skb: *mut __sk_buff) -> Bytes {
        Bytes { skb, offset: self.offset, length: self.length }
    }
}

/// The payload of a packet.
pub struct Bytes {
    skb: *mut __sk_buff,
    offset: u32,
    length: u32,
}

impl Bytes {
    /// Where its payload is.
    #[inline(always)]
    pub fn at(&self, offset: u32) -> (*mut __sk_buff, u32) {
        (self.skb, self.offset + offset)
    }
}

/// Whether the payload may begin with a handshake record; false for packets without any. Only the usual headers are
/// looked at, where they lie: whatever else comes, may.
#[expect(clippy::cast_possible_truncation, reason = "the length of a header")]
#[inline(always)]
pub fn may_begin(skb: *mut __sk_buff) -> bool {
    /// Where a TCP header tells its own length.
    const DATA_OFFSET: usize = 12;
    // SAFETY: the program's context; no byte is read but those before the end that the kernel gives. Volatile: the
    // verifier wants the loads as they are.
    let (length, payload) = unsafe {
        let start = (&raw const (*skb).data).read_volatile() as usize;
        let end = (&raw const (*skb).data_end).read_volatile() as usize;
        let byte = |at: usize| ((start + at) as *const u8).read_volatile();
        if start + IPV4 + TCP > end {
            return true;
        }
        let (network, data_offset) = match byte(0) {
            0x45 => (IPV4 as u32, byte(IPV4 + DATA_OFFSET)),
            first if first >> 4 == 6 && start + IPV6 as usize + TCP <= end => {
                (IPV6, byte(IPV6 as usize + DATA_OFFSET))
            }
            _ => return true,
        };
        ((&raw const (*skb).len).read_volatile(), network + u32::from(data_offset >> 4) * 4)
    };
    let mut first = [0];
    payload < length && load(skb, payload, &mut first) && first[0] == content::HANDSHAKE
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
