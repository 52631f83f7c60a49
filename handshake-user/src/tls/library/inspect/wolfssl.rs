//! wolfSSL.

use handshake_common::vocabulary::{Library, Role};

use super::{
    Accessors, Inspection, ProbeKind,
    elf::{Elf, Symbols},
};

/// The symbols to look for.
pub(super) const SYMBOLS: &[&str] = &["wolfSSL_accept", "wolfSSL_connect", "wolfSSL_free", "wolfSSL_get_fd"];

/// Returns `None` if the file does not hold this library.
pub(super) fn inspect(elf: &Elf<'_>, symbols: &Symbols) -> Option<Inspection> {
    let mut inspection = Inspection::new(Library::WolfSsl);
    // `wolfSSL_negotiate`, and therefore reads and writes, go through these.
    for (name, role) in [("wolfSSL_accept", Role::Server), ("wolfSSL_connect", Role::Client)] {
        if let Some(function) = symbols.address(name) {
            inspection.around(elf, function, Some(role));
        }
    }
    inspection.covered.then_some(())?;
    if let Some(free) = symbols.address("wolfSSL_free") {
        inspection.point(elf, ProbeKind::Free, free, None);
    }
    let mut of = Accessors::new(elf, symbols);
    inspection.target.fd = of.field("wolfSSL_get_fd", &[4]);
    of.report(&mut inspection, "the connection, unless the handshake is seen on the wire");
    inspection.gap("whole fields for them", "version and class, unless the handshake is seen on the wire");
    Some(inspection)
}
