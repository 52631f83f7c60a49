//! Excerpts: the bytes of hellos on their way to user space.

use core::hint::black_box;

use aya_ebpf::{bindings::BPF_RB_NO_WAKEUP, helpers::generated::bpf_skb_load_bytes};
use handshake_common::{
    Kind,
    tls::wire::{Excerpt, raw::MOST_EXCERPT},
    totals::{self, Loss},
};

use super::{
    maps::{Step, Watched},
    packet::Bytes,
};
use crate::{emit, maps::RECORDS};

/// Excerpts of one packet, at the most: a hello is read up to so many bytes.
const MOST_PER_PACKET: u32 = 1;

/// A raw record with room for some bytes. The verifier must know its size, and the ring is not to be filled with room
/// that is not used: hellos come in three sizes, those of servers, those of clients, and those with post-quantum keys.
#[repr(C)]
struct Room<const N: usize> {
    excerpt: Excerpt,
    bytes: [u8; N],
}

/// [`MOST_EXCERPT`], as lengths of packets are counted.
#[expect(clippy::cast_possible_truncation, reason = "some hundred bytes")]
const MOST: u32 = MOST_EXCERPT as u32;

/// Sends what is due of this packet, which begins at `seq`.
#[expect(clippy::cast_possible_truncation, reason = "a code of Role; no more than MOST bytes")]
#[inline(always)]
pub fn copy(payload: &Bytes, seq: u32, watched: &mut Watched) {
    for _ in 0..MOST_PER_PACKET {
        let due = watched.due();
        let left = due.copy_length;
        let length = if left < MOST { left } else { MOST };
        if length == 0 {
            return;
        }
        let offset = due.copy_offset;
        let excerpt = Excerpt {
            kind: Kind::Hello.code(),
            sender: due.sender as u8,
            length: length as u16,
            seq: seq.wrapping_add(offset),
            number: watched.number,
        };
        let sent = if length <= 128 {
            send::<128>(payload, offset, length, excerpt)
        } else if length <= 640 {
            send::<640>(payload, offset, length, excerpt)
        } else {
            send::<MOST_EXCERPT>(payload, offset, length, excerpt)
        };
        if !sent {
            return emit::count(totals::lost(Loss::RingFull));
        }
        watched.set_due(Step { copy_offset: offset + length, copy_length: left - length, ..due });
    }
}

/// `length` is 1 to `N`.
#[expect(clippy::cast_possible_truncation, reason = "N is some hundred bytes")]
#[inline(always)]
fn send<const N: usize>(payload: &Bytes, offset: u32, length: u32, excerpt: Excerpt) -> bool {
    let Some(mut room) = RECORDS.reserve_untyped::<Room<N>>(0) else { return false };
    let (skb, at) = payload.at(offset);
    // SAFETY: the record is in the ring, and has room for `length` bytes; the helper fills it or zeroes it.
    unsafe {
        let raw = room.as_mut_ptr();
        (&raw mut (*raw).excerpt).write(excerpt);
        // Counted from 0, so that one comparison gives both bounds to every verifier: those of 6.1 and before learn nothing from
        // `length != 0`. What the compiler knows of the length must not take the comparison away.
        let last = black_box(length.wrapping_sub(1));
        if last < N as u32 {
            bpf_skb_load_bytes(skb.cast(), at, (&raw mut (*raw).bytes).cast(), last + 1);
        }
    }
    room.submit(u64::from(BPF_RB_NO_WAKEUP));
    true
}
