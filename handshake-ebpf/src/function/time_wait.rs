//! What the hooks on time-wait minisockets have in common: the segment that one receives tells why the next
//! of these functions is called, and what happens to those that user space follows becomes a record.

use core::ffi::c_void;

use aya_ebpf::{btf_maps::PerCpuArray, helpers::generated::bpf_ktime_get_ns, macros::btf_map};
use handshake_common::{
    Family, Kind, MinisocketStep,
    tcp::{
        minisocket::{A_SEGMENT, MinisocketNews},
        states,
    },
};

use crate::{
    emit,
    kernel::{Memory, Probed, layout, read_endpoints},
    maps::Endpoints,
    tcp::{minisocket, time_wait},
};

/// A segment that a minisocket has received.
#[derive(Clone, Copy)]
#[repr(C)]
struct Segment {
    /// The address of the minisocket.
    tw: u64,
    at_ns: u64,
    /// The state of the minisocket before it.
    substate: u32,
    /// The 14th byte of its TCP header.
    flags: u32,
}

/// The last one on this CPU. What it leads to happens on the same CPU and before the next one.
#[btf_map]
static SEGMENT: PerCpuArray<Segment, 1> = PerCpuArray::new();

/// Longer than a segment is handled, on an emulated CPU too.
const HANDLED_NS: u64 = 50_000_000;

/// The flags in a TCP header (RFC 9293 §3.1).
const TCP_FLAGS: u32 = 13;

/// A segment comes to a minisocket.
#[inline(always)]
pub(super) fn received<M: Memory>(tw: *const c_void, header: *const c_void) {
    let Some(segment) = SEGMENT.get_ptr_mut(0) else { return };
    // SAFETY: the kernel function's own arguments, and this CPU's own value: segments are received with soft
    // interrupts disabled.
    unsafe {
        segment.write(Segment {
            tw: tw as u64,
            at_ns: bpf_ktime_get_ns(),
            substate: u32::from(M::read::<u8>(tw, layout!(tw_substate))),
            flags: u32::from(Probed::read::<u8>(header, TCP_FLAGS)),
        });
    }
}

/// Its timer is set anew. The first time that a segment does so in FIN_WAIT2, that was the peer's FIN.
#[inline(always)]
pub(super) fn rescheduled<M: Memory>(tw: *const c_void) {
    let Some(segment) = SEGMENT.get_ptr(0) else { return };
    // SAFETY: as above.
    let (is_first, substate) = unsafe {
        let Segment { tw: receiver, substate, .. } = segment.read();
        let is_first = receiver == tw as u64 && substate == states::FIN_WAIT2;
        (is_first, u32::from(M::read::<u8>(tw, layout!(tw_substate))))
    };
    if is_first && substate == states::TIME_WAIT {
        tell::<M>(tw, MinisocketStep::Fin, 0);
    }
}

/// It ends.
#[inline(always)]
pub(super) fn ended<M: Memory>(tw: *const c_void) {
    let Some(segment) = SEGMENT.get_ptr(0) else { return };
    // SAFETY: as above; no arguments.
    let (segment, now) = unsafe { (segment.read(), bpf_ktime_get_ns()) };
    let by_segment = segment.tw == tw as u64 && now.wrapping_sub(segment.at_ns) < HANDLED_NS;
    #[expect(clippy::cast_possible_truncation, reason = "a byte")]
    let flags = segment.flags as u16 | A_SEGMENT;
    tell::<M>(tw, MinisocketStep::End, if by_segment { flags } else { 0 });
}

#[inline(always)]
fn tell<M: Memory>(tw: *const c_void, step: MinisocketStep, segment: u16) {
    let mut ends = Endpoints::default();
    let family = read_endpoints::<M>(tw, &mut ends);
    let mut news = MinisocketNews {
        kind: Kind::Minisocket.code(),
        step: step.code(),
        segment,
        netns: ends.netns,
        minisocket: minisocket::new(),
    };
    if !time_wait::may_be_followed(&ends, news.minisocket.now_ns) {
        return;
    }
    news.minisocket.family = Family::code_of(family);
    // SAFETY: the kernel function's own argument.
    unsafe { minisocket::describe::<M>(tw, &ends, &mut news.minisocket) };
    emit::minisocket(&news);
}
