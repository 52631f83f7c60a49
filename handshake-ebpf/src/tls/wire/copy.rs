//! Hello fragments: the bytes of hellos on their way to user space.

use core::hint::black_box;

use aya_ebpf::{bindings::BPF_RB_NO_WAKEUP, helpers::generated::bpf_skb_load_bytes};
use handshake_common::{
    Kind,
    tls::wire::{HelloFragment, raw::MAX_HELLO_FRAGMENT},
    totals::{self, DropReason},
};

use super::{
    maps::{FlowState, Step},
    packet::Bytes,
};
use crate::{emit, maps::RECORDS};

/// Bytes for a typical ServerHello and the header of what follows it.
const SERVER_HELLO: u32 = 144;
/// Bytes for a typical ClientHello without post-quantum key shares, or for a ServerHello of TLS 1.2 and the
/// beginning of the certificate behind it.
const CLIENT_HELLO: u32 = 640;

/// A raw record with room for some bytes. The verifier must know its size, and unused bytes should not fill
/// the ring: hellos come in three sizes, those of servers, those of clients, and those with post-quantum
/// keys.
#[repr(C)]
struct Room<const N: usize> {
    fragment: HelloFragment,
    bytes: [u8; N],
}

/// [`MAX_HELLO_FRAGMENT`], as lengths of packets are counted.
#[expect(clippy::cast_possible_truncation, reason = "some hundred bytes")]
const MAX: u32 = MAX_HELLO_FRAGMENT as u32;

/// Sends the bytes of this packet, which begins at `seq`, that belong to a hello: one fragment of at most
/// [`MAX_HELLO_FRAGMENT`] bytes; the rest is dropped.
#[expect(clippy::cast_possible_truncation, reason = "a code of Role; no more than MAX bytes")]
#[inline(always)]
pub(crate) fn copy(payload: &Bytes, seq: u32, watched: &FlowState) {
    let Step { sender, copy_offset: offset, copy_length, .. } = watched.due();
    let length = if copy_length < MAX { copy_length } else { MAX };
    if length == 0 {
        return;
    }
    let fragment = HelloFragment {
        kind: Kind::Hello.code(),
        sender: sender as u8,
        length: length as u16,
        seq: seq.wrapping_add(offset),
        number: watched.number,
    };
    let sent = if length <= SERVER_HELLO {
        send::<{ SERVER_HELLO as usize }>(payload, offset, length, fragment)
    } else if length <= CLIENT_HELLO {
        send::<{ CLIENT_HELLO as usize }>(payload, offset, length, fragment)
    } else {
        send::<MAX_HELLO_FRAGMENT>(payload, offset, length, fragment)
    };
    if !sent {
        emit::count(totals::lost(DropReason::RingFull));
    }
}

/// `length` is 1 to `N`.
#[expect(clippy::cast_possible_truncation, reason = "N is some hundred bytes")]
#[inline(always)]
fn send<const N: usize>(payload: &Bytes, offset: u32, length: u32, fragment: HelloFragment) -> bool {
    let Some(mut room) = RECORDS.reserve_untyped::<Room<N>>(0) else { return false };
    let (skb, at) = payload.at(offset);
    // SAFETY: the record is in the ring, and has room for `length` bytes; the helper fills it or zeroes it.
    unsafe {
        let raw = room.as_mut_ptr();
        (&raw mut (*raw).fragment).write(fragment);
        // Counted from 0, so that one comparison gives both bounds to every verifier: those of 6.1 and before
        // learn nothing from `length != 0`. The compiler must not optimise the comparison
        // away.
        let last = black_box(length.wrapping_sub(1));
        if last < N as u32 {
            bpf_skb_load_bytes(skb.cast(), at, (&raw mut (*raw).bytes).cast(), last + 1);
        }
    }
    room.submit(u64::from(BPF_RB_NO_WAKEUP));
    true
}
