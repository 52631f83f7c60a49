//! `tcp_timewait_state_process`: a late FIN comes here, and whatever else reaches a time-wait minisocket.

use core::ffi::c_void;

use aya_ebpf::{
    macros::{fentry, kprobe},
    programs::{FEntryContext, ProbeContext},
};
use handshake_common::function::Function;

use super::{count, time_wait::received};
use crate::kernel::{Direct, Probed};

// enum tcp_tw_status tcp_timewait_state_process(struct inet_timewait_sock *tw, struct sk_buff *skb,
//                                               const struct tcphdr *th, …)
#[fentry(function = "tcp_timewait_state_process")]
pub(crate) fn time_wait_segment_fentry(ctx: FEntryContext) -> i32 {
    count(Function::TimeWaitSegment);
    received::<Direct>(ctx.arg(0), ctx.arg(2));
    0
}

#[kprobe]
pub(crate) fn time_wait_segment_kprobe(ctx: ProbeContext) -> u32 {
    count(Function::TimeWaitSegment);
    if let (Some(tw), Some(header)) = (ctx.arg::<*const c_void>(0), ctx.arg(2)) {
        received::<Probed>(tw, header);
    }
    0
}
