//! `tcp:tcp_send_reset` and `tcp:tcp_receive_reset`.

use core::ffi::c_void;

use aya_ebpf::{
    macros::{btf_tracepoint, tracepoint},
    programs::{BtfTracePointContext, TracePointContext},
};
use handshake_common::{Phase, tcp::state};

use super::{adopt::adopt, owner::note_closer, perf_field};
use crate::{
    emit,
    kernel::{Access, KernelSock, Typed, Untyped},
    maps,
};

// void tcp_send_reset(const struct sock *sk, const struct sk_buff *skb[, const enum sk_rst_reason reason])
#[btf_tracepoint(function = "tcp_send_reset")]
pub(crate) fn tcp_send_reset(ctx: BtfTracePointContext) -> i32 {
    sent::<Typed>(ctx.arg(0), ctx.arg::<u64>(1) == 0);
    0
}

#[tracepoint(category = "tcp", name = "tcp_send_reset")]
pub(crate) fn tcp_send_reset_perf(ctx: TracePointContext) -> u32 {
    // SAFETY: user space takes the offsets from the tracepoint's own format.
    unsafe {
        if let (Ok(sk), Ok(skb)) = (
            ctx.read_at::<usize>(perf_field!(SEND_RESET_SKADDR)),
            ctx.read_at::<usize>(perf_field!(SEND_RESET_SKBADDR)),
        ) {
            sent::<Untyped>(sk as *const c_void, skb == 0);
        }
    }
    0
}

/// `active`: no segment of the peer provoked it. After CLOSE such a RST comes from a program's own `close()`,
/// `connect(AF_UNSPEC)` or exit; timers send theirs before.
#[inline(always)]
fn sent<A: Access>(sk: *const c_void, active: bool) {
    let Some(sock) = KernelSock::<A>::new(sk) else { return };
    let Some(connection) = maps::find(sk) else { return };
    if active && connection.is(Phase::Ending) && !connection.has_exact_owner() {
        note_closer::<A>(connection);
    }
    let due = state::reset_sent(connection);
    emit::publish(connection, &sock, due);
}

// void tcp_receive_reset(struct sock *sk)
#[btf_tracepoint(function = "tcp_receive_reset")]
pub(crate) fn tcp_receive_reset(ctx: BtfTracePointContext) -> i32 {
    received::<Typed>(ctx.arg(0));
    0
}

#[tracepoint(category = "tcp", name = "tcp_receive_reset")]
pub(crate) fn tcp_receive_reset_perf(ctx: TracePointContext) -> u32 {
    // SAFETY: user space takes the offset from the tracepoint's own format.
    if let Ok(sk) = unsafe { ctx.read_at::<usize>(perf_field!(RECEIVE_RESET_SKADDR)) } {
        received::<Untyped>(sk as *const c_void);
    }
    0
}

#[inline(always)]
fn received<A: Access>(sk: *const c_void) {
    let Some(sock) = KernelSock::<A>::new(sk) else { return };
    let state = sock.state();
    let connection = match maps::find(sk) {
        Some(found) => found,
        // The connection existed before the program: without this, the reset would look like any other end.
        None => match adopt(&sock, state) {
            Some(adopted) => adopted,
            None => return,
        },
    };
    state::reset_received(connection, &sock, state);
}
