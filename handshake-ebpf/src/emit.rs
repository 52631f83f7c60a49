//! What leaves the programs: counters and histograms first, then the record.

use core::{
    ffi::c_void,
    hint::black_box,
    intrinsics::{AtomicOrdering, atomic_xadd},
};

use aya_ebpf::{bindings::BPF_RB_NO_WAKEUP, helpers::generated::bpf_ringbuf_output};
use handshake_common::{
    Connection, ConnectionFlags, FastOpen, Stage, connection,
    histograms::{self, Bounds, MAX_BOUNDS, SUM},
    tcp::{close, minisocket::MinisocketNews, open, setup, state::DueRecords},
    tls::library::session::{LibraryHandshake, Session},
    totals::{self, DropReason},
};

use crate::{
    kernel::{Access, KernelSock, constant},
    maps::{self, HISTOGRAMS, RECORDS, TOTALS},
    tcp::time_wait,
    word_copy,
};

/// Adds one to a counter of this CPU.
#[inline(always)]
pub(crate) fn count(slot: usize) {
    let Some(counters) = TOTALS.get_ptr_mut(0) else { return };
    // The verifier does not know what the compiler knows of the range, so the mask must not be optimised
    // away.
    let inside = black_box(slot) & (totals::SLOTS - 1);
    // SAFETY: the mask keeps the slot inside the value.
    unsafe { add(counters.cast::<u64>().add(inside), 1) };
}

/// Adds to a counter that others add to as well: on another CPU, or in a soft interrupt on this one.
///
/// # Safety
/// The counter must be in a value of a map.
#[inline(always)]
pub(crate) unsafe fn add(counter: *mut u64, change: u64) {
    // SAFETY: the caller's promise.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, change) };
}

/// Sends the record of a TLS handshake, with the connection where its socket is known.
#[inline(always)]
pub(crate) fn handshake(session: &Session, connection: Option<&Connection>) {
    let Some(mut record) = RECORDS.reserve_untyped::<LibraryHandshake>(0) else {
        count(totals::lost(DropReason::RingFull));
        count(totals::tls_lost(session.outcome));
        return;
    };
    // SAFETY: the record is written in whole before it is submitted; it is repr(C) and plain.
    unsafe {
        let raw = record.as_mut_ptr();
        match connection {
            Some(connection) => word_copy::copy(connection, &raw mut (*raw).connection),
            None => word_copy::zero(&raw mut (*raw).connection),
        }
        (*raw).connection.stage = Stage::Tls.code();
        word_copy::copy(session, &raw mut (*raw).session);
    }
    record.submit(u64::from(BPF_RB_NO_WAKEUP));
}

/// The bounds of the histograms, if user space asks for any. Filled in before the load.
#[unsafe(no_mangle)]
static BOUNDS: Bounds = Bounds::NONE;

/// Whether histograms take the place of the records of connections without TLS. The verifier takes it as a
/// constant, so what is not asked for costs nothing.
#[inline(always)]
fn fills_histograms() -> bool {
    constant(&BOUNDS.number) != 0
}

/// The same number, of which the verifier knows nothing any more: it would otherwise follow the rest of the
/// program once for each class that a connection can be of.
#[expect(clippy::cast_possible_truncation, reason = "64 bits on this target")]
#[inline(always)]
fn obscure(connection: &Connection, number: usize) -> usize {
    let id = connection.id as usize;
    black_box(number.wrapping_add(id)).wrapping_sub(id)
}

/// The same for what an opening has decided on the way, of a connection on the stack.
#[expect(clippy::cast_possible_truncation, reason = "as many bits as before")]
#[inline(always)]
fn obscure_opening(connection: &mut Connection) {
    let flags = obscure(connection, connection.flags.bits() as usize) as u32;
    connection.flags = ConnectionFlags::from_bits_retain(flags);
    connection.syn_ns = obscure(connection, connection.syn_ns as usize) as u64;
    connection.open_ns = obscure(connection, connection.open_ns as usize) as u64;
    connection.srtt_us = obscure(connection, connection.srtt_us as usize) as u32;
    connection.syn_retransmits = obscure(connection, usize::from(connection.syn_retransmits)) as _;
}

