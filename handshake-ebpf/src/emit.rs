//! What leaves the programs: counters first, then the record.

use core::{
    hint::black_box,
    intrinsics::{AtomicOrdering, atomic_xadd},
};

use aya_ebpf::{bindings::BPF_RB_NO_WAKEUP, helpers::generated::bpf_ringbuf_output};
use handshake_common::{
    Connection, Facts, FastOpen, Stage, connection,
    tcp::{open, state::Due},
    tls::library::session::{Handshake, Session},
    totals::{self, Loss},
};

use crate::{
    kernel::{Access, KernelSock},
    maps::{RECORDS, TOTALS},
    words,
};

/// Adds one to a counter of this CPU.
#[inline(always)]
pub fn count(slot: usize) {
    let Some(counters) = TOTALS.get_ptr_mut(0) else { return };
    // The verifier does not know what the compiler knows of the range, so the mask must not be optimised away.
    let inside = black_box(slot) & (totals::SLOTS - 1);
    // SAFETY: the mask keeps the slot inside the value.
    unsafe { add(counters.cast::<u64>().add(inside), 1) };
}

/// Adds to a counter that others add to as well: on another CPU, or in a soft interrupt on this one.
///
/// # Safety
/// The counter must be in a value of a map.
#[inline(always)]
pub unsafe fn add(counter: *mut u64, change: u64) {
    // SAFETY: the caller's promise.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, change) };
}

/// Sends the record of a TLS handshake, with the connection where its socket is known.
#[inline(always)]
pub fn handshake(session: &Session, connection: Option<&Connection>) {
    let Some(mut record) = RECORDS.reserve_untyped::<Handshake>(0) else {
        count(totals::lost(Loss::RingFull));
        count(totals::tls_lost(session.outcome));
        return;
    };
    // SAFETY: the record is written in whole before it is submitted; it is repr(C) and plain.
    unsafe {
        let raw = record.as_mut_ptr();
        match connection {
            Some(connection) => words::copy(connection, &raw mut (*raw).connection),
            None => words::zero(&raw mut (*raw).connection),
        }
        (*raw).connection.stage = Stage::Tls.code();
        words::copy(session, &raw mut (*raw).session);
    }
    record.submit(u64::from(BPF_RB_NO_WAKEUP));
}

/// Counts and publishes what is due.
#[inline(always)]
pub fn publish<A: Access>(connection: &mut Connection, sock: &KernelSock<A>, due: Due) {
    if due == Due::NOTHING {
        return;
    }
    if due.has(Due::CLOSING) {
        count(totals::closing(connection.role()));
    }
    if (due.has(Due::OPEN) || due.has(Due::CLOSE)) && connection.family == 0 {
        sock.identify(connection);
    }
    if due.has(Due::OPEN) {
        count(totals::open_slot(connection));
        if connection.facts.has(Facts::PREEXISTING) {
            count(totals::LATE);
        }
        let fast_open = open::fast_open(connection);
        if fast_open != Some(FastOpen::None) {
            count(totals::fast_opens(connection.role(), fast_open));
        }
        record(connection, Stage::Open);
    }
    if due.has(Due::CLOSE) {
        count(totals::close_slot(connection));
        if !connection.facts.has(Facts::ESTABLISHED) && !connection.facts.has(Facts::PREEXISTING) {
            count(totals::unopened(connection.role()));
        }
        record(connection, Stage::Close);
    }
}

/// Sends the record. User space is not woken: it looks at the ring at its own pace.
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
        count(totals::lost(Loss::RingFull));
    }
}
