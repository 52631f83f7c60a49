//! Which TLS library a file holds, what to probe there, and where its session objects keep what is recorded:
//! all of it is read from the very file that will be probed, since no table of versions can know how that
//! file was built.
//!
//! A pure function of the file's bytes, which are untrusted (the file may come from a container) and read
//! within limits.

mod boringssl;
mod decode;
mod elf;
mod exits;
mod frames;
mod gnutls;
mod go;
mod image;
mod mbedtls;
mod nss;
mod openssl;
mod s2n;
#[cfg(test)]
mod sample;
mod wolfssl;

use std::{fs::File, os::unix::fs::MetadataExt as _};

use handshake_common::{
    tls::library::target::{Base, COOKIE_CLIENT, COOKIE_SERVER, Path, Target},
    vocabulary::{Library, Role},
};

pub use self::image::InspectError;
use self::{
    elf::{Elf, Symbols},
    image::Image,
};

/// What a probe observes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProbeKind {
    /// Entry of a function that advances the handshake; the session object is its first argument.
    Enter,
    /// An exit of that function; the result is an `int`.
    Leave,
    /// Entry of the function that frees the session object, or one of its references.
    Free,
    /// Entry of OpenSSL 3's `ERR_vset_error(library, reason, …)`.
    Error,
    /// Entry of `ERR_put_error(library, function, reason, …)` of OpenSSL 1.1.1 and BoringSSL.
    ErrorPut,
    /// Go: inside the handshake function, after its test for completion; the `Conn` is in AX.
    GoEnter,
    /// Go: entry of the function that writes a ClientHello (client; the message is in AX) or reads it
    /// (server; the bytes are in BX).
    GoHello,
    /// Go: a RET instruction of that function; the `error` is in AX and BX.
    GoLeave,
}

/// One place to probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// What it observes.
    pub hook: ProbeKind,
    /// Its offset in the file, bytes.
    pub offset: u64,
    /// The role of the session object, if the function implies it.
    pub role: Option<Role>,
    /// At an exit: where the stack pointer of the entry is found, and the register that holds the result.
    pub exit: Option<(Base, u8)>,
}

impl Point {
    /// The bits of the probe's cookie besides the index of the target.
    #[must_use]
    pub const fn cookie_flags(&self) -> u64 {
        let role = match self.role {
            Some(Role::Server) => COOKIE_SERVER,
            Some(Role::Client) => COOKIE_CLIENT,
            None => 0,
        };
        match self.exit {
            Some((base, result)) => role | base.cookie(result),
            None => role,
        }
    }
}

/// Something that the file does not show, and what is not observed as a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// What the file does not show.
    pub missing: String,
    /// What is not observed as a result.
    pub lost: &'static str,
}

/// What was found in one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// The library.
    pub library: Library,
    /// The version, as the library prints it.
    pub description: Option<String>,
    /// Where to probe it.
    pub points: Vec<Point>,
    /// Where its session objects keep what is recorded.
    pub target: Target,
    /// What the file does not show.
    pub gaps: Vec<Gap>,
    /// Whether handshakes can at least be timed.
    pub covered: bool,
    /// Whether it is only used by a library in another file, as OpenSSL's libcrypto is.
    pub is_companion: bool,
    /// OpenSSL: where an SSL keeps the BIO from which it reads, and where a BIO keeps its socket, if this
    /// file shows it.
    rbio: Path,
    bio: Option<openssl::Bio>,
}

impl Inspection {
    fn new(library: Library) -> Self {
        Self {
            library,
            description: None,
            points: Vec::new(),
            target: Target::opaque(library.code()),
            gaps: Vec::new(),
            covered: false,
            is_companion: false,
            rbio: Path::UNKNOWN,
            bio: None,
        }
    }

