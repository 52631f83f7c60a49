//! The return of `inet_csk_accept`, in the task that accepts.

use core::ffi::c_void;

use aya_ebpf::{
    helpers::generated::bpf_ktime_get_ns,
    macros::{fexit, kretprobe},
    programs::{FExitContext, RetProbeContext},
};
use handshake_common::{function::Function, tcp::state};

use super::{count, returned};
use crate::{
    emit,
    kernel::{Access, Typed, Untyped},
    maps,
    tcp::owner::note_acceptor,
};

// struct sock *inet_csk_accept(struct sock *sk, int flags, int *err, bool kern);
// since 6.10: struct sock *inet_csk_accept(struct sock *sk, struct proto_accept_arg *arg)
#[fexit(function = "inet_csk_accept")]
pub(crate) fn accept_fentry(ctx: FExitContext) -> i32 {
    accepted::<Typed>(returned!(ctx, ACCEPT_ARITY, 2 or 4));
    0
}

#[kretprobe]
pub(crate) fn accept_kprobe(ctx: RetProbeContext) -> u32 {
    accepted::<Untyped>(ctx.ret::<u64>() as *const c_void);
    0
}

/// The socket is not locked: see [`state::accepted`].
#[inline(always)]
fn accepted<A: Access>(sk: *const c_void) {
    if sk.is_null() {
        return;
    }
    count(Function::Accept);
    let Some(connection) = maps::find(sk) else { return };
    // SAFETY: no arguments.
    if state::accepted(connection, unsafe { bpf_ktime_get_ns() }) {
        note_acceptor::<A>(connection);
        emit::accepted(connection);
    }
}
