//! Fuzzes the tracker with packets of any content in any order, and the verdict with what it recorded.
//!
//! A packet: one byte of flags, its distance from the expected sequence number (one signed byte), the length
//! of its payload (two bytes), the payload.
#![no_main]

use handshake::tls::wire::{Buffers, Hellos, Piece, verdict};
use handshake_common::{
    Role,
    tls::wire::{Direction, Ending, Next, Segment, Wire, closed, pass, track},
};
use libfuzzer_sys::fuzz_target;

const FROM_CLIENT: u8 = 1;
const ACKNOWLEDGES: u8 = 2;
const LOCAL_IS_SERVER: u8 = 4;

fuzz_target!(|data: &[u8]| {
    let mut wire = Wire::default();
    let mut pieces: [Vec<Piece<'_>>; 2] = Default::default();
    // The first sequence number of each stream, and its current one.
    let mut ends = [u32::MAX - 100, 1000];
    let mut acks = [0, 0];
    let mut now_ns = 1;
    let mut rest = data;
    let mut follows = Next::Watch;
    while let [flags, away, high, low, behind @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(behind.len());
        let (payload, next) = behind.split_at(length);
        rest = next;
        now_ns += 50_000;
        let from_client = flags & FROM_CLIENT != 0;
        let (own, other) = if from_client { (0, 1) } else { (1, 0) };
        if flags & ACKNOWLEDGES != 0 {
            acks[own] = ends[other];
        }
        let seq = ends[own].wrapping_add_signed(i32::from(away.cast_signed()));
        ends[own] = seq.wrapping_add(u32::try_from(length).unwrap());
        let sent = from_client != (data[0] & LOCAL_IS_SERVER != 0);
        let direction = if sent { Direction::Sent } else { Direction::Received };
        let segment = Segment { direction, seq, ack: acks[own], now_ns };
        pass(&mut wire, &segment, u32::try_from(length).unwrap(), flags & ACKNOWLEDGES == 0);
        let before = wire;
        let due = track(&mut wire, &segment, &payload);
        if follows == Next::Follow && payload.is_empty() {
            // The kernel side skips it.
            assert_eq!((Wire { packets: before.packets, ..wire }, due.next), (before, Next::Follow));
        }
        follows = due.next;
        let (from, count) = (due.copy_offset as usize, due.copy_length as usize);
        if count > 0 {
            let bytes = &payload[from..from + count];
            let side = usize::from(due.sender == Role::Server);
            pieces[side].push(Piece { seq: seq.wrapping_add(due.copy_offset), bytes });
        }
        assert_eq!(due.next == Next::Publish, wire.role().is_some() && !wire.is(Ending::Going));
        if due.next == Next::Publish {
            break;
        }
    }
    if closed(&mut wire) == Next::Publish {
        let mut buffers = Buffers::default();
        let hellos = Hellos::read(&wire, &pieces[0], &pieces[1], &mut buffers);
        let verdict = verdict(&wire, &hellos);
        assert!(verdict.ended_ns.is_none_or(|ended| ended >= verdict.hello_ns));
        assert!(verdict.round_trips().is_none_or(|trips| (1..=2).contains(&trips)));
        assert!(verdict.class.is_none() || (verdict.version.is_some() && verdict.random.is_some()));
    }
});
