//! Kernel functions that are hooked for what no tracepoint tells.

/// Which one: its place in the kernel side's table of counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Function {
    /// `tcp_timewait_state_process`: a segment reaches a time-wait minisocket.
    TimeWaitSegment,
    /// `__inet_twsk_schedule`: the timer of one is set.
    TimeWaitTimer,
    /// `inet_twsk_kill`: a time-wait minisocket ends.
    TimeWaitEnd,
    /// `inet_csk_accept`, its return: a program takes a connection out of the accept queue.
    Accept,
    /// `tcp_get_cookie_sock`, its return: a SYN cookie makes a connection.
    Cookie,
}

/// How many there are.
pub const COUNT: usize = 5;

/// The map with the counts.
pub const MAP: &str = "FUNCTION_HITS";
