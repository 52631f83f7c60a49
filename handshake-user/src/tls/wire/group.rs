//! Key exchange groups (IANA, TLS Supported Groups).

/// The name in the registry. Returns `None` if the group is not in this table.
#[must_use]
pub const fn name(group: u16) -> Option<&'static str> {
    Some(match group {
        23 => "secp256r1",
        24 => "secp384r1",
        25 => "secp521r1",
        29 => "x25519",
        30 => "x448",
        31 => "brainpoolP256r1tls13",
        32 => "brainpoolP384r1tls13",
        33 => "brainpoolP512r1tls13",
        41 => "curveSM2",
        256 => "ffdhe2048",
        257 => "ffdhe3072",
        258 => "ffdhe4096",
        259 => "ffdhe6144",
        260 => "ffdhe8192",
        512 => "MLKEM512",
        513 => "MLKEM768",
        514 => "MLKEM1024",
        4587 => "SecP256r1MLKEM768",
        4588 => "X25519MLKEM768",
        4589 => "SecP384r1MLKEM1024",
        25497 => "X25519Kyber768Draft00",
        _ => return None,
    })
}

/// Whether the group resists attacks by quantum computers.
#[must_use]
pub const fn is_post_quantum(group: u16) -> bool {
    matches!(group, 512..=514 | 4587..=4589 | 25497)
}
