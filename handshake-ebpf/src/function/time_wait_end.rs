//! `inet_twsk_kill`: a time-wait minisocket ends, because its time is over, its ends are used again, a RST
//! came, or there are too many.

use core::ffi::c_void;

use aya_ebpf::{
    macros::{fentry, kprobe},
    programs::{FEntryContext, ProbeContext},
};
use handshake_common::function::Function;

use super::{count, time_wait::ended};
use crate::kernel::{Direct, Probed};

// static void inet_twsk_kill(struct inet_timewait_sock *tw)
#[fentry(function = "inet_twsk_kill")]
pub(crate) fn time_wait_end_fentry(ctx: FEntryContext) -> i32 {
    count(Function::TimeWaitEnd);
    ended::<Direct>(ctx.arg(0));
    0
}

#[kprobe]
pub(crate) fn time_wait_end_kprobe(ctx: ProbeContext) -> u32 {
    count(Function::TimeWaitEnd);
    if let Some(tw) = ctx.arg::<*const c_void>(0) {
        ended::<Probed>(tw);
    }
    0
}
