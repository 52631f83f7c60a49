//! On a machine that others keep busy: who waits for a processor is late, and the times of a test are not what its link and its
//! programs would make them. A refusal of any of this makes times less exact, which the tests that compare them would show.

use std::ffi::{CStr, c_int};

use nix::libc;

/// For a relay: it must not wait for anybody.
const RELAY: c_int = 10;
/// For a test's own threads, which sleep most of the time, and act when they mean to.
const TEST: c_int = 1;

/// This thread, and those that it will start, come before all programs.
pub(super) fn raise() {
    schedule(libc::SCHED_RR, TEST);
}

/// This thread comes before everything.
pub(super) fn raise_relay() {
    schedule(libc::SCHED_FIFO, RELAY);
}

/// Whoever keeps a lock that the relay waits for must not wait for a processor either.
pub(super) fn as_relay<T>(work: impl FnOnce() -> T) -> T {
    // SAFETY: both only ask; the structure outlives the call, and all zeros is a valid value of it.
    let (policy, before) = unsafe {
        let mut before: libc::sched_param = std::mem::zeroed();
        libc::sched_getparam(0, &raw mut before);
        (libc::sched_getscheduler(0), before)
    };
    raise_relay();
    let result = work();
    schedule(policy, before.sched_priority);
    result
}

fn schedule(policy: c_int, sched_priority: c_int) {
    let parameters = libc::sched_param { sched_priority };
    // SAFETY: the structure outlives the call.
    let _ = unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) };
}

/// For a program that a test starts, between fork and exec, so it makes system calls only: scheduled as programs are, but first
/// among them. The kernel weighs a session's processes together (sched(7), autogroup), so it gets a session of its own.
pub(crate) fn go_first() {
    const NICE: &CStr = c"-15";
    schedule(libc::SCHED_OTHER, 0);
    // SAFETY: the strings are constants that end with a zero; the file belongs to nobody else.
    unsafe {
        libc::setsid();
        let group = libc::open(c"/proc/self/autogroup".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if group >= 0 {
            libc::write(group, NICE.as_ptr().cast(), NICE.count_bytes());
            libc::close(group);
        }
        libc::setpriority(libc::PRIO_PROCESS, 0, -15);
    }
}
