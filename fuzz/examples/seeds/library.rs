//! Minimal libraries of every kind, and a Go program.

use handshake_fuzz::{
    elf, go,
    image::{AARCH64, X86_64},
    library::{
        CODE, IMPORT, NAMELESS, NO_CHANGE, NO_FRAME, RELOCATION, SLOT, TEXT, common_frame, file,
        function_frame, names, with_frames,
    },
};

use crate::Seed;

const AARCH64_FLAG: u8 = 1;
const FIXED_FLAG: u8 = 2;

pub fn all() -> Vec<Seed> {
    let mut seeds = Vec::new();
    let libraries = [
        ("openssl", openssl(FIXED_FLAG)),
        ("openssl-shared", openssl(0)),
        ("libcrypto", libcrypto()),
        ("boringssl", boringssl()),
        ("gnutls", gnutls()),
        ("wolfssl", wolfssl()),
        ("others", others()),
        ("aarch64", aarch64()),
    ];
    for (name, description) in libraries {
        let bytes = file(&description);
        assert!(elf::inspect(&bytes).is_some(), "{name} is recognized");
        seeds.push(("library", name.to_owned(), description));
        seeds.push(("elf", name.to_owned(), bytes));
    }
    // Terminal controls in place of a version.
    let hostile = program(b"go\x1b[2J\x07");
    assert_eq!(elf::inspect(&go::file(&hostile)).expect("a Go program").description, None);
    seeds.push(("go", "hostile".to_owned(), hostile));
    let program = program(b"go1.24.1");
    let bytes = go::file(&program);
    let inspection = elf::inspect(&bytes).expect("a Go program");
    assert!(inspection.covered && inspection.target.fd.is_known(), "{inspection:?}");
    seeds.push(("go", "program".to_owned(), program));
    seeds.push(("elf", "go".to_owned(), bytes));
    for (name, frames) in [("plain", frames(&[])), ("zR", relative_frames())] {
        let inspection = elf::inspect(&with_frames(&frames)).expect("a library");
        assert!(inspection.covered, "{name}: {inspection:?}");
        seeds.push(("eh_frame", name.to_owned(), frames));
    }
    // DW_CFA_advance_loc 1, def_cfa_offset 16, advance_loc 5, def_cfa_register 6, remember, restore.
    seeds.push(("eh_frame", "changes".to_owned(), frames(&[0x41, 0x0e, 16, 0x45, 0x0d, 6, 0x0a, 0x0b])));
    seeds
}

/// A description under construction.
struct Library(Vec<u8>);

impl Library {
    fn new(flags: u8) -> Self {
        Self(vec![flags])
    }

    fn function(mut self, name: &str, code: &[u8]) -> Self {
        self.entry(name, NO_CHANGE, code);
        self
    }

    fn table(mut self, name: &str, words: &[u64]) -> Self {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.entry(name, NO_FRAME, &bytes);
        self
    }

    fn entry(&mut self, name: &str, frame: u8, code: &[u8]) {
        let number = names().iter().position(|known| *known == name);
        assert!(name.is_empty() || number.is_some(), "{name} is a wanted symbol");
        self.0.push(number.map_or(NAMELESS, |number| u8::try_from(number).unwrap()));
        self.0.push(frame);
        self.0.extend(u16::try_from(code.len()).unwrap().to_le_bytes());
        self.0.extend_from_slice(code);
    }

    /// A pointer to an address of this file, relocated by the loader.
    fn relative(mut self, at: u64, target: u64) -> Self {
        self.0.push(RELOCATION);
        self.0.extend(u16::try_from(at - CODE).unwrap().to_le_bytes());
        self.0.push(0);
        self.0.extend(u16::try_from(target - CODE).unwrap().to_le_bytes());
        self
    }

    /// A pointer to an imported function, stored by the loader.
    fn import(mut self, at: u64, symbol: u16, which: u8) -> Self {
        self.0.extend([IMPORT, which, RELOCATION]);
        self.0.extend(u16::try_from(at - CODE).unwrap().to_le_bytes());
        self.0.push(1);
        self.0.extend(symbol.to_le_bytes());
        self
    }

