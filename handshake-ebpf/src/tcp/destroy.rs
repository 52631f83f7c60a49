//! `tcp:tcp_destroy_sock`: the socket is destroyed, so every outstanding record of its connection is due.

use core::ffi::c_void;

use aya_ebpf::{
    helpers::generated::bpf_ktime_get_ns,
    macros::{btf_tracepoint, tracepoint},
    programs::{BtfTracePointContext, TracePointContext},
};
use handshake_common::tcp::state;

use super::perf_field;
use crate::{
    emit,
    kernel::{Access, KernelSock, Typed, Untyped},
    maps,
    tls::{library::call, wire},
};

// void tcp_destroy_sock(struct sock *sk)
#[btf_tracepoint(function = "tcp_destroy_sock")]
pub(crate) fn tcp_destroy_sock(ctx: BtfTracePointContext) -> i32 {
    destroyed::<Typed>(ctx.arg(0));
    0
}

#[tracepoint(category = "tcp", name = "tcp_destroy_sock")]
pub(crate) fn tcp_destroy_sock_perf(ctx: TracePointContext) -> u32 {
    // SAFETY: user space takes the offset from the tracepoint's own format.
    if let Ok(sk) = unsafe { ctx.read_at::<usize>(perf_field!(DESTROY_SKADDR)) } {
        destroyed::<Untyped>(sk as *const c_void);
    }
    0
}

#[inline(always)]
fn destroyed<A: Access>(sk: *const c_void) {
    let Some(connection) = maps::find(sk) else { return };
    if !connection.tls_session.is_none() {
        // SAFETY: no arguments.
        call::socket_closed(connection, sk, unsafe { bpf_ktime_get_ns() });
    }
    let sock = KernelSock::<A>::new(sk);
    if connection.wire_is_unsettled()
        && let Some(sock) = &sock
    {
        wire::socket_closed(connection, sock);
    }
    let due = state::destroyed(connection);
    if let Some(sock) = sock {
        emit::publish(connection, &sock, due);
    }
    maps::forget(sk);
}
