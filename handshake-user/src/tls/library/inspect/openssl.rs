//! OpenSSL 1.1.1 and 3, in libssl and libcrypto or linked into a program that keeps its symbols.

use std::ops::ControlFlow;

use handshake_common::{
    tls::library::target::{Path, Statem},
    vocabulary::{Library, Role},
};

use super::{
    Accessors, Inspection, ProbeKind, decode,
    elf::{Elf, Machine, Symbol, Symbols},
    through,
};

/// The symbols to look for.
pub(super) const SYMBOLS: &[&str] = &[
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
    "SSL_get0_alpn_selected",
    "ERR_vset_error",
    "ERR_put_error",
    "BIO_s_socket",
    "BIO_method_type",
];

/// `BIO_TYPE_SOCKET`: 5, a source or sink, with a descriptor (include/openssl/bio.h).
const BIO_TYPE_SOCKET: u64 = 0x0505;

/// The fields of a BIO that lead to its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bio {
    /// The type of its method.
    kind: Path,
    /// Its `num`, which is the file descriptor.
    number: Path,
}

/// Returns `None` if the file contains neither libssl nor libcrypto.
pub(super) fn inspect(elf: &Elf<'_>, symbols: &Symbols) -> Option<Inspection> {
    let mut inspection = Inspection::new(Library::OpenSsl);
    inspection.bio = bio(elf, symbols);
    if let Some(handshake) = symbols.address("SSL_do_handshake") {
        library(&mut inspection, elf, symbols, handshake);
        know_socket(&mut inspection);
    } else {
        symbols.has("BIO_s_socket").then_some(())?;
        inspection.is_companion = true;
    }
    inspection.description = elf.text_with_version("OpenSSL ");
    errors(&mut inspection, elf, symbols);
    Some(inspection)
}

/// The function through which every error passes that ends a handshake: `ossl_statem_fatal` calls it with the
/// reason. (OpenSSL 3; 1.1.1)
const ERRORS: [(&str, ProbeKind); 2] =
    [("ERR_vset_error", ProbeKind::Error), ("ERR_put_error", ProbeKind::ErrorPut)];
/// The maximum number of call sites: a linker's stub is one; a library without stubs has a thousand calls of
/// `ERR_put_error`.
const MAX_CALLS: usize = 8;

/// In every handshake libcrypto itself raises about ten errors without consequences, and a probe hit on each
/// costs as much as one on the handshake's own calls. Therefore errors are observed where libssl calls
/// libcrypto, if those places can be determined.
fn errors(inspection: &mut Inspection, elf: &Elf<'_>, symbols: &Symbols) {
    let can_tell = elf.machine == Machine::X86_64;
    let defined = ERRORS.iter().find_map(|&(name, hook)| Some((symbols.address(name)?, hook)));
    if let Some((address, hook)) = defined {
        if !(can_tell && inspection.is_companion) {
            inspection.point(elf, hook, address, None);
        }
        return;
    }
    if !can_tell {
        return;
    }
    for (name, hook) in ERRORS {
        let Some(slot) = elf.import(name) else { continue };
        let calls = calls_through(elf, slot);
        if (1..=MAX_CALLS).contains(&calls.len()) {
            for call in calls {
                inspection.point(elf, hook, call, None);
            }
            return;
        }
    }
    inspection.gap("where it raises errors", "the reason of failures");
}