    fn text(mut self, text: &str) -> Self {
        self.0.extend([TEXT, u8::try_from(text.len()).unwrap()]);
        self.0.extend_from_slice(text.as_bytes());
        self
    }
}

const fn address(index: u64) -> u64 {
    CODE + index * SLOT
}

/// `lea table(%rip),%rax; ret`, as the function with this index.
fn constant(index: u64, table: u64) -> Vec<u8> {
    let by = i32::try_from(address(table) - address(index) - 7).unwrap().to_le_bytes();
    [[0x48, 0x8d, 0x05].as_slice(), &by, &[0xc3]].concat()
}

/// `mov offset(%rdi),%eax; ret`
fn field(offset: u32) -> Vec<u8> {
    [[0x8b, 0x87].as_slice(), &offset.to_le_bytes(), &[0xc3]].concat()
}

/// `mov offset(%rdi),%rax; ret`
fn pointer(offset: u32) -> Vec<u8> {
    [[0x48].as_slice(), &field(offset)].concat()
}

/// `lea offset(%rdi),%rsi; ret`
fn inside(offset: u32) -> Vec<u8> {
    [[0x48, 0x8d, 0xb7].as_slice(), &offset.to_le_bytes(), &[0xc3]].concat()
}

/// `push %rbx; sub %fs:0x28,%rax; jne far; mov %ebx,%eax; pop %rbx; ret`
const CHECKED: [u8; 19] =
    [0x53, 0x64, 0x48, 0x2b, 0x04, 0x25, 0x28, 0, 0, 0, 0x75, 0x04, 0x89, 0xd8, 0x5b, 0xc3, 0x90, 0x90, 0x90];

fn openssl(flags: u8) -> Vec<u8> {
    const SLOT_OF_ERRORS: u64 = 0x2000;
    let (accept, connect, other) = (address(7), address(8), address(9));
    let methods = [[accept, connect], [accept, other], [other, connect]];
    let mut library = Library::new(flags)
        .function("SSL_do_handshake", &CHECKED)
        .function("TLS_method", &constant(1, 4))
        .function("TLS_server_method", &constant(2, 5))
        .function("TLS_client_method", &constant(3, 6));
    for method in methods {
        let mut words = [0; 16];
        words[5..7].copy_from_slice(&method);
        // In a shared library, the loader stores them.
        library = library.table("", if flags & FIXED_FLAG == 0 { &[0; 16] } else { &words });
    }
    let by = i32::try_from(CODE + SLOT_OF_ERRORS - address(7) - 7).unwrap().to_le_bytes();
    let raises = [[0x53, 0xff, 0x15].as_slice(), &by, &[0x5b, 0xc3]].concat();
    library = library
        .function("", &raises)
        .function("", &CHECKED)
        .function("", &[0x55, 0xc3])
        // test %rdi,%rdi; je far; push %r13; pop %r13; ret
        .function("SSL_free", &[0x48, 0x85, 0xff, 0x74, 0x04, 0x41, 0x55, 0x41, 0x5d, 0xc3])
        .function("SSL_version", &[0x8b, 0x07, 0xc3])
        .function("SSL_is_server", &field(0x38))
        .function("SSL_get_state", &field(0x5c))
        .function("SSL_in_init", &field(0x64))
        // mov 0x5c(%rdi),%eax; mov 0x48(%rdi),%ecx; or %ecx,%eax; ret
        .function("SSL_in_before", &[0x8b, 0x47, 0x5c, 0x8b, 0x4f, 0x48, 0x09, 0xc8, 0xc3])
        .function("SSL_session_reused", &field(0x4d0))
        .function("SSL_get_early_data_status", &field(0x600))
        .function("SSL_get_rbio", &pointer(0x10))
        .function("SSL_get_client_random", &inside(0x160))
        .function("SSL_get_server_random", &inside(0x140))
        .function("SSL_get_session", &pointer(0x918))
        .function("SSL_SESSION_get0_cipher", &pointer(0x2f8))
        .function("SSL_CIPHER_get_id", &field(0x18));
    // Symbols are numbered from 1; those without a name are not counted.
    library = library.import(CODE + SLOT_OF_ERRORS, 18, 0).text("OpenSSL 3.0.1 14 Dec 2021");
    if flags & FIXED_FLAG == 0 {
        for (table, method) in (4..).zip(methods) {
            for (word, target) in (5..).zip(method) {
                library = library.relative(address(table) + word * 8, target);
            }
        }
    }
    library.0
}

