//! BoringSSL, if its symbols are kept.

use handshake_common::{tls::library::target::Path, vocabulary::Library};

use super::{
    Accessors, Inspection, ProbeKind, decode,
    elf::{Elf, Symbols},
    openssl,
};

/// The symbols to look for in addition to those of OpenSSL. No other library defines them.
pub(super) const SYMBOLS: &[&str] = &["SSL_CTX_set_grease_enabled", "BORINGSSL_self_test"];

/// Returns `None` if the file holds neither its libssl nor its libcrypto.
pub(super) fn inspect(elf: &Elf<'_>, symbols: &Symbols) -> Option<Inspection> {
    SYMBOLS.iter().any(|name| symbols.has(name)).then_some(())?;
    let mut inspection = Inspection::new(Library::BoringSsl);
    inspection.bio = openssl::bio(elf, symbols);
    if let Some(error) = symbols.address("ERR_put_error") {
        inspection.point(elf, ProbeKind::ErrorPut, error, None);
    }
    let Some(handshake) = symbols.address("SSL_do_handshake") else {
        symbols.has("BIO_s_socket").then_some(())?;
        inspection.is_companion = true;
        return Some(inspection);
    };
    // Reads and writes also call it until the handshake is complete.
    inspection.around(elf, handshake, None);
    if let Some(free) = symbols.address("SSL_free") {
        inspection.point(elf, ProbeKind::Free, free, None);
    }
    let mut of = Accessors::new(elf, symbols);
    let version = version(&of);
    inspection.target.version = of.known("SSL_version", version);
    let random = openssl::client_random(&of);
    inspection.target.random = of.known("SSL_get_client_random", random);
    inspection.rbio = of.field("SSL_get_rbio", &[8]);
    of.report(&mut inspection, "the version and the connection, unless the handshake is seen on the wire");
    openssl::know_socket(&mut inspection);
    inspection.gap(
        "accessors that only read a field",
        "role, class and early data, unless the handshake is seen on the wire",
    );
    Some(inspection)
}

/// The object's own field; another one is returned while there is early data.
fn version(of: &Accessors<'_, '_>) -> Option<Path> {
    let mut returned = of.trace("SSL_version")?.returned;
    returned.retain(|field| field.hops == 0 && field.width == 2);
    decode::only(&returned)
}