    fn point(&mut self, elf: &Elf<'_>, hook: ProbeKind, address: u64, role: Option<Role>) -> bool {
        /// A landing pad, a test, a branch, and the next instruction.
        const BEGINNING: usize = 64;
        let Some(code) = elf.code(address, BEGINNING).filter(|code| !code.is_empty()) else { return false };
        let place = match hook {
            ProbeKind::Free => decode::behind_null_test(code, address),
            _ => decode::behind_landing_pad(code, address),
        };
        let Some(offset) = elf.code_offset(place) else { return false };
        self.points.push(Point { hook, offset, role, exit: None });
        true
    }

    /// Probes the entry of a function that advances the handshake, and its exits.
    fn around(&mut self, elf: &Elf<'_>, address: u64, role: Option<Role>) {
        self.around_until(elf, address, role, None);
    }

    /// The same for a function that, once the handshake is complete, ends in a jump to the imported function
    /// `over`.
    fn around_until(&mut self, elf: &Elf<'_>, address: u64, role: Option<Role>, over: Option<&str>) {
        let exits = exits::exits(elf, address, over).unwrap_or_default();
        let exits: Option<Vec<_>> =
            exits.iter().map(|exit| Some((exit, elf.code_offset(exit.address)?))).collect();
        let Some(exits) = exits.filter(|exits| !exits.is_empty()) else {
            return self.gap("all places where its handshake function returns", "all that the library knows");
        };
        if !self.point(elf, ProbeKind::Enter, address, role) {
            return;
        }
        for (exit, offset) in exits {
            // Functions that end in a jump to the same one share its exits.
            if self.points.iter().all(|point| (point.hook, point.offset) != (ProbeKind::Leave, offset)) {
                let exit = Some((exit.base, exit.result));
                self.points.push(Point { hook: ProbeKind::Leave, offset, role, exit });
            }
        }
        self.covered = true;
    }

    fn gap(&mut self, missing: impl Into<String>, lost: &'static str) {
        self.gaps.push(Gap { missing: missing.into(), lost });
    }

    /// Adds what only the library's other file shows, which the same process maps: OpenSSL's libssl does not
    /// show where libcrypto keeps the file descriptor of a BIO.
    pub fn complete_with(&mut self, companion: &Self) {
        if companion.is_companion && self.library == companion.library && self.bio.is_none() {
            self.bio = companion.bio;
            self.description = self.description.take().or_else(|| companion.description.clone());
            openssl::know_socket(self);
        }
    }
}

/// Inspects `file`, an untrusted program or shared library.
///
/// Returns `None` if it holds no known TLS library.
///
/// # Errors
/// If the file cannot be read, exceeds a limit, or changes in the meantime.
pub fn inspect_file(file: &File) -> Result<Option<Inspection>, InspectError> {
    let before = FileState::of(file)?;
    let image = Image::open(file, before.size)?;
    let inspection = look(&image);
    if FileState::of(file)? != before {
        return Err(InspectError::Changed);
    }
    image.failure().map_or(Ok(inspection), Err)
}

/// The metadata that change when a file is written to.
#[derive(PartialEq, Eq)]
struct FileState {
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileState {
    fn of(file: &File) -> Result<Self, InspectError> {
        let file = file.metadata().map_err(|_| InspectError::Unreadable)?;
        Ok(Self {
            size: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        })
    }
}

/// [`inspect_file`] for bytes in memory, with the same limits.
#[must_use]
pub fn inspect(file: &[u8]) -> Option<Inspection> {
    let image = Image::new(file);
    look(&image).filter(|_| image.failure().is_none())
}

/// The same, but reading in small pieces.
pub(crate) fn inspect_in_pieces(file: &[u8], entries: usize) -> Option<Inspection> {
    let image = Image::in_pieces(file, entries);
    look(&image).filter(|_| image.failure().is_none())
}

fn look(image: &Image<'_>) -> Option<Inspection> {
    let elf = Elf::parse(image)?;
    let symbols = elf.symbols(&symbols());
    LIBRARIES.iter().find_map(|library| (library.inspect)(&elf, &symbols)).or_else(|| go::inspect(&elf))
}

/// The symbols to look for, for all libraries.
pub(crate) fn symbols() -> Vec<&'static str> {
    LIBRARIES.map(|library| library.symbols).concat()
}