fn libcrypto() -> Vec<u8> {
    let mut words = [0; 16];
    (words[3], words[5]) = (address(3), address(3));
    Library::new(FIXED_FLAG)
        .function("BIO_s_socket", &constant(0, 2))
        // mov 0x8(%rdi),%rax; mov (%rax),%eax; ret
        .function("BIO_method_type", &[0x48, 0x8b, 0x47, 0x08, 0x8b, 0x00, 0xc3])
        .table("", &words)
        // mov 0x38(%rdi),%edi; call; ret
        .function("", &[0x8b, 0x7f, 0x38, 0xe8, 0, 0, 0, 0, 0xc3])
        .function("ERR_vset_error", &[0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0x5d, 0xc3])
        .text("OpenSSL 3.0.1 14 Dec 2021")
        .0
}

fn boringssl() -> Vec<u8> {
    Library::new(FIXED_FLAG)
        .function("SSL_CTX_set_grease_enabled", &[0xc3])
        .function("SSL_do_handshake", &CHECKED)
        .function("SSL_free", &[0x53, 0x5b, 0xc3])
        // movzwl 0xe0(%rdi),%eax; ret
        .function("SSL_version", &[0x0f, 0xb7, 0x87, 0xe0, 0, 0, 0, 0xc3])
        .function("SSL_get_rbio", &pointer(0x18))
        // mov 0x30(%rdi),%rax; lea 0x30(%rax),%rsi; ret
        .function("SSL_get_client_random", &[0x48, 0x8b, 0x47, 0x30, 0x48, 0x8d, 0x70, 0x30, 0xc3])
        .function("SSL_get_server_random", &[0x48, 0x8b, 0x47, 0x30, 0x48, 0x8d, 0x70, 0x10, 0xc3])
        .function("ERR_put_error", &[0x55, 0x5d, 0xc3])
        .0
}

fn gnutls() -> Vec<u8> {
    Library::new(FIXED_FLAG)
        // cmpb $0,0x50(%rdi); je 1f; jmp far; 1: ret
        .function("gnutls_handshake", &[0x80, 0x7f, 0x50, 0, 0x74, 0x02, 0xeb, 0x00, 0xc3])
        .function("gnutls_deinit", &[0x53, 0x5b, 0xc3])
        .function("gnutls_protocol_get_version", &field(0x20))
        // cmpl $1,8(%rdi); movzbl 0x51(%rdi),%eax; ret
        .function("gnutls_session_is_resumed", &[0x83, 0x7f, 0x08, 1, 0x0f, 0xb6, 0x47, 0x51, 0xc3])
        .function("gnutls_session_get_desc", &[0x80, 0x7f, 0x50, 0, 0xc3])
        .function("gnutls_session_get_master_secret", &inside(0x100))
        // lea 0x130(%rdi),%rax; lea 0x150(%rdi),%rcx; ret
        .function(
            "gnutls_session_get_random",
            &[0x48, 0x8d, 0x87, 0x30, 1, 0, 0, 0x48, 0x8d, 0x8f, 0x50, 1, 0, 0, 0xc3],
        )
        .function("gnutls_transport_get_ptr", &pointer(0x200))
        .0
}

fn wolfssl() -> Vec<u8> {
    Library::new(FIXED_FLAG)
        // with a notrack jmp *%rax
        .function("wolfSSL_accept", &[0x85, 0xff, 0x74, 0x03, 0x3e, 0xff, 0xe0, 0xc3])
        .function("wolfSSL_connect", &CHECKED)
        .function("wolfSSL_free", &[0x53, 0x5b, 0xc3])
        .function("wolfSSL_get_fd", &field(0x40))
        .0
}

