//! Programs are loaded whatever signals come meanwhile.
//!
//! Needs root: run through `cargo xtask test`.

use std::{
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::Duration,
};

use handshake::{kernel::probe::Kernel, settings::ProbeSettings, tracer::Tracer};
use nix::sys::{
    pthread::{pthread_kill, pthread_self},
    signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
};

/// The verifier takes up to half a second for a program.
const PACE: Duration = Duration::from_millis(1);

static CAME: AtomicU32 = AtomicU32::new(0);

extern "C" fn count(_: nix::libc::c_int) {
    CAME.fetch_add(1, Ordering::Relaxed);
}

#[test]
fn programs_load_while_signals_come() {
    assert!(nix::unistd::geteuid().is_root(), "this test loads programs into the kernel: run it as root");
    let action = SigAction::new(SigHandler::Handler(count), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler does nothing but count, which is allowed to interrupt anything.
    unsafe { sigaction(Signal::SIGUSR1, &action) }.unwrap();
    let settings = ProbeSettings { ring_kib: 64, max_connections: 1024, ..ProbeSettings::default() };
    let (kernel, loader) = (Kernel::read().unwrap(), pthread_self());
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                // The thread waits for this one, so it is there.
                pthread_kill(loader, Signal::SIGUSR1).unwrap();
                thread::sleep(PACE);
            }
        });
        let attached = Tracer::attach(&kernel, &settings).map(drop);
        done.store(true, Ordering::Relaxed);
        attached.unwrap();
    });
    assert!(CAME.load(Ordering::Relaxed) > 0, "no signal came, so this shows nothing");
}
