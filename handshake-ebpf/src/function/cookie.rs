//! The return of `tcp_get_cookie_sock`: a connection whose SYN-ACK carried a SYN cookie is made by the final
//! ACK.

use core::ffi::c_void;

use aya_ebpf::{
    macros::{fexit, kretprobe},
    programs::{FExitContext, RetProbeContext},
};
use handshake_common::function::Function;

use super::{count, returned};
use crate::tcp::listener;

// struct sock *tcp_get_cookie_sock(struct sock *sk, struct sk_buff *skb, struct request_sock *req,
//                                  struct dst_entry *dst), before 6.9 and a `u32 tsoff`
#[fexit(function = "tcp_get_cookie_sock")]
pub(crate) fn cookie_fentry(ctx: FExitContext) -> i32 {
    made(returned!(ctx, COOKIE_ARITY, 4 or 5));
    0
}

#[kretprobe]
pub(crate) fn cookie_kprobe(ctx: RetProbeContext) -> u32 {
    made(ctx.ret::<u64>() as *const c_void);
    0
}

#[inline(always)]
fn made(sk: *const c_void) {
    if !sk.is_null() {
        count(Function::Cookie);
        listener::made_by_cookie(sk);
    }
}