/// Libraries with few known symbols.
fn others() -> Vec<u8> {
    Library::new(FIXED_FLAG)
        .function("mbedtls_ssl_handshake", &[0xc3])
        .function("mbedtls_ssl_free", &[0xc3])
        .function("mbedtls_ssl_get_ciphersuite_id_from_ssl", &field(0x10))
        .function("s2n_negotiate", &CHECKED)
        .function("s2n_connection_free", &[0xc3])
        .function("SSL_ForceHandshake", &[0xc3])
        .text("NSS 3.87.1 Basic ECC")
        .text("Mbed TLS 3.6.0")
        .0
}

fn aarch64() -> Vec<u8> {
    let code = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    const RET: u32 = 0xd65f_03c0;
    Library::new(AARCH64_FLAG | FIXED_FLAG)
        // cbz w0, 1f; ret; 1: ret
        .function("SSL_do_handshake", &code(&[0x3400_0040, RET, RET]))
        // bti c; ldr w0, [x0, #1232]; ret
        .function("SSL_session_reused", &code(&[0xd503_245f, 0xb944_d000, RET]))
        // ldr x0, [x0, #248]; cbz x0, 1f; ldr w0, [x0, #8]; ret; 1: mov w0, #255; ret
        .function("SSL_version", &code(&[0xf940_7c00, 0xb400_0060, 0xb940_0800, RET, 0x5280_1fe0, RET]))
        // sub sp, sp, #96; movi v0.4s, #0; str q0, [sp, #16]; ldr w0, [x0, #56]; ret
        .function("SSL_is_server", &code(&[0xd101_83ff, 0x4f00_0400, 0x3d80_07e0, 0xb940_3800, RET]))
        .function("SSL_free", &code(&[0xd503_245f, RET]))
        .0
}

/// An unwind table for the functions of `with_frames`.
fn frames(instructions: &[u8]) -> Vec<u8> {
    let mut frames = common_frame(X86_64);
    frames.extend(function_frame(frames.len(), CODE, 16, instructions));
    frames.extend(function_frame(frames.len(), CODE + SLOT, 3, instructions));
    frames.extend([0; 4]);
    assert_ne!(common_frame(AARCH64), common_frame(X86_64));
    frames
}

/// The same table in the encoding that compilers use: offsets relative to their own position.
fn relative_frames() -> Vec<u8> {
    // The position of the table, which does not depend on its content.
    let at = (CODE + SLOT + 3).next_multiple_of(16);
    let mut frames =
        vec![20, 0, 0, 0, 0, 0, 0, 0, 1, b'z', b'R', 0, 1, 0x78, 16, 1, 0x1b, 0x0c, 7, 8, 0x90, 1, 0, 0];
    for (start, size) in [(CODE, 16_u32), (CODE + SLOT, 3)] {
        let place = frames.len() as u64;
        frames.extend(16_u32.to_le_bytes());
        frames.extend(u32::try_from(place + 4).unwrap().to_le_bytes());
        let distance = i64::try_from(start).unwrap() - i64::try_from(at + place + 8).unwrap();
        frames.extend(i32::try_from(distance).unwrap().to_le_bytes());
        frames.extend(size.to_le_bytes());
        frames.extend([0; 4]);
    }
    frames.extend([0; 4]);
    frames
}

