//! What the machine that runs the tests is like: `cargo xtask vm` says so of the virtual ones, which software
//! emulates (`HANDSHAKE_TEST_SLOW`) and some of whose kernels have no cookies for uprobes
//! (`HANDSHAKE_TEST_TLS_LIBRARIES=off`).

use std::{env, time::Duration};

/// Whether it is one of the virtual ones.
pub(crate) fn is_slow() -> bool {
    env::var_os("HANDSHAKE_TEST_SLOW").is_some()
}

/// How far a time may be from the truth. An emulated machine that waits for a CPU of its host stands still
/// for tenths of a second: there times are only roughly compared, and kinds, classes and round trips exactly.
pub(crate) fn tolerance(usual: Duration) -> Duration {
    if is_slow() { Duration::from_secs(1) } else { usual }
}

/// How long to wait for something before it counts as missing.
pub(crate) fn patience(usual: Duration) -> Duration {
    if is_slow() { usual * 6 } else { usual }
}

/// Whether the kernel lets the program probe TLS libraries: otherwise their handshakes are seen on the wire.
pub(crate) fn probes_libraries() -> bool {
    env::var_os("HANDSHAKE_TEST_TLS_LIBRARIES").is_none_or(|value| value != "off")
}
