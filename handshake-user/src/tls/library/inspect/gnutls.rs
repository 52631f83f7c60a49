//! GnuTLS 3.

use handshake_common::{tls::library::target::Path, vocabulary::Library};

use super::{
    Accessors, Inspection, ProbeKind, decode,
    elf::{Elf, Symbols},
};

/// The symbols to look for.
pub(super) const SYMBOLS: &[&str] = &[
    "gnutls_handshake",
    "gnutls_deinit",
    "gnutls_protocol_get_version",
    "gnutls_session_is_resumed",
    "gnutls_session_get_desc",
    "gnutls_session_get_master_secret",
    "gnutls_session_get_random",
    "gnutls_transport_get_ptr",
];

/// Returns `None` if the file does not hold this library.
pub(super) fn inspect(elf: &Elf<'_>, symbols: &Symbols) -> Option<Inspection> {
    let handshake = symbols.address("gnutls_handshake")?;
    let mut inspection = Inspection::new(Library::GnuTls);
    // Called again on a TLS 1.3 client, it updates the keys.
    inspection.around_until(elf, handshake, None, Some("gnutls_session_key_update"));
    if let Some(free) = symbols.address("gnutls_deinit") {
        inspection.point(elf, ProbeKind::Free, free, None);
    }
    let mut of = Accessors::new(elf, symbols);
    let target = &mut inspection.target;
    target.version = of.field("gnutls_protocol_get_version", &[4]);
    target.resumed = of.field("gnutls_session_is_resumed", &[1, 4]);
    let entity = entity(&of);
    target.server = of.known("gnutls_session_is_resumed", entity);
    let complete = complete(&of);
    target.complete = of.known("gnutls_session_get_desc", complete);
    let random = client_random(&of);
    target.random = of.known("gnutls_session_get_random", random);
    // A program may set its own functions and pointer here, and a pointer is not a descriptor number.
    target.fd = of.field("gnutls_transport_get_ptr", &[8]);
    of.report(&mut inspection, "what they tell of a handshake; its class may be unknown");
    inspection.gap(
        "functions that tell of a HelloRetryRequest, early data and the cipher suite",
        "these, unless the handshake is seen on the wire",
    );
    Some(inspection)
}

/// `entity`, 1 for the server and 2 for the client: the only integer that the function reads.
fn entity(of: &Accessors<'_, '_>) -> Option<Path> {
    let mut loads = of.trace("gnutls_session_is_resumed")?.loads;
    loads.retain(|load| load.width == 4 && load.hops == 0);
    decode::only(&loads)
}

/// `initial_negotiation_completed`: unless it is set, no description is returned. A handshake after that is a
/// new one.
fn complete(of: &Accessors<'_, '_>) -> Option<Path> {
    let loads = of.trace("gnutls_session_get_desc")?.loads;
    let flag = loads.into_iter().find(|load| load.hops == 0 && load.width == 1)?;
    of.trace("gnutls_handshake")?.loads.contains(&flag).then_some(flag)
}

/// Master secret, client random and server random are adjacent, which confirms the result.
fn client_random(of: &Accessors<'_, '_>) -> Option<Path> {
    const MASTER_SECRET: u16 = 48;
    const RANDOM: u16 = 32;
    let master = decode::only(&of.trace("gnutls_session_get_master_secret")?.addresses)?;
    let randoms = of.trace("gnutls_session_get_random")?.addresses;
    (master.hops == 0).then_some(())?;
    let client = Path::direct(master.steps[0] + MASTER_SECRET, 0);
    let server = Path::direct(client.steps[0] + RANDOM, 0);
    (randoms.contains(&client) && randoms.contains(&server)).then_some(Path { width: 32, ..client })
}