/// Where the file calls through the pointer at `slot`. Beyond [`MAX_CALLS`] the list is incomplete.
fn calls_through(elf: &Elf<'_>, slot: u64) -> Vec<u64> {
    /// The longest form with a prefix, minus one byte.
    const AHEAD: usize = 6;
    let mut calls = Vec::new();
    elf.scan_code(AHEAD, |address, code, own| {
        let found = decode::through_pointer(code, address, slot);
        calls.extend(found.into_iter().filter(|call| call - address < own as u64));
        // A prefix at the end of the previous piece belongs to the instruction that seems to begin in this
        // one.
        calls.dedup_by(|later, earlier| *later == *earlier + 1);
        if calls.len() > MAX_CALLS { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    calls
}

fn library(inspection: &mut Inspection, elf: &Elf<'_>, symbols: &Symbols, handshake: u64) {
    fields(inspection, elf, symbols);
    if let Some(machine) = StateMachine::find(elf, symbols) {
        match machine.shared(elf) {
            // The object itself shows the role.
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
        inspection.point(elf, ProbeKind::Free, free, None);
    }
}

/// `ossl_statem_accept` and `ossl_statem_connect`, local functions that run while a handshake is in progress,
/// however it was started. (ssl/statem/statem.c)
struct StateMachine {
    accept: u64,
    connect: u64,
}

impl StateMachine {
    /// They are members of the `SSL_METHOD`s. The method for both roles has both; those for one role have
    /// another function in place of the other role's. (ssl/methods.c)
    fn find(elf: &Elf<'_>, symbols: &Symbols) -> Option<Self> {
        /// The number of words that the structure has in every version.
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
            elf.is_code(function).then_some(function)
        };
        let (accept, connect) = (sole(&server, &client)?, sole(&client, &server)?);
        (accept != connect).then_some(Self { accept, connect })
    }

    /// Both continue in `state_machine` unless the object is unsuitable, and that function begins with a
    /// push, which is much cheaper to probe.
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
    let hand_state = of.field("SSL_get_state", &[4]);
    let in_init = of.field("SSL_in_init", &[4]);
    let flow_state = flow_state(&of, hand_state);
    let flow_state = of.known("SSL_in_before", flow_state);
    target.resumed = of.field("SSL_session_reused", &[4]);
    target.early_data = of.field("SSL_get_early_data_status", &[4]);
    let random = client_random(&of);
    target.random = of.known("SSL_get_client_random", random);
    let session = of.field("SSL_get_session", &[8]);
    let cipher = of.field("SSL_SESSION_get0_cipher", &[8]);
    let id = of.field("SSL_CIPHER_get_id", &[4]);
    target.cipher = through(cipher, id).and_then(|id| through(session, id)).unwrap_or(Path::UNKNOWN);
    [target.alpn, target.alpn_length] = of.text("SSL_get0_alpn_selected");
    inspection.rbio = of.field("SSL_get_rbio", &[8]);
    of.report(inspection, "what they tell of a handshake; its class may be unknown");

    match Statem::at(flow_state, hand_state, in_init) {
        Some(statem) => inspection.target.statem = statem,
        None if [flow_state, hand_state, in_init].iter().all(Path::is_known) => {
            inspection.gap("a plausible state of the handshake", "when a handshake is complete");
        }
        // Anything missing is listed among the gaps.
        None => {}
    }
}

/// `SSL_in_before` reads two states, one of which is `hand_state`. All of these functions also read the type
/// of the object.
fn flow_state(of: &Accessors<'_, '_>, hand_state: Path) -> Option<Path> {
    let others = of.trace("SSL_in_init")?.loads;
    let mut loads = of.trace("SSL_in_before")?.loads;
    loads.contains(&hand_state).then_some(())?;
    loads.retain(|load| *load != hand_state && load.width == 4 && !others.contains(load));
    decode::only(&loads)
}

/// The address from which it is copied. The server random directly precedes it in every version, which
/// confirms the result.
pub(super) fn client_random(of: &Accessors<'_, '_>) -> Option<Path> {
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

/// The field in which a BIO keeps its descriptor: the first argument that the socket functions pass to `read`
/// and `write`.
pub(super) fn bio(elf: &Elf<'_>, symbols: &Symbols) -> Option<Bio> {
    /// `bwrite` and `bread`, in the old form and in the one with `size_t` lengths. (include/internal/bio.h)
    const WORDS: usize = 6;
    let kind = Accessors::new(elf, symbols).field("BIO_method_type", &[4]);
    let method = decode::trace(elf, symbols.get("BIO_s_socket")?).constants;
    let functions = elf.pointers::<WORDS>(decode::only(&method)?)?;
    let mut numbers = Vec::new();
    for &function in functions[2..].iter().filter(|&&function| elf.is_code(function)) {
        for field in decode::trace(elf, Symbol { address: function, size: 0 }).handed_on {
            if field.hops == 0 && field.width == 4 && !numbers.contains(&field) {
                numbers.push(field);
            }
        }
    }
    let number = decode::only(&numbers)?;
    kind.is_known().then_some(Bio { kind, number })
}

/// The file descriptor of the BIO from which an SSL reads; the guard ensures that the BIO is an ordinary
/// socket.
pub(super) fn know_socket(inspection: &mut Inspection) {
    let Some(bio) = inspection.bio else { return };
    if let Some(fd) = through(inspection.rbio, bio.number)
        && let Some(guard) = through(inspection.rbio, bio.kind)
    {
        inspection.target.fd = fd;
        inspection.target.fd_guard = guard;
        inspection.target.fd_guard_value = BIO_TYPE_SOCKET;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::library::inspect::{inspect, sample};

    /// `mov 0x..(%rdi),%eax; ret`
    fn field(offset: u8) -> Vec<u8> {
        vec![0x8b, 0x47, offset, 0xc3]
    }

    /// `mov $address,%eax; ret`
    fn constant(index: usize) -> Vec<u8> {
        let address = u32::try_from(sample::address(index)).unwrap().to_le_bytes();
        [&[0xb8], address.as_slice(), &[0xc3]].concat()
    }

    /// A method with these words at `0x28` and `0x30`.
    fn method(accept: usize, connect: usize) -> [Vec<u8>; 2] {
        let words = [0, 0, 0, 0, 0, sample::address(accept), sample::address(connect), 0];
        [words.map(u64::to_le_bytes).concat(), vec![0; 64]]
    }

    fn library(both: &[Vec<u8>; 2]) -> Vec<u8> {
        const ACCEPT: usize = 14;
        const CONNECT: usize = 15;
        const UNDEFINED: usize = 16;
        let [server, client] = [method(ACCEPT, UNDEFINED), method(UNDEFINED, CONNECT)];
        let functions = [
            ("SSL_do_handshake", vec![0x53, 0xc3]),
            ("SSL_version", field(0)),
            ("SSL_is_server", field(0x38)),
            ("SSL_get_state", field(0x5c)),
            ("SSL_in_init", field(0x64)),
            ("TLS_method", constant(8)),
            ("TLS_server_method", constant(10)),
            ("TLS_client_method", constant(12)),
            ("", both[0].clone()),
            ("", both[1].clone()),
            ("", server[0].clone()),
            ("", server[1].clone()),
            ("", client[0].clone()),
            ("", client[1].clone()),
            ("", vec![0x53, 0xc3]),
            ("", vec![0x55, 0xc3]),
            ("SSL_free", vec![0x31, 0xc0, 0xc3]),
            // mov 0x5c(%rdi),%eax; mov 0x48(%rdi),%ecx; or %ecx,%eax; ret
            ("SSL_in_before", vec![0x8b, 0x47, 0x5c, 0x8b, 0x4f, 0x48, 0x09, 0xc8, 0xc3]),
        ];
        let functions: Vec<_> = functions.iter().map(|(name, code)| (*name, code.as_slice())).collect();
        sample::file(sample::X86_64, &functions)
    }

    #[test]
    fn state_machine_is_found_through_the_methods() {
        let inspection = inspect(&library(&method(14, 15))).unwrap();
        assert_eq!(inspection.library, Library::OpenSsl);
        let offset = |index| sample::address(index) - sample::BASE;
        let points: Vec<_> =
            inspection.points.iter().map(|point| (point.hook, point.offset, point.role)).collect();
        let expected = [
            (ProbeKind::Enter, offset(14), Some(Role::Server)),
            (ProbeKind::Leave, offset(14) + 1, Some(Role::Server)),
            (ProbeKind::Enter, offset(15), Some(Role::Client)),
            (ProbeKind::Leave, offset(15) + 1, Some(Role::Client)),
            (ProbeKind::Free, offset(16), None),
        ];
        assert_eq!(points, expected);
        assert_eq!(inspection.target.server, Path::direct(0x38, 4));
        let states = [0x48, 0x5c, 0x64].map(|offset| Path::direct(offset, 4));
        assert_eq!(Some(inspection.target.statem), Statem::at(states[0], states[1], states[2]));
        assert!(!inspection.target.early_data.is_known(), "nothing is guessed");
        assert!(inspection.gaps.iter().any(|gap| gap.missing.contains("SSL_get_early_data_status")));
    }

    #[test]
    fn without_plausible_methods_the_handshake_function_is_probed() {
        let inspection = inspect(&library(&method(16, 16))).unwrap();
        assert!(inspection.covered);
        assert_eq!(inspection.points[0].offset, sample::address(0) - sample::BASE);
        assert!(inspection.gaps.iter().any(|gap| gap.lost.contains("SSL_read")));
    }

    #[test]
    fn descriptor_needs_the_companion() {
        let read = [0x8b, 0x7f, 0x38, 0xe8, 0, 0, 0, 0, 0xc3]; // mov 0x38(%rdi),%edi; call
        let mut table = vec![0; 64];
        table[0x18..0x20].copy_from_slice(&sample::address(3).to_le_bytes());
        table[0x28..0x30].copy_from_slice(&sample::address(3).to_le_bytes());
        // mov 0x8(%rdi),%rax; mov (%rax),%eax; ret
        let kind = [0x48, 0x8b, 0x47, 0x08, 0x8b, 0x00, 0xc3];
        let socket = constant(2);
        let functions: [(&str, &[u8]); 4] =
            [("BIO_s_socket", &socket), ("BIO_method_type", &kind), ("", &table), ("", &read)];
        let companion = inspect(&sample::file(sample::X86_64, &functions)).unwrap();
        assert!(companion.is_companion && !companion.covered);
        // mov 0x10(%rdi),%rax; ret
        let rbio = [0x48, 0x8b, 0x47, 0x10, 0xc3];
        let functions: [(&str, &[u8]); 2] = [("SSL_do_handshake", &[0x53, 0xc3]), ("SSL_get_rbio", &rbio)];
        let mut inspection = inspect(&sample::file(sample::X86_64, &functions)).unwrap();
        assert!(!inspection.target.fd.is_known());
        inspection.complete_with(&companion);
        assert_eq!(inspection.target.fd, Path { steps: [0x10, 0x38, 0], hops: 1, width: 4 });
        assert_eq!(inspection.target.fd_guard, Path { steps: [0x10, 8, 0], hops: 2, width: 4 });
        assert_eq!(inspection.target.fd_guard_value, 0x0505);
    }
}
