//! Scheduling priorities, so that on a busy machine the relay, the tests and their programs do not wait for a
//! CPU. If the kernel refuses them, times are less exact, and the tests that compare times show it.

use std::ffi::{CStr, c_int};

use nix::libc;

/// Of the relay, which must never wait.
const RELAY: c_int = 10;
/// Of a test's own threads, which sleep most of the time and must act on time.
const TEST: c_int = 1;

/// Schedules this thread, and those that it starts, before all ordinary programs.
pub(super) fn raise() {
    schedule(libc::SCHED_RR, TEST);
}

/// Schedules this thread before all others.
pub(super) fn raise_relay() {
    schedule(libc::SCHED_FIFO, RELAY);
}

/// Runs `work` with the priority of the relay: a thread that holds a lock the relay waits for must not wait
/// for a CPU either.
pub(super) fn as_relay<T>(work: impl FnOnce() -> T) -> T {
    let mut priority: c_int = 0;
    // SAFETY: both only ask; the kernel's `struct sched_param` is one int, which outlives the call.
    let policy = unsafe {
        libc::syscall(libc::SYS_sched_getparam, 0, &raw mut priority);
        libc::syscall(libc::SYS_sched_getscheduler, 0)
    };
    raise_relay();
    let result = work();
    schedule(c_int::try_from(policy).unwrap_or(libc::SCHED_OTHER), priority);
    result
}

/// Asks the kernel itself: musl's functions of these names only fail.
fn schedule(policy: c_int, priority: c_int) {
    // SAFETY: the kernel's `struct sched_param` is one int, which outlives the call.
    unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, policy, &raw const priority) };
}

/// For a program that a test starts: scheduled as an ordinary program, but with the lowest nice value. The
/// kernel weighs the processes of a session together (sched(7), autogroup), so it gets a session of its own.
/// Runs between fork and exec, and therefore makes only system calls.
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