/// The same for all that is known of a connection on the stack.
#[inline(always)]
fn obscure_all(connection: &mut Connection) {
    let id = connection.id;
    let words = core::ptr::from_mut(connection).cast::<u64>();
    let mut at = 0;
    while at < size_of::<Connection>() / 8 {
        // SAFETY: inside the connection, which is plain whole words.
        unsafe {
            let word = words.add(at);
            word.write_volatile(black_box(word.read_volatile().wrapping_add(id)).wrapping_sub(id));
        }
        at += 1;
    }
}

/// Counts a class of this connection.
#[inline(always)]
fn count_class(connection: &Connection, slot: usize) {
    count(obscure(connection, slot));
}

/// Adds a value to a histogram of this CPU. A function of its own, with numbers alone for arguments: the
/// verifier looks at it once, and the processor has one copy of it in its caches.
#[expect(clippy::cast_possible_truncation, reason = "64 bits on this target")]
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn observe(series: u32, us: u64) -> u32 {
    let Some(histogram) = HISTOGRAMS.get_ptr_mut(series) else { return 0 };
    // SAFETY: the search stays inside the bounds. Volatile: the compiler must not fold those built in.
    let bound = |at| unsafe { (&raw const BOUNDS.at_most_us).cast::<u64>().add(at as usize).read_volatile() };
    // See `count`.
    let bucket = black_box(histograms::bucket(us, constant(&BOUNDS.start), bound)) as usize & MAX_BOUNDS;
    // SAFETY: the mask keeps the bucket inside the value.
    unsafe {
        add(histogram.cast::<u64>().add(bucket), 1);
        add(histogram.cast::<u64>().add(SUM), us);
    }
    // Kernels before 6.8 take no function of its own without a result.
    0
}

/// Observes a value unless it is unknown.
#[expect(clippy::cast_possible_truncation, reason = "the index of a series")]
#[inline(always)]
fn observe_known(series: usize, us: Option<u64>) {
    if let Some(us) = us {
        observe(series as u32, us);
    }
}

/// A connection was accepted: its wait goes into a histogram, or into its later records.
#[inline(always)]
pub(crate) fn accepted(connection: &Connection) {
    if fills_histograms() {
        histograms::accepted(connection, observe_known);
    }
}

/// A connection closed of which no view has seen a TLS handshake. Whether one could have escaped both is for
/// user space to say.
#[inline(always)]
fn set_up(connection: &Connection) {
    if let Some(round_trips) = setup::round_trips(connection) {
        count_class(connection, totals::setups(connection.role(), round_trips));
        histograms::set_up(connection, observe_known);
    }
}

/// Counts and publishes the records that are due, of a connection that is in the table.
#[inline(always)]
pub(crate) fn publish<A: Access>(connection: &mut Connection, sock: &KernelSock<A>, due: DueRecords) {
    if due != DueRecords::empty() {
        identify(connection, sock, due);
        publish_kept(A::address(sock.pointer()), u32::from(due.bits()));
    }
}

/// The same for one that is not in the table.
#[expect(clippy::cast_possible_truncation, reason = "as many bits as before")]
#[inline(always)]
pub(crate) fn publish_unkept<A: Access>(connection: &mut Connection, sock: &KernelSock<A>, due: DueRecords) {
    if due != DueRecords::empty() {
        identify(connection, sock, due);
        obscure_all(connection);
        let due = obscure(connection, usize::from(due.bits()));
        send(connection, DueRecords::from_bits_retain(due as u8));
    }
}

/// The same for an opening that is not in the table yet.
#[inline(always)]
pub(crate) fn publish_opening<A: Access>(connection: &mut Connection, sock: &KernelSock<A>) {
    identify(connection, sock, DueRecords::OPEN);
    obscure_opening(connection);
    send(connection, DueRecords::OPEN);
}

