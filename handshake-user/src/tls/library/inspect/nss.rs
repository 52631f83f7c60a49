//! NSS (libssl3.so).

use handshake_common::vocabulary::Library;

use super::{
    Inspection,
    elf::{Elf, Symbols},
};

/// The symbols to look for.
pub(super) const SYMBOLS: &[&str] = &["SSL_ForceHandshake"];

/// Returns `None` if the file does not hold this library.
pub(super) fn inspect(elf: &Elf<'_>, symbols: &Symbols) -> Option<Inspection> {
    let mut inspection = Inspection::new(Library::Nss);
    inspection.description = elf.text_with_version("NSS ");
    // `SSL_ForceHandshakeWithTimeout` goes through it.
    inspection.around(elf, symbols.address("SSL_ForceHandshake")?, None);
    inspection.gap(
        "a function for handshakes that begin inside PR_Read or PR_Write",
        "these, unless they are seen on the wire",
    );
    inspection.gap("fields of its sockets", "version and class, unless the handshake is seen on the wire");
    Some(inspection)
}
