//! `sock:sock_send_length` and `sock:sock_recv_length`: which socket a library's call uses, and when.
//!
//! They run for every send and receive of the host, so nearly all of them return at the first check: whether
//! this thread may be inside a handshake.

use core::ffi::c_void;

use aya_ebpf::{
    helpers::generated::bpf_ktime_get_ns,
    macros::{btf_tracepoint, tracepoint},
    programs::{BtfTracePointContext, TracePointContext},
};
use handshake_common::tls::library::session::Flow;

use super::{call, join::join};
use crate::{
    kernel::{Access, KernelSock, Typed, Untyped, user_stack},
    tcp::perf_field,
};

/// `MSG_PEEK`: the data will be received again.
const MSG_PEEK: i32 = 2;
/// How far below a handshake function's entry a library sends and receives, bytes: some hundred, plus the
/// program's own functions in between. Stacks of coroutines are not much smaller.
const DEEPEST: u64 = 1 << 16;

// void sock_send_length(struct sock *sk, int ret, int flags)
#[btf_tracepoint(function = "sock_send_length")]
pub(crate) fn sock_send_length(ctx: BtfTracePointContext) -> i32 {
    if call::may_be_in_one() {
        transferred::<Typed>(ctx.arg(0), ctx.arg(1), ctx.arg(2), Flow::Sent);
    }
    0
}

// void sock_recv_length(struct sock *sk, int ret, int flags)
#[btf_tracepoint(function = "sock_recv_length")]
pub(crate) fn sock_recv_length(ctx: BtfTracePointContext) -> i32 {
    if call::may_be_in_one() {
        transferred::<Typed>(ctx.arg(0), ctx.arg(1), ctx.arg(2), Flow::Received);
    }
    0
}

#[tracepoint(category = "sock", name = "sock_send_length")]
pub(crate) fn sock_send_length_perf(ctx: TracePointContext) -> u32 {
    perf(&ctx, Flow::Sent)
}

#[tracepoint(category = "sock", name = "sock_recv_length")]
pub(crate) fn sock_recv_length_perf(ctx: TracePointContext) -> u32 {
    perf(&ctx, Flow::Received)
}

#[inline(always)]
fn perf(ctx: &TracePointContext, flow: Flow) -> u32 {
    if !call::may_be_in_one() {
        return 0;
    }
    // SAFETY: user space takes the offsets from the tracepoint's own format; both tracepoints are of one
    // class.
    unsafe {
        if let (Ok(sk), Ok(ret), Ok(flags)) = (
            ctx.read_at::<usize>(perf_field!(SOCK_LENGTH_SK)),
            ctx.read_at::<i32>(perf_field!(SOCK_LENGTH_RET)),
            ctx.read_at::<i32>(perf_field!(SOCK_LENGTH_FLAGS)),
        ) {
            transferred::<Untyped>(sk as *const c_void, ret, flags, flow);
        }
    }
    0
}

#[inline(always)]
fn transferred<A: Access>(sk: *const c_void, bytes: i32, flags: i32, flow: Flow) {
    if bytes <= 0 || flags & MSG_PEEK != 0 {
        return;
    }
    let Some((call, session)) = call::current::<A>() else { return };
    if session.sk == 0 {
        // Deeper means that the thread has switched to another stack, whose data this is.
        let depth = call.sp.wrapping_sub(user_stack());
        if depth > DEEPEST {
            return;
        }
        let Some(sock) = KernelSock::<A>::new(sk) else { return };
        join(&call.session, session, &sock);
    }
    if session.sk != sk as u64 {
        // A name server or a log, not the peer of this handshake.
        return;
    }
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    session.transferred(flow, bytes.cast_unsigned(), now, A::activity());
}
