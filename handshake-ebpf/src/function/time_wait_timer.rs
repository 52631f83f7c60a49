//! `__inet_twsk_schedule`: the timer of a time-wait minisocket is set, when it is made and anew by segments
//! that it accepts.

use core::ffi::c_void;

use aya_ebpf::{
    macros::{fentry, kprobe},
    programs::{FEntryContext, ProbeContext},
};
use handshake_common::function::Function;

use super::{count, time_wait::rescheduled};
use crate::kernel::{Direct, Probed};

// void __inet_twsk_schedule(struct inet_timewait_sock *tw, int timeo, bool rearm)
#[fentry(function = "__inet_twsk_schedule")]
pub(crate) fn time_wait_timer_fentry(ctx: FEntryContext) -> i32 {
    if ctx.arg::<u64>(2) & 0xff != 0 {
        count(Function::TimeWaitTimer);
        rescheduled::<Direct>(ctx.arg(0));
    }
    0
}

#[kprobe]
pub(crate) fn time_wait_timer_kprobe(ctx: ProbeContext) -> u32 {
    if let (Some(tw), Some(rearm)) = (ctx.arg::<*const c_void>(0), ctx.arg::<u64>(2))
        && rearm & 0xff != 0
    {
        count(Function::TimeWaitTimer);
        rescheduled::<Probed>(tw);
    }
    0
}
