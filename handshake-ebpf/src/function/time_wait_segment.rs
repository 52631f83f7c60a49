//! `tcp_timewait_state_process`: a late FIN comes here, and whatever else reaches a time-wait minisocket.

use aya_ebpf::{
    macros::{fentry, kprobe},
    programs::{FEntryContext, ProbeContext},
};
use handshake_common::function::Function;

use super::count;

// enum tcp_tw_status tcp_timewait_state_process(struct inet_timewait_sock *tw, struct sk_buff *skb, …)
#[fentry(function = "tcp_timewait_state_process")]
pub(crate) fn time_wait_segment_fentry(_ctx: FEntryContext) -> i32 {
    count(Function::TimeWaitSegment);
    0
}

#[kprobe]
pub(crate) fn time_wait_segment_kprobe(_ctx: ProbeContext) -> u32 {
    count(Function::TimeWaitSegment);
    0
}
