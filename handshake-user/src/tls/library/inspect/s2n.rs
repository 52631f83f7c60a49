//! s2n-tls.

use handshake_common::vocabulary::Library;

use super::{
    Inspection, ProbeKind,
    elf::{Elf, Symbols},
};

/// The symbols to look for.
pub(super) const SYMBOLS: &[&str] = &["s2n_negotiate", "s2n_connection_free", "s2n_connection_wipe"];

/// Returns `None` if the file does not hold this library.
pub(super) fn inspect(elf: &Elf<'_>, symbols: &Symbols) -> Option<Inspection> {
    let mut inspection = Inspection::new(Library::S2n);
    inspection.around(elf, symbols.address("s2n_negotiate")?, None);
    // A wiped connection is reused for another handshake.
    for name in ["s2n_connection_free", "s2n_connection_wipe"] {
        if let Some(free) = symbols.address(name) {
            inspection.point(elf, ProbeKind::Free, free, None);
        }
    }
    inspection.gap(
        "functions that only read a field",
        "role, version, class and socket, unless the handshake is seen on the wire",
    );
    Some(inspection)
}
