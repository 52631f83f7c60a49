//! `iter/tcp`: tells user space which time-wait minisockets a network namespace has. No tracepoint fires for
//! what reaches them, but they keep when the peer's FIN came.
//!
//! It runs when user space asks, never by itself.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{
    bpf_jiffies64, bpf_ktime_get_ns, bpf_seq_write, bpf_skc_to_tcp_timewait_sock,
};
use handshake_common::{
    Family,
    layout::ABSENT,
    tcp::{
        minisocket::{self, Minisocket},
        states,
    },
};

use crate::{
    iterator::Meta,
    kernel::{Direct, Memory, layout, read_endpoints},
    maps::Endpoints,
};

/// `struct bpf_iter__tcp`, its beginning.
#[repr(C)]
pub(crate) struct Tcp {
    meta: *const Meta,
    sk_common: *const c_void,
}

/// Writes one record for each minisocket, and one with nothing but the clocks at the end.
///
/// # Safety
/// The kernel calls it with a context of this type.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
pub(crate) unsafe extern "C" fn minisockets(ctx: *const Tcp) -> i32 {
    // SAFETY: the context is the kernel's, the pointers out of it are BTF-typed, and the null pointer that
    // ends an iteration stands in for this socket.
    unsafe {
        let common = (*ctx).sk_common;
        let mut record = new();
        if !common.is_null() {
            if u32::from(Direct::read::<u8>(common, layout!(skc_state))) != states::TIME_WAIT {
                return 0;
            }
            let tw: *const c_void = bpf_skc_to_tcp_timewait_sock(common.cast_mut()).cast_const().cast();
            if tw.is_null() {
                return 0;
            }
            let mut ends = Endpoints::default();
            record.family = Family::code_of(read_endpoints::<Direct>(common, &mut ends));
            describe::<Direct>(tw, &ends, &mut record);
        }
        let _ = bpf_seq_write((*(*ctx).meta).seq, (&raw const record).cast(), minisocket::SIZE);
    }
    0
}

/// One of which nothing is known but the clocks.
#[inline(always)]
pub(crate) fn new() -> Minisocket {
    Minisocket {
        // SAFETY: no arguments.
        now_ns: unsafe { bpf_ktime_get_ns() },
        // SAFETY: no arguments.
        jiffies: unsafe { bpf_jiffies64() },
        expires: 0,
        cookie: 0,
        local: [0; 16],
        remote: [0; 16],
        timer_flags: 0,
        entry_stamp_ms: 0,
        local_port: 0,
        remote_port: 0,
        family: 0,
        substate: 0,
        padding: [0; 2],
    }
}

/// Reads a `tcp_timewait_sock`, or the `inet_timewait_sock` that it begins with.
///
/// # Safety
/// See [`Memory::read`].
#[inline(always)]
pub(crate) unsafe fn describe<M: Memory>(tw: *const c_void, ends: &Endpoints, record: &mut Minisocket) {
    // SAFETY: the caller's promise.
    unsafe {
        (record.local, record.remote) = (ends.local, ends.remote);
        (record.local_port, record.remote_port) = (ends.local_port, ends.remote_port);
        record.cookie = M::read(tw, layout!(tw_cookie));
        record.expires = M::read(tw, layout!(tw_timer_expires));
        record.timer_flags = M::read(tw, layout!(tw_timer_flags));
        record.substate = M::read(tw, layout!(tw_substate));
        if layout!(tw_entry_stamp) != ABSENT {
            record.entry_stamp_ms = M::read(tw, layout!(tw_entry_stamp));
        }
    }
}
