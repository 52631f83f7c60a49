//! What the kernel side must know of one library file to read a session object: found by user space in the very file
//! that is probed, and handed over in the map `TARGETS`. The cookie of a uprobe is the index there.

/// Name of the map in the eBPF object.
pub const MAP: &str = "TARGETS";

/// How many library files can be probed at once.
pub const MOST_TARGETS: u32 = 1024;

/// The lower bits of a uprobe's cookie are the index of the [`Target`]; this bit above them says that the probed
/// function serves connections as a server, [`COOKIE_CLIENT`] as a client, neither that the object itself tells.
pub const COOKIE_SERVER: u64 = 1 << 32;
/// See [`COOKIE_SERVER`].
pub const COOKIE_CLIENT: u64 = 1 << 33;

/// The way from a session object to one of its fields, through at most two pointers:
/// `*(*(object + steps[0]) + steps[1]) + steps[2]`, of which only the first `hops + 1` steps are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Path {
    /// Byte offsets; between two of them a pointer is followed.
    pub steps: [u16; 3],
    /// How many pointers are followed: 0 to 2. 3 and more: the way is not known.
    pub hops: u8,
    /// Bytes of the field: 1, 2, 4 or 8; 32 for a ClientHello.random.
    pub width: u8,
}

impl Path {
    /// The field cannot be found in this file.
    pub const UNKNOWN: Self = Self { steps: [0; 3], hops: u8::MAX, width: 0 };

    /// A field of the object itself.
    #[must_use]
    pub const fn direct(offset: u16, width: u8) -> Self {
        Self { steps: [offset, 0, 0], hops: 0, width }
    }

    /// Whether the field can be found.
    #[must_use]
    #[inline(always)]
    pub const fn is_known(&self) -> bool {
        self.hops <= 2
    }
}

/// One library file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Target {
    /// Code of the [`crate::Library`].
    pub library: u8,
    /// Always 0; keeps the layout free of padding.
    pub reserved: [u8; 7],
    /// OpenSSL: `ssl->version`, as on the wire (0x0303). GnuTLS: `gnutls_protocol_t`. Go: `Conn.vers`.
    pub version: Path,
    /// Not zero: this end is the server. Go: `Conn.isClient`, not zero: the client.
    pub server: Path,
    /// OpenSSL: `statem.hand_state`; 0 before, 1 complete.
    pub hand_state: Path,
    /// OpenSSL: `statem.in_init`.
    pub in_init: Path,
    /// OpenSSL: `statem.state`; 1 is the error state.
    pub flow_state: Path,
    /// Not zero: the session was resumed.
    pub resumed: Path,
    /// OpenSSL: `ext.early_data`; 0 not sent, 1 rejected, 2 accepted.
    pub early_data: Path,
    /// Not zero: there was a HelloRetryRequest (Go: `Conn.didHRR`).
    pub hello_retry: Path,
    /// The handshake is complete (Go: `Conn.isHandshakeComplete`).
    pub complete: Path,
    /// Cipher suite as on the wire, in the lower 16 bits.
    pub cipher: Path,
    /// ClientHello.random, 32 bytes at the end of the way.
    pub random: Path,
    /// File descriptor of the socket that is read from; only where [`Target::fd_guard`] holds.
    pub fd: Path,
    /// A word that tells that the object behind is an ordinary socket …
    pub fd_guard: Path,
    /// … by having this value (OpenSSL: `BIO_TYPE_SOCKET` 0x0505 at the BIO's method; 0: no guard).
    pub fd_guard_value: u64,
}

const _: () = assert!(size_of::<Target>() == 8 + 13 * 8 + 8, "no padding, and both sides know the size");

impl Target {
    /// A library of which nothing but its name is known: handshakes are timed, their class is unknown.
    #[must_use]
    pub const fn opaque(library: u8) -> Self {
        Self {
            library,
            reserved: [0; 7],
            version: Path::UNKNOWN,
            server: Path::UNKNOWN,
            hand_state: Path::UNKNOWN,
            in_init: Path::UNKNOWN,
            flow_state: Path::UNKNOWN,
            resumed: Path::UNKNOWN,
            early_data: Path::UNKNOWN,
            hello_retry: Path::UNKNOWN,
            complete: Path::UNKNOWN,
            cipher: Path::UNKNOWN,
            random: Path::UNKNOWN,
            fd: Path::UNKNOWN,
            fd_guard: Path::UNKNOWN,
            fd_guard_value: 0,
        }
    }
}

// SAFETY: integers only, repr(C), and no padding (asserted above).
#[cfg(feature = "user")]
unsafe impl aya::Pod for Target {}
