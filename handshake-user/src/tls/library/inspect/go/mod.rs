//! Go's crypto/tls, in programs with symbols and without.

mod handshake;
mod pclntab;
mod types;

use handshake_common::{
    tls::library::target::Path,
    vocabulary::{Library, Role},
};

use self::{pclntab::Functions, types::Structure};
use super::{Inspection, ProbeKind, decode, elf::Elf};

const HANDSHAKE: &str = "crypto/tls.(*Conn).handshakeContext";
/// What a client does once with its ClientHello, and a server with the one that it receives.
const MARSHAL: &str = "crypto/tls.(*clientHelloMsg).marshal";
const UNMARSHAL: &str = "crypto/tls.(*clientHelloMsg).unmarshal";
/// The methods of `*net.TCPConn` as a `net.Conn`, in the order of the interface table.
const TCP_METHODS: [&str; 8] = [
    "net.(*TCPConn).Close",
    "net.(*TCPConn).LocalAddr",
    "net.(*TCPConn).Read",
    "net.(*TCPConn).RemoteAddr",
    "net.(*TCPConn).SetDeadline",
    "net.(*TCPConn).SetReadDeadline",
    "net.(*TCPConn).SetWriteDeadline",
    "net.(*TCPConn).Write",
];
/// What the linker puts in a table in place of a method that is never called.
const UNREACHABLE: &str = "runtime.unreachableMethod";
/// The maximum number of places that hold the address of the first method; there are about five.
const MAX_TABLES: usize = 64;
/// The number of bytes before the methods in an interface table: two pointers and a hash. (Go's
/// internal/abi/iface.go: `ITab`)
const ITAB_METHODS: u64 = 24;

/// Returns `None` if the file is not a Go program, or one without TLS.
pub(super) fn inspect(elf: &Elf<'_>) -> Option<Inspection> {
    let functions = Functions::find(elf)?;
    let [function] = functions.named([HANDSHAKE]);
    let function = function?;
    let mut inspection = Inspection::new(Library::Go);
    inspection.description = version(elf);
    let conn = Structure::with(elf, "crypto/tls", "handshakeMutex");
    // net.Conn is two words, and this field has always followed it.
    let Some(conn) =
        conn.filter(|conn| conn.offset("conn") == Some(0) && conn.offset("isClient") == Some(16))
    else {
        inspection.gap("the description of crypto/tls.Conn", "handshakes of this program");
        return Some(inspection);
    };
    let target = &mut inspection.target;
    let field = |name, width| conn.offset(name).map_or(Path::UNKNOWN, |offset| Path::direct(offset, width));
    target.version = field("vers", 2);
    target.server = field("isClient", 1);
    target.resumed = field("didResume", 1);
    target.hello_retry = field("didHRR", 1);
    target.cipher = field("cipherSuite", 2);
    // A string: its address, and its length.
    if let Some(protocol) = conn.offset("clientProtocol") {
        target.alpn = Path { steps: [protocol, 0, 0], hops: 1, width: 1 };
        target.alpn_length = protocol.checked_add(8).map_or(Path::UNKNOWN, |length| Path::direct(length, 8));
    }
    // Since Go 1.20, and before.
    let complete = conn.offset("isHandshakeComplete").or_else(|| conn.offset("handshakeStatus"));
    target.complete = complete.map_or(Path::UNKNOWN, |offset| Path::direct(offset, 4));
    for (is_known, missing, lost) in [
        (
            target.hello_retry.is_known(),
            "Conn.didHRR (Go before 1.23)",
            "a HelloRetryRequest, unless seen on the wire",
        ),
        (target.resumed.is_known(), "Conn.didResume", "whether a session was resumed"),
    ] {
        if !is_known {
            inspection.gap(missing, lost);
        }
    }
    if let Some(points) = complete.and_then(|complete| handshake::probe_points(elf, function, complete)) {
        inspection.covered = inspection.point(elf, ProbeKind::GoEnter, points.enter, None);
        for leave in points.leave {
            inspection.point(elf, ProbeKind::GoLeave, leave, None);
        }
    } else {
        inspection.gap(format!("a place to probe in {HANDSHAKE}"), "handshakes of this program");
    }
    let socket = socket(&mut inspection, elf, &functions);
    let random = random(&mut inspection, elf, &functions);
    if socket.is_none() && random.is_none() {
        inspection.gap("the socket of a crypto/tls.Conn, and its ClientHello", "the connection");
    } else if socket.is_none() {
        inspection.gap(
            "the socket of a crypto/tls.Conn",
            "the connection, unless the handshake is seen on the wire",
        );
    }
    Some(inspection)
}

