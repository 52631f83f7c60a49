//! `tcp:tcp_retransmit_skb` and `tcp:tcp_retransmit_synack`: retransmitted SYNs and SYN-ACKs.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::BPF_ANY,
    helpers::generated::bpf_ktime_get_ns,
    macros::{btf_tracepoint, tracepoint},
    programs::{BtfTracePointContext, TracePointContext},
};
use handshake_common::{
    Role,
    tcp::{state, states},
    totals,
};

use super::perf_field;
use crate::{
    emit,
    kernel::{Access, KernelSock, Memory, Probed, Typed, Untyped, layout, read_endpoints},
    maps::{self, Endpoints, SYNACKS},
};

// void tcp_retransmit_skb(const struct sock *sk, const struct sk_buff *skb[, int err])
#[btf_tracepoint(function = "tcp_retransmit_skb")]
pub(crate) fn tcp_retransmit_skb(ctx: BtfTracePointContext) -> i32 {
    segment::<Typed>(ctx.arg(0));
    0
}

#[tracepoint(category = "tcp", name = "tcp_retransmit_skb")]
pub(crate) fn tcp_retransmit_skb_perf(ctx: TracePointContext) -> u32 {
    // SAFETY: user space takes the offset from the tracepoint's own format.
    if let Ok(sk) = unsafe { ctx.read_at::<usize>(perf_field!(RETRANSMIT_SKB_SKADDR)) } {
        segment::<Untyped>(sk as *const c_void);
    }
    0
}

/// Runs for any segment: on a lossy host this tracepoint is busy, so all but SYNs return at once.
#[inline(always)]
fn segment<A: Access>(sk: *const c_void) {
    let Some(sock) = KernelSock::<A>::new(sk) else { return };
    if sock.state() != states::SYN_SENT {
        return;
    }
    emit::count(totals::syn_retransmits(Role::Client));
    if let Some(connection) = maps::find(sk) {
        // SAFETY: no arguments.
        let now = unsafe { bpf_ktime_get_ns() };
        state::syn_retransmitted(connection, &sock, sock.retrans_stamp(), now);
    }
}

// void tcp_retransmit_synack(const struct sock *sk, const struct request_sock *req)
#[btf_tracepoint(function = "tcp_retransmit_synack")]
pub(crate) fn tcp_retransmit_synack(ctx: BtfTracePointContext) -> i32 {
    synack(ctx.arg(1));
    0
}

#[tracepoint(category = "tcp", name = "tcp_retransmit_synack")]
pub(crate) fn tcp_retransmit_synack_perf(ctx: TracePointContext) -> u32 {
    // SAFETY: user space takes the offset from the tracepoint's own format.
    if let Ok(req) = unsafe { ctx.read_at::<usize>(perf_field!(RETRANSMIT_SYNACK_REQ)) } {
        synack(req as *const c_void);
    }
    0
}

/// Keeps the time of the first SYN-ACK, which is lost with the request socket once the connection is
/// established.
#[inline(always)]
fn synack(req: *const c_void) {
    emit::count(totals::syn_retransmits(Role::Server));
    let mut ends = Endpoints::default();
    read_endpoints::<Probed>(req, &mut ends);
    // SAFETY: Probed catches every fault; a request socket of TCP is a tcp_request_sock.
    let first_us: u64 = unsafe { Probed::read(req, layout!(snt_synack)) };
    if first_us != 0 {
        // This cannot fail for lack of space: the oldest entry is evicted.
        let _ = SYNACKS.insert(ends, first_us * 1000, u64::from(BPF_ANY));
    }
}
