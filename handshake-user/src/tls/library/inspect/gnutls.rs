//! GnuTLS 3.

use handshake_common::{tls::library::target::Path, vocabulary::Library};

use super::{
    Accessors, Inspection, ProbeKind, decode,
    elf::{Elf, Symbol, Symbols},
    through,
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
    "gnutls_alpn_get_selected_protocol",
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
    let protocol = protocol(elf, symbols);
    target.alpn = of.known("gnutls_alpn_get_selected_protocol", protocol.map(|[start, _]| start));
    target.alpn_length = protocol.map_or(Path::UNKNOWN, |[_, length]| length);
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

/// What an extension keeps is behind a pointer in the session's table of extensions. The function has it
/// fetched by the extension's number, and then reads the protocol and its length from there.
fn protocol(elf: &Elf<'_>, symbols: &Symbols) -> Option<[Path; 2]> {
    /// From the pointer to the flag that says whether it is set (`ext_data` of `lib/gnutls_int.h`).
    const FLAG: u16 = 16;
    let function = symbols.get("gnutls_alpn_get_selected_protocol")?;
    let (fetch, extension) = decode::only(&decode::trace(elf, function).calls)?;
    let loads = decode::trace_with(elf, Symbol { address: fetch, size: 0 }, Some(extension)).loads;
    let is_set = |load: &&Path| {
        let flag = load.steps[0].checked_add(FLAG).map(|flag| Path::direct(flag, 1));
        load.hops == 0 && load.width == 8 && flag.is_some_and(|flag| loads.contains(&flag))
    };
    let slot = decode::only(&loads.iter().filter(is_set).copied().collect::<Vec<_>>())?;
    let start = decode::only(&decode::texts(elf, function))?;
    let protocol = through(slot, through(Path::direct(start, 8), Path::direct(0, 1))?)?;
    Some([protocol, through(slot, Path::direct(start.checked_add(8)?, 4))?])
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
