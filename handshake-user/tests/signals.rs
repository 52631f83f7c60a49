//! eBPF programs are loaded even if signals arrive meanwhile.
//!
//! Needs root: run through `cargo xtask test`.

use std::{
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::Duration,
};

use handshake::{kernel::probe::Kernel, settings::ProbeSettings, tracer::Tracer};
use handshake_common::histograms::Bounds;
use nix::sys::{
    pthread::{pthread_kill, pthread_self},
    signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
};

/// The verifier takes up to half a second per program.
const PACE: Duration = Duration::from_millis(1);

static CAME: AtomicU32 = AtomicU32::new(0);

extern "C" fn count(_: nix::libc::c_int) {
    CAME.fetch_add(1, Ordering::Relaxed);
}

#[test]
fn programs_load_while_signals_arrive() {
    assert!(nix::unistd::geteuid().is_root(), "this test loads programs into the kernel: run it as root");
    let action = SigAction::new(SigHandler::Handler(count), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler only increments an atomic counter, which is async-signal-safe.
    unsafe { sigaction(Signal::SIGUSR1, &action) }.unwrap();
    let settings = ProbeSettings { ring_kib: 64, max_connections: 1024, ..ProbeSettings::default() };
    let (kernel, loader) = (Kernel::read().unwrap(), pthread_self());
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                // The other thread waits for this one, so it exists.
                pthread_kill(loader, Signal::SIGUSR1).unwrap();
                thread::sleep(PACE);
            }
        });
        let attached = Tracer::attach(&kernel, &settings, &Bounds::NONE).map(drop);
        done.store(true, Ordering::Relaxed);
        attached.unwrap();
    });
    assert!(CAME.load(Ordering::Relaxed) > 0, "no signal arrived, so this proves nothing");
}
