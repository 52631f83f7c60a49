//! Notes which packets pass by, and when.

use core::hint::black_box;

use super::{
    burst::{Burst, BurstFlags, MAX_BURSTS, SIZE_BITS},
    packet::{Direction, Segment},
    state::Wire,
};
use crate::{
    integer::{low_16, low_32},
    vocabulary::Role,
};

/// Packets further apart than this make two bursts: units of 1024 ns, about a millisecond.
const GAP: u32 = 1 << 10;

/// Notes that a packet with so many bytes of payload passes by, before [`super::track`] follows it. `unsent`:
/// TCP on this end has bytes of its program that it has not sent.
///
/// With next to no branches, and apart from the tracker: the kernel's verifier follows each combination.
#[inline(always)]
pub fn pass(wire: &mut Wire, segment: &Segment, length: u32, unsent: bool) {
    let local_server = u32::from(wire.role == Role::Server.code());
    let from_server = local_server ^ u32::from(matches!(segment.direction, Direction::Received));
    let (own, other) = (index(from_server), index(from_server ^ 1));
    let at = wire.ticks(segment.now_ns);
    let acks_all = 1 ^ differ(segment.ack, wire.ends[other]);
    let bare = 1 ^ differ(length, 0);
    let known = wire.ends[own];
    let before_it = known | only_if(1 ^ differ(known, 0), segment.seq);
    let (again, ahead) = (before(segment.seq, before_it), before(before_it, segment.seq));
    let end = segment.seq.wrapping_add(length);
    let new = before(before_it, end) & (1 ^ bare);
    wire.ends[own] = before_it.wrapping_add(only_if(new, end.wrapping_sub(before_it)));
    if bare > acks_all || wire.role == 0 {
        return;
    }
    let flags = from_server
        | bare << 1
        | again << 2
        | ahead << 3
        | acks_all << 4
        | (u32::from(unsent) & bare) << 5
        | new << 6;
    note(wire, flags, units(length), at);
}

/// The packet that begins the handshake, with so many bytes of payload.
#[inline(always)]
pub(super) fn begin(wire: &mut Wire, segment: &Segment, length: u32) {
    wire.ends = [segment.seq.wrapping_add(length), segment.ack];
    let flags = BurstFlags::NEW.union(BurstFlags::ACKS_ALL);
    wire.bursts[0] = Burst { at: 0, took: 0, flags, size: saturated(units(length)) };
    (wire.burst_count, wire.bursts_lost) = (1, 0);
}

/// Adds to the newest burst, or begins another.
#[inline(always)]
fn note(wire: &mut Wire, flags: u32, size: u32, at: u32) {
    let count = u32::from(wire.burst_count);
    let last = wire.bursts[(count.wrapping_sub(1) as usize) & (MAX_BURSTS - 1)];
    let took = at.wrapping_sub(last.at);
    let more = differ(count, 0)
        & (1 ^ differ(flags, u32::from(last.flags.bits())))
        & before(took, u32::from(last.took) + GAP + 1)
        & (1 ^ differ(took >> 16, 0));
    let index = count - more;
    if index >= low_32(MAX_BURSTS as u64) {
        wire.bursts_lost = 1;
        return;
    }
    let took = only_if(more, took);
    let size = size + only_if(more, u32::from(last.size));
    wire.bursts[index as usize & (MAX_BURSTS - 1)] = Burst {
        at: at.wrapping_sub(took),
        took: low_16(took.into()),
        flags: BurstFlags::from_bits_retain(low_8(flags)),
        size: saturated(size),
    };
    wire.burst_count = low_8(index + 1);
}

/// A length in the unit of [`Burst::size`], rounded up.
#[inline(always)]
const fn units(length: u32) -> u32 {
    length.saturating_add((1 << SIZE_BITS) - 1) >> SIZE_BITS
}

#[inline(always)]
fn saturated(size: u32) -> u8 {
    low_8(size | only_if(differ(size >> 8, 0), u32::MAX))
}

/// An end's place in [`Wire::ends`].
#[inline(always)]
fn index(from_server: u32) -> usize {
    black_box(from_server) as usize & 1
}

/// 1 if a position lies before another. Without a branch.
#[inline(always)]
fn before(a: u32, b: u32) -> u32 {
    black_box(a.wrapping_sub(b)) >> 31
}

/// 1 unless both are equal; likewise.
#[inline(always)]
fn differ(a: u32, b: u32) -> u32 {
    let difference = a ^ b;
    black_box(difference | difference.wrapping_neg()) >> 31
}

/// The value if the condition is 1, 0 if it is 0; likewise.
#[inline(always)]
fn only_if(condition: u32, value: u32) -> u32 {
    black_box(condition.wrapping_neg()) & value
}

#[expect(clippy::cast_possible_truncation, reason = "that is what it is for")]
#[inline(always)]
const fn low_8(number: u32) -> u8 {
    number as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::wire::packet::Direction;

    /// A client's handshake: (who, ms, seq, ack, length, unsent).
    fn passed(packets: &[(Role, u64, u32, u32, u32, bool)]) -> Wire {
        let mut wire =
            Wire { role: Role::Client.code(), ends: [packets[0].2, packets[0].3], ..Wire::default() };
        for &(side, ms, seq, ack, length, unsent) in packets {
            let direction = if side == Role::Client { Direction::Sent } else { Direction::Received };
            let segment = Segment { direction, seq, ack, now_ns: ms * 1_000_000 };
            pass(&mut wire, &segment, length, unsent);
        }
        wire
    }

    #[test]
    fn packets_close_together_make_one_burst_unless_they_differ() {
        use Role::{Client, Server};
        let wire = passed(&[
            (Client, 0, 100, 900, 300, false),
            (Server, 50, 900, 400, 1400, false),
            (Server, 50, 2300, 400, 100, false),
            (Client, 51, 400, 2000, 0, false),
            (Client, 51, 400, 2400, 0, false),
            (Server, 60, 2500, 400, 10, false),
            (Server, 70, 2400, 400, 100, false),
            (Client, 90, 400, 2510, 6, false),
            (Server, 140, 2510, 406, 0, true),
        ]);
        let seen: Vec<_> = wire.bursts().unwrap().iter().map(|burst| (burst.flags, burst.size)).collect();
        let new = BurstFlags::NEW;
        let all = BurstFlags::ACKS_ALL;
        let server = BurstFlags::FROM_SERVER;
        assert_eq!(
            seen,
            [
                (new | all, 5),
                (new | all | server, 22 + 2),
                (BurstFlags::BARE | all, 0),
                (new | all | server | BurstFlags::AHEAD, 1),
                (all | server | BurstFlags::AGAIN, 2),
                (new | all, 1),
                (BurstFlags::BARE | all | server | BurstFlags::UNSENT, 0),
            ]
        );
        assert_eq!(wire.bursts().unwrap()[1].most_bytes(), Some(24 * 64));
    }

    #[test]
    fn too_many_bursts_are_not_told() {
        let packets: Vec<_> = (0..=low_32(MAX_BURSTS as u64))
            .map(|index| (Role::Client, u64::from(index) * 10, index, 1, 1, false))
            .collect();
        assert_eq!(passed(&packets[..MAX_BURSTS]).bursts().map(<[Burst]>::len), Some(MAX_BURSTS));
        assert_eq!(passed(&packets).bursts(), None);
    }
}