/// A record names the ends.
#[inline(always)]
fn identify<A: Access>(connection: &mut Connection, sock: &KernelSock<A>, due: DueRecords) {
    if (due.contains(DueRecords::OPEN) || due.contains(DueRecords::CLOSE)) && connection.family == 0 {
        sock.identify(connection);
    }
}

/// A function of its own, with numbers alone for arguments: the verifier looks at it once, and not for every
/// way that leads to it.
#[expect(clippy::cast_possible_truncation, reason = "three bits")]
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn publish_kept(sk: u64, due: u32) -> u32 {
    if let Some(connection) = maps::find(sk as *const c_void) {
        send(connection, DueRecords::from_bits_retain(due as u8));
    }
    // Kernels before 6.8 take no function of its own without a result.
    0
}

/// Counts what is due, and fills the histograms or sends the record.
#[inline(always)]
fn send(connection: &mut Connection, due: DueRecords) {
    if due.contains(DueRecords::CLOSING) {
        count_class(connection, totals::closing(connection.role()));
    }
    if due.contains(DueRecords::OPEN) {
        count_class(connection, totals::open_slot(connection));
        if connection.flags.contains(ConnectionFlags::PREEXISTING) {
            count(totals::LATE);
        }
        let fast_open = open::fast_open(connection);
        if fast_open != Some(FastOpen::None) {
            count_class(connection, totals::fast_opens(connection.role(), fast_open));
        }
        if fills_histograms() {
            histograms::opened(connection, observe_known);
        }
        if !fills_histograms() || time_wait::may_reuse(connection) {
            record(connection, Stage::Open);
        }
    }
    if due.contains(DueRecords::CLOSE) {
        count_class(connection, totals::close_slot(connection));
        if !connection.flags.contains(ConnectionFlags::ESTABLISHED)
            && !connection.flags.contains(ConnectionFlags::PREEXISTING)
        {
            count_class(connection, totals::unopened(connection.role()));
        }
        if fills_histograms() {
            histograms::closed(connection, observe_known);
            let is_plain = connection.shows_no_tls();
            if is_plain {
                set_up(connection);
            }
            let enters_time_wait = close::enters_time_wait(connection);
            if is_plain && !(enters_time_wait && has_room(connection)) {
                return;
            }
            if enters_time_wait {
                time_wait::mark(connection);
            }
        } else if close::enters_time_wait(connection) {
            time_wait::mark(connection);
        }
        record(connection, Stage::Close);
    }
}

/// Whether user space follows one more connection without TLS into TIME_WAIT.
#[inline(always)]
fn has_room(connection: &Connection) -> bool {
    let has_room = time_wait::has_room(connection.closed_ns);
    if !has_room {
        count(totals::lost(DropReason::TimeWaitFull));
    }
    has_room
}

/// Sends what happened to a minisocket.
#[inline(always)]
pub(crate) fn minisocket(news: &MinisocketNews) {
    // SAFETY: the record is plain and has no padding.
    let error = unsafe {
        bpf_ringbuf_output(
            (&raw const RECORDS).cast_mut().cast(),
            core::ptr::from_ref(news).cast_mut().cast(),
            size_of::<MinisocketNews>() as u64,
            u64::from(BPF_RB_NO_WAKEUP),
        )
    };
    if error != 0 {
        count(totals::lost(DropReason::RingFull));
    }
}

/// Sends the record without waking user space, which polls the ring at its own pace.
#[inline(always)]
fn record(connection: &mut Connection, stage: Stage) {
    connection.stage = stage.code();
    // SAFETY: the connection is a map value of exactly this size.
    let error = unsafe {
        bpf_ringbuf_output(
            (&raw const RECORDS).cast_mut().cast(),
            core::ptr::from_mut(connection).cast(),
            connection::SIZE as u64,
            u64::from(BPF_RB_NO_WAKEUP),
        )
    };
    if error != 0 {
        count(totals::lost(DropReason::RingFull));
    }
}
