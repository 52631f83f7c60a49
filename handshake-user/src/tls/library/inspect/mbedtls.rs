//! mbedTLS 2 and 3.

use handshake_common::vocabulary::Library;

use super::{
    Accessors, Inspection, ProbeKind,
    elf::{Elf, Symbols},
};

/// The symbols to look for.
pub(super) const SYMBOLS: &[&str] =
    &["mbedtls_ssl_handshake", "mbedtls_ssl_free", "mbedtls_ssl_get_ciphersuite_id_from_ssl"];

/// Returns `None` if the file does not hold this library.
pub(super) fn inspect(elf: &Elf<'_>, symbols: &Symbols) -> Option<Inspection> {
    let mut inspection = Inspection::new(Library::MbedTls);
    inspection.description =
        elf.text_with_version("Mbed TLS ").or_else(|| elf.text_with_version("mbed TLS "));
    // Reads and writes also call it until the handshake is complete.
    inspection.around(elf, symbols.address("mbedtls_ssl_handshake")?, None);
    if let Some(free) = symbols.address("mbedtls_ssl_free") {
        inspection.point(elf, ProbeKind::Free, free, None);
    }
    // Since 3.2. Its absence in older versions is not reported as a gap, since nothing else is known there
    // either.
    inspection.target.cipher =
        Accessors::new(elf, symbols).field("mbedtls_ssl_get_ciphersuite_id_from_ssl", &[4]);
    inspection.gap(
        "functions that tell the role, the version, the socket and resumption",
        "these, unless the handshake is seen on the wire",
    );
    Some(inspection)
}