/// A program that resembles the output of `go build` in everything that is inspected.
fn program(version: &[u8]) -> Vec<u8> {
    const TCP: [&str; 8] = [
        "net.(*TCPConn).Close",
        "net.(*TCPConn).LocalAddr",
        "net.(*TCPConn).Read",
        "net.(*TCPConn).RemoteAddr",
        "net.(*TCPConn).SetDeadline",
        "net.(*TCPConn).SetReadDeadline",
        "net.(*TCPConn).SetWriteDeadline",
        "net.(*TCPConn).Write",
    ];
    #[rustfmt::skip]
    let handshake = [
        0x49, 0x3b, 0x66, 0x10, 0x76, 0x16, 0x55, 0x8b, 0x50, 0x28, 0x85, 0xd2, 0x75, 0x08, 0x48, 0x89,
        0x44, 0x24, 0x08, 0x90, 0x5d, 0xc3, 0x31, 0xc0, 0x31, 0xdb, 0x5d, 0xc3, 0xeb, 0xe2,
    ];
    let mut text = vec![0x90; 0x100];
    text[..handshake.len()].copy_from_slice(&handshake);

    let functions: Vec<(&str, u32)> = [("crypto/tls.(*Conn).handshakeContext", 0)]
        .into_iter()
        .chain(TCP.into_iter().zip((0x20..).step_by(0x10)))
        .chain([("runtime.unreachableMethod", 0xf0)])
        .collect();
    const HEADER: usize = 8 + 8 * 8;
    let mut names = vec![0];
    let entries = functions.len() * 8 + 8;
    let (mut table, mut own) = (Vec::new(), Vec::new());
    for (name, entry) in &functions {
        table.extend(entry.to_le_bytes());
        table.extend(u32::try_from(entries + own.len()).unwrap().to_le_bytes());
        own.extend(entry.to_le_bytes());
        own.extend(u32::try_from(names.len()).unwrap().to_le_bytes());
        names.extend_from_slice(name.as_bytes());
        names.push(0);
    }
    table.extend(0x100_u32.to_le_bytes());
    table.extend([0; 4]);
    names.resize(names.len().next_multiple_of(8), 0);
    let mut pclntab = 0xffff_fff1_u32.to_le_bytes().to_vec();
    pclntab.extend([0, 0, 1, 8]);
    let at = [functions.len(), 0, usize::try_from(go::TEXT).unwrap(), HEADER, 0, 0, 0, HEADER + names.len()];
    pclntab.extend(at.map(|word| (word as u64).to_le_bytes()).concat());
    pclntab.extend([names, table, own].concat());

    let mut data = Data(Vec::new());
    data.structure(
        "crypto/tls",
        &[
            ("conn", 0),
            ("isClient", 16),
            ("handshakeMutex", 24),
            ("isHandshakeComplete", 40),
            ("vers", 44),
            ("didResume", 50),
            ("didHRR", 51),
            ("cipherSuite", 52),
        ],
    );
    data.structure("net", &[("pfd", 0)]);
    data.structure("internal/poll", &[("fdmu", 0), ("Sysfd", 16)]);
    data.words(&[0, 0, 0]);
    data.words(&functions[1..9].iter().map(|(_, entry)| go::TEXT + u64::from(*entry)).collect::<Vec<_>>());

    let mut build = b"\xff Go buildinf:\x08\x02".to_vec();
    build.resize(32, 0);
    build.push(u8::try_from(version.len()).unwrap());
    build.extend(version);

    let mut description = vec![0];
    for section in [pclntab, data.0, text, build] {
        description.extend(u16::try_from(section.len()).unwrap().to_le_bytes());
        description.extend(section);
    }
    description
}

/// Go's type descriptors.
struct Data(Vec<u8>);

impl Data {
    fn next(&self) -> u64 {
        go::DATA + self.0.len() as u64
    }

    fn words(&mut self, words: &[u64]) {
        self.0.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    }

    fn name(&mut self, text: &str) -> u64 {
        let at = self.next();
        self.0.extend([1, u8::try_from(text.len()).unwrap()]);
        self.0.extend_from_slice(text.as_bytes());
        at
    }

    fn structure(&mut self, package: &str, fields: &[(&str, u64)]) {
        let package = self.name(package);
        let fields: Vec<_> = fields.iter().map(|(name, offset)| [self.name(name), 0, *offset]).collect();
        self.0.resize(self.0.len().next_multiple_of(8), 0);
        let first = self.next() + 6 * 8;
        let count = fields.len() as u64;
        self.words(&[package, first, count, count, 0, 0]);
        self.words(&fields.concat());
    }
}
