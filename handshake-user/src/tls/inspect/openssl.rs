//! OpenSSL 1.1.1 and 3, in libssl and libcrypto or linked into a program that keeps its symbols.

use handshake_common::{
    class::{Library, Role},
    tls::target::Path,
};

use super::{
    Accessors, Hook, Inspection, decode,
    elf::{Elf, Symbol, Symbols},
    through,
};

/// What is looked for.
pub const SYMBOLS: &[&str] = &[
    "SSL_do_handshake",
    "SSL_free",
    "TLS_method",
    "TLS_server_method",
    "TLS_client_method",
    "SSL_version",
    "SSL_is_server",
    "SSL_get_state",
    "SSL_in_init",
    "SSL_in_before",
    "SSL_session_reused",
    "SSL_get_early_data_status",
    "SSL_get_rbio",
    "SSL_get_client_random",
    "SSL_get_server_random",
    "SSL_get_session",
    "SSL_SESSION_get0_cipher",
    "SSL_CIPHER_get_id",
    "ERR_vset_error",
    "ERR_put_error",
    "BIO_s_socket",
    "BIO_method_type",
];

/// `BIO_TYPE_SOCKET`: 5, a source or sink, with a descriptor (include/openssl/bio.h).
const BIO_TYPE_SOCKET: u64 = 0x0505;
/// How far apart members of `OSSL_STATEM` are at most.
const STATE_MACHINE: u16 = 0x80;

/// Where a BIO keeps what tells its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bio {
    /// The type of its method.
    kind: Path,
    /// Its number, which is the file descriptor.
    number: Path,
}

/// `None`: neither libssl nor libcrypto is in this file.
pub fn inspect(elf: &Elf<'_>, symbols: &Symbols) -> Option<Inspection> {
    let mut inspection = Inspection::new(Library::OpenSsl);
    inspection.bio = bio(elf, symbols);
    if let Some(handshake) = symbols.address("SSL_do_handshake") {
        library(&mut inspection, elf, symbols, handshake);
        know_socket(&mut inspection);
    } else {
        symbols.has("BIO_s_socket").then_some(())?;
        inspection.is_companion = true;
    }
    inspection.description = elf.text_with_version("OpenSSL ").map(str::to_owned);
    // Every error passes here in OpenSSL 3: those of the state machine do not go through `ERR_set_error`.
    if let Some(error) = symbols.address("ERR_vset_error") {
        inspection.point(elf, Hook::Error, error, None);
    } else if let Some(error) = symbols.address("ERR_put_error") {
        inspection.point(elf, Hook::ErrorPut, error, None);
    }
    Some(inspection)
}

fn library(inspection: &mut Inspection, elf: &Elf<'_>, symbols: &Symbols, handshake: u64) {
    fields(inspection, elf, symbols);
    if let Some(machine) = StateMachine::find(elf, symbols) {
        match machine.shared(elf) {
            // The object itself tells the role.
            Some(both) if inspection.target.server.is_known() => inspection.around(elf, both, None),
            _ => {
                inspection.around(elf, machine.accept, Some(Role::Server));
                inspection.around(elf, machine.connect, Some(Role::Client));
            }
        }
    } else {
        inspection.around(elf, handshake, None);
        inspection.gap(
            "the functions of the handshake's state machine",
            "handshakes that begin inside SSL_read or SSL_write",
        );
    }
    if let Some(free) = symbols.address("SSL_free") {
        inspection.point(elf, Hook::Free, free, None);
    }
}

/// `ossl_statem_accept` and `ossl_statem_connect`, local functions that run while a handshake is under way, however it
/// was begun. (ssl/statem/statem.c)
struct StateMachine {
    accept: u64,
    connect: u64,
}

impl StateMachine {
    /// They stand in the `SSL_METHOD`s. The method for both roles has both, those for one role have another function
    /// in place of the other's. (ssl/methods.c)
    fn find(elf: &Elf<'_>, symbols: &Symbols) -> Option<Self> {
        /// So many words belong to the structure in every version.
        const WORDS: usize = 16;
        let method = |function| {
            let returned = decode::trace(elf, symbols.get(function)?);
            elf.pointers::<WORDS>(decode::only(&returned.constants)?)
        };
        let [both, server, client] =
            [method("TLS_method")?, method("TLS_server_method")?, method("TLS_client_method")?];
        let sole = |like: &[u64; WORDS], unlike: &[u64; WORDS]| {
            let slots: Vec<_> =
                (0..WORDS).filter(|&slot| both[slot] == like[slot] && both[slot] != unlike[slot]).collect();
            let function = both[decode::only(&slots)?];
            elf.code(function).map(|_| function)
        };
        let (accept, connect) = (sole(&server, &client)?, sole(&client, &server)?);
        (accept != connect).then_some(Self { accept, connect })
    }