/// ClientHello.random is what ties a connection that is wrapped in another type, or is in a
/// position-independent program, to what the wire shows.
fn random(inspection: &mut Inspection, elf: &Elf<'_>, functions: &Functions<'_>) -> Option<()> {
    // `random` is a slice: its address comes first.
    let message = Structure::with(elf, "crypto/tls", "pskModes")?;
    inspection.target.random = Path { steps: [message.offset("random")?, 0, 0], hops: 1, width: 32 };
    let [marshal, unmarshal] = functions.named([MARSHAL, UNMARSHAL]);
    for (function, role) in [(marshal?, Role::Client), (unmarshal?, Role::Server)] {
        inspection.point(elf, ProbeKind::GoHello, function.entry, Some(role)).then_some(())?;
    }
    Some(())
}

/// `Conn.conn` is a `*net.TCPConn` if its interface table is that type's, and then leads to the descriptor:
/// `TCPConn.fd` is a `*netFD`. Only in a fixed-address program do the tables have a fixed address.
fn socket(inspection: &mut Inspection, elf: &Elf<'_>, functions: &Functions<'_>) -> Option<()> {
    elf.is_fixed.then_some(())?;
    let methods = functions.named(TCP_METHODS).map(|method| method.map(|method| method.entry));
    let [unreachable] =
        functions.named([UNREACHABLE]).map(|function| function.map(|function| function.entry));
    let is_ours = |table: [u64; TCP_METHODS.len()]| {
        table.iter().zip(methods).all(|(&slot, method)| Some(slot) == method || Some(slot) == unreachable)
    };
    let mut tables = elf.references(&[methods[0]?], MAX_TABLES);
    tables.retain(|&table| elf.pointers(table).is_some_and(is_ours));
    let itab = decode::only(&tables)?.checked_sub(ITAB_METHODS)?;
    let pfd = Structure::with(elf, "net", "pfd")?.offset("pfd")?;
    let number = Structure::with(elf, "internal/poll", "Sysfd")?.offset("Sysfd")?;
    inspection.target.fd = Path { steps: [8, 0, pfd.checked_add(number)?], hops: 2, width: 4 };
    inspection.target.fd_guard = Path::direct(0, 8);
    inspection.target.fd_guard_value = itab;
    Some(())
}

/// The version as `go version` prints it (Go's debug/buildinfo).
fn version(elf: &Elf<'_>) -> Option<String> {
    const MAGIC: &[u8] = b"\xff Go buildinf:";
    const FLAGS: usize = 15;
    const IS_INLINE: u8 = 2;
    const TEXT: usize = 32;
    const MAX: usize = TEXT + 1 + 0x7f;
    let range = elf.section(".go.buildinfo")?.range;
    let data = elf.image.bytes(range.start, usize::try_from(range.end - range.start).ok()?.min(MAX))?;
    (data.starts_with(MAGIC) && data.get(FLAGS)? & IS_INLINE != 0).then_some(())?;
    let length = *data.get(TEXT)?;
    (length < 0x80).then_some(())?;
    let text = str::from_utf8(data.get(TEXT + 1..)?.get(..usize::from(length))?).ok()?;
    text.bytes().all(|byte| matches!(byte, b' '..=b'~')).then(|| text.to_owned())
}
