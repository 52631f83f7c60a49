//! `inet_twsk_kill`: a time-wait minisocket ends, because its time is over, its ends are used again, a RST
//! came, or there are too many.

use aya_ebpf::{
    macros::{fentry, kprobe},
    programs::{FEntryContext, ProbeContext},
};
use handshake_common::function::Function;

use super::count;

// static void inet_twsk_kill(struct inet_timewait_sock *tw)
#[fentry(function = "inet_twsk_kill")]
pub(crate) fn time_wait_end_fentry(_ctx: FEntryContext) -> i32 {
    count(Function::TimeWaitEnd);
    0
}

#[kprobe]
pub(crate) fn time_wait_end_kprobe(_ctx: ProbeContext) -> u32 {
    count(Function::TimeWaitEnd);
    0
}
