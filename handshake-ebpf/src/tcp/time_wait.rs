//! Which connections user space follows into TIME_WAIT although histograms take the place of records.
//!
//! It needs the record of their close, and that of whatever opens on the same ends next.

use core::hint::black_box;

use aya_ebpf::{
    btf_maps::{Array, PerCpuArray},
    macros::btf_map,
};
use handshake_common::{
    Connection,
    integer::{low_16, low_32},
};

use crate::maps::Endpoints;

/// Closings without TLS of one CPU in a second that are followed: bounds the records and what user space
/// keeps of them, however many connections the host makes.
const PER_SECOND: u32 = 500;

/// About a second in nanoseconds, as a power of two.
const SECOND_BITS: u32 = 30;

/// The second, and how many closings were followed in it.
#[btf_map]
static FOLLOWED: PerCpuArray<[u32; 2], 1> = PerCpuArray::new();

/// How many marks there are: with 100,000 followed connections one in ten others has their mark.
const MARKS: usize = 1 << 20;

/// The length of an epoch of the marks, as a power of two of nanoseconds: 34 s.
const EPOCH_BITS: u32 = 35;
/// FIN_WAIT2 and TIME_WAIT together last 120 s.
const EPOCHS: u16 = 4;
/// Distinguishes a mark from none.
const MARKED: u16 = 1 << 15;

/// The epoch of the last followed close, by a hash of the ends.
#[btf_map]
static ENDS: Array<[u16; MARKS], 1> = Array::new();

/// Whether one more closing of this CPU is followed in this second.
#[inline(always)]
pub(crate) fn has_room(closed_ns: u64) -> bool {
    let Some(followed) = FOLLOWED.get_ptr_mut(0) else { return false };
    let second = low_32(closed_ns >> SECOND_BITS);
    // SAFETY: this CPU's own value. A program that interrupts this one may follow one more.
    let [since, number] = unsafe { followed.read() };
    let number = if since == second { number } else { 0 };
    if number >= PER_SECOND {
        return false;
    }
    // SAFETY: as above.
    unsafe { followed.write([second, number + 1]) };
    true
}

/// The close record of this connection is sent: what opens on its ends next will be reported, too, and what
/// happens to its minisocket.
#[inline(always)]
pub(crate) fn mark(connection: &Connection) {
    let Connection { local, remote, local_port, remote_port, netns, .. } = connection;
    if let Some(at) = place(local, remote, *local_port, *remote_port, *netns) {
        // SAFETY: inside the map's value.
        unsafe { at.write_volatile(epoch(connection.closed_ns) | MARKED) };
    }
}

/// Whether this connection may have taken the ends of a followed one. True for others with the same mark.
#[inline(always)]
pub(crate) fn may_reuse(connection: &Connection) -> bool {
    let Connection { local, remote, local_port, remote_port, netns, .. } = connection;
    is_marked(place(local, remote, *local_port, *remote_port, *netns), connection.open_ns)
}

/// Whether these may be the ends of a followed connection. True for others with the same mark.
#[inline(always)]
pub(crate) fn may_be_followed(ends: &Endpoints, now_ns: u64) -> bool {
    let Endpoints { local, remote, netns, local_port, remote_port } = ends;
    is_marked(place(local, remote, *local_port, *remote_port, *netns), now_ns)
}

#[inline(always)]
fn is_marked(at: Option<*mut u16>, now_ns: u64) -> bool {
    // SAFETY: inside the map's value. Volatile: others mark meanwhile.
    let mark = at.map_or(0, |at| unsafe { at.read_volatile() });
    mark & MARKED != 0 && epoch(now_ns).wrapping_sub(mark) & !MARKED <= EPOCHS
}

#[inline(always)]
const fn epoch(ns: u64) -> u16 {
    low_16(ns >> EPOCH_BITS) & !MARKED
}

#[inline(always)]
fn place(
    local: &[u8; 16],
    remote: &[u8; 16],
    local_port: u16,
    remote_port: u16,
    netns: u32,
) -> Option<*mut u16> {
    let ports = u64::from(local_port) << 16 | u64::from(remote_port);
    // IPv4 is in the first four bytes; of IPv6 the last ones differ most.
    let sum = |a: &[u8; 16]| {
        u64::from(u32::from_ne_bytes([a[0], a[1], a[2], a[3]]))
            + u64::from(u32::from_ne_bytes([a[12], a[13], a[14], a[15]]))
    };
    let mixed = (ports | u64::from(netns) << 32) ^ sum(remote).rotate_left(20) ^ sum(local).rotate_left(40);
    // Fibonacci hashing: the upper bits depend on all others. The verifier does not know what the compiler
    // knows of the range, so the mask must not be optimised away.
    let at = black_box((mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize) & (MARKS - 1);
    // SAFETY: the mask keeps the place inside the value.
    ENDS.get_ptr_mut(0).map(|marks| unsafe { marks.cast::<u16>().add(at) })
}