    /// Both go on in `state_machine` unless the object is not fit for it, and that begins with a push, which is much
    /// cheaper to probe.
    fn shared(&self, elf: &Elf<'_>) -> Option<u64> {
        let [accept, connect] = [self.accept, self.connect].map(|function| decode::tails(elf, function));
        let both = decode::only(&accept)?;
        (connect == accept && both != self.accept && both != self.connect).then_some(both)
    }
}

fn fields(inspection: &mut Inspection, elf: &Elf<'_>, symbols: &Symbols) {
    let mut of = Accessors::new(elf, symbols);
    let target = &mut inspection.target;
    target.version = of.field("SSL_version", &[4]);
    target.server = of.field("SSL_is_server", &[4]);
    target.hand_state = of.field("SSL_get_state", &[4]);
    target.in_init = of.field("SSL_in_init", &[4]);
    let flow_state = flow_state(&of, target.hand_state);
    target.flow_state = of.known("SSL_in_before", flow_state);
    target.resumed = of.field("SSL_session_reused", &[4]);
    target.early_data = of.field("SSL_get_early_data_status", &[4]);
    let random = client_random(&of);
    target.random = of.known("SSL_get_client_random", random);
    let session = of.field("SSL_get_session", &[8]);
    let cipher = of.field("SSL_SESSION_get0_cipher", &[8]);
    let id = of.field("SSL_CIPHER_get_id", &[4]);
    target.cipher = through(cipher, id).and_then(|id| through(session, id)).unwrap_or(Path::UNKNOWN);
    inspection.rbio = of.field("SSL_get_rbio", &[8]);
    of.report(inspection, "what they tell of a handshake; its class may be unknown");

    let target = &mut inspection.target;
    let states = [target.hand_state, target.in_init, target.flow_state];
    let is_near =
        |other: Path| other.hops == 0 && other.steps[0].abs_diff(states[0].steps[0]) < STATE_MACHINE;
    let are_different = states[0] != states[1] && states[0] != states[2] && states[1] != states[2];
    if states.iter().all(Path::is_known) && !(states.iter().all(|&state| is_near(state)) && are_different) {
        [target.hand_state, target.in_init, target.flow_state] = [Path::UNKNOWN; 3];
        inspection.gap("a plausible state of the handshake", "when a handshake is complete");
    }
}

/// `SSL_in_before` looks at two states; one of them is `hand_state`. What any of these functions looks at is the
/// type of the object.
fn flow_state(of: &Accessors<'_, '_>, hand_state: Path) -> Option<Path> {
    let others = of.trace("SSL_in_init")?.loads;
    let mut loads = of.trace("SSL_in_before")?.loads;
    loads.contains(&hand_state).then_some(())?;
    loads.retain(|load| *load != hand_state && load.width == 4 && !others.contains(load));
    decode::only(&loads)
}

/// The address from which it is copied. The server's random lies just before it in every version, which makes sure of it.
fn client_random(of: &Accessors<'_, '_>) -> Option<Path> {
    const LENGTH: u16 = 32;
    let servers = of.trace("SSL_get_server_random")?.addresses;
    let clients = of.trace("SSL_get_client_random")?.addresses;
    let mut found = clients.into_iter().filter(|client| {
        servers.iter().any(|server| {
            let mut behind = *server;
            let last = usize::from(behind.hops);
            behind.steps[last] += LENGTH;
            behind == *client
        })
    });
    let random = found.next().filter(|_| found.next().is_none())?;
    Some(Path { width: 32, ..random })
}

/// Where a BIO keeps its number: what the socket's functions hand on to `read` and `write` first of all.
fn bio(elf: &Elf<'_>, symbols: &Symbols) -> Option<Bio> {
    /// `bwrite` and `bread`, in the old form and in the one that counts in `size_t`. (include/internal/bio.h)
    const WORDS: usize = 6;
    let kind = Accessors::new(elf, symbols).field("BIO_method_type", &[4]);
    let method = decode::trace(elf, symbols.get("BIO_s_socket")?).constants;
    let functions = elf.pointers::<WORDS>(decode::only(&method)?)?;
    let mut numbers = Vec::new();
    for &function in functions[2..].iter().filter(|&&function| elf.code(function).is_some()) {
        for field in decode::trace(elf, Symbol { address: function, size: 0 }).handed_on {
            if field.hops == 0 && field.width == 4 && !numbers.contains(&field) {
                numbers.push(field);
            }
        }
    }
    let number = decode::only(&numbers)?;
    kind.is_known().then_some(Bio { kind, number })
}

/// The file descriptor of the BIO that an SSL reads from; the BIO is an ordinary socket where the guard holds.
pub fn know_socket(inspection: &mut Inspection) {
    let Some(bio) = inspection.bio else { return };
    if let Some(fd) = through(inspection.rbio, bio.number)
        && let Some(guard) = through(inspection.rbio, bio.kind)
    {
        inspection.target.fd = fd;
        inspection.target.fd_guard = guard;
        inspection.target.fd_guard_value = BIO_TYPE_SOCKET;
    }
}