/// A library that is recognised by its symbols.
struct Detector {
    symbols: &'static [&'static str],
    inspect: fn(&Elf<'_>, &Symbols) -> Option<Inspection>,
}

/// In the order in which they are tried: BoringSSL also defines OpenSSL's names.
const LIBRARIES: [Detector; 7] = [
    Detector { symbols: boringssl::SYMBOLS, inspect: boringssl::inspect },
    Detector { symbols: openssl::SYMBOLS, inspect: openssl::inspect },
    Detector { symbols: gnutls::SYMBOLS, inspect: gnutls::inspect },
    Detector { symbols: nss::SYMBOLS, inspect: nss::inspect },
    Detector { symbols: wolfssl::SYMBOLS, inspect: wolfssl::inspect },
    Detector { symbols: mbedtls::SYMBOLS, inspect: mbedtls::inspect },
    Detector { symbols: s2n::SYMBOLS, inspect: s2n::inspect },
];

/// Derives fields from accessor functions, and records those that could not be understood.
struct Accessors<'e, 'a> {
    elf: &'e Elf<'a>,
    symbols: &'e Symbols,
    unread: Vec<&'static str>,
}

impl<'e, 'a> Accessors<'e, 'a> {
    fn new(elf: &'e Elf<'a>, symbols: &'e Symbols) -> Self {
        Self { elf, symbols, unread: Vec::new() }
    }

    fn trace(&self, function: &str) -> Option<decode::Trace> {
        Some(decode::trace(self.elf, self.symbols.get(function)?))
    }

    /// The field that `function` returns, if it is of one of these widths.
    fn field(&mut self, function: &'static str, widths: &[u8]) -> Path {
        let field = self.trace(function).and_then(|trace| decode::only(&trace.returned));
        let field = field.filter(|field| widths.contains(&field.width));
        self.known(function, field)
    }

    fn known(&mut self, function: &'static str, field: Option<Path>) -> Path {
        if field.is_none() {
            self.unread.push(function);
        }
        field.unwrap_or(Path::UNKNOWN)
    }

    /// Where `function`, which hands out a text by its address and its length, finds both in the object: the
    /// first of the two fields is a pointer, the second is beside it.
    fn text(&mut self, function: &'static str) -> [Path; 2] {
        let text = self.trace(function).and_then(|trace| {
            let pairs = trace.loads.iter().filter_map(|&start| {
                let last = usize::from(start.hops);
                let mut length = start;
                length.steps[last] = start.steps[last].checked_add(8)?;
                let is_length = |load: &&Path| {
                    (load.steps, load.hops) == (length.steps, length.hops) && matches!(load.width, 4 | 8)
                };
                let length = trace.loads.iter().find(is_length)?;
                Some((through(start, Path::direct(0, 1))?, *length))
            });
            decode::only(&pairs.collect::<Vec<_>>())
        });
        self.known(function, text.map(|(start, _)| start));
        text.map_or([Path::UNKNOWN; 2], |(start, length)| [start, length])
    }

    /// Adds one gap for all functions that could not be understood.
    fn report(self, inspection: &mut Inspection, lost: &'static str) {
        if !self.unread.is_empty() {
            inspection.gap(format!("cannot read the instructions of {}", self.unread.join(", ")), lost);
        }
    }
}

/// The path to `inner`, which starts at the object that the pointer at `outer` refers to.
fn through(outer: Path, inner: Path) -> Option<Path> {
    let hops = outer.hops.checked_add(inner.hops)?.checked_add(1).filter(|&hops| hops <= 2)?;
    (outer.width == 8).then_some(())?;
    let mut steps = outer.steps;
    let behind = usize::from(outer.hops) + 1;
    steps[behind..=usize::from(hops)].copy_from_slice(&inner.steps[..=usize::from(inner.hops)]);
    Some(Path { steps, hops, width: inner.width })
}
