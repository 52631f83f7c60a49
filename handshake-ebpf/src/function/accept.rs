//! The return of `inet_csk_accept`, in the task that accepts.

use aya_ebpf::{
    macros::{fexit, kretprobe},
    programs::{FExitContext, RetProbeContext},
};
use handshake_common::function::Function;

use super::{count, returned};

// struct sock *inet_csk_accept(struct sock *sk, int flags, int *err, bool kern);
// since 6.10: struct sock *inet_csk_accept(struct sock *sk, struct proto_accept_arg *arg)
#[fexit(function = "inet_csk_accept")]
pub(crate) fn accept_fentry(ctx: FExitContext) -> i32 {
    if !returned!(ctx, ACCEPT_ARITY, 2 or 4).is_null() {
        count(Function::Accept);
    }
    0
}

#[kretprobe]
pub(crate) fn accept_kprobe(ctx: RetProbeContext) -> u32 {
    if ctx.ret::<u64>() != 0 {
        count(Function::Accept);
    }
    0
}
