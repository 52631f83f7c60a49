//! The fields of a hello that tell the handshake classes apart (RFC 8446 §4.1.2, §4.1.3).

/// The fixed `ServerHello.random` of a `HelloRetryRequest` (RFC 8446 §4.1.3).
const RETRY: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91, 0xc2,
    0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];

pub(crate) const CLIENT_HELLO: u8 = 1;
pub(crate) const SERVER_HELLO: u8 = 2;
pub(crate) const CERTIFICATE: u8 = 11;
const SERVER_KEY_EXCHANGE: u8 = 12;

const PRE_SHARED_KEY: u16 = 41;
const EARLY_DATA: u16 = 42;
const SUPPORTED_VERSIONS: u16 = 43;
const KEY_SHARE: u16 = 51;

pub(crate) struct Hello {
    is_retry: bool,
    extensions: Vec<u16>,
    group: Option<u16>,
}

impl Hello {
    /// Returns `None` if it is not a hello.
    pub(crate) fn parse(message: &[u8]) -> Option<Self> {
        let (&[kind, _, _, _], rest) = message.split_first_chunk()?;
        let (_version, rest) = rest.split_first_chunk::<2>()?;
        let (random, rest) = rest.split_first_chunk::<32>()?;
        let rest = skip(rest, 1)?;
        let rest = match kind {
            CLIENT_HELLO => skip(skip(rest, 2)?, 1)?,
            SERVER_HELLO => rest.get(3..)?,
            _ => return None,
        };
        let mut rest = rest.get(2..).unwrap_or_default();
        let (mut extensions, mut group) = (Vec::new(), None);
        while let Some((&[high, low], content)) = rest.split_first_chunk() {
            let extension = u16::from_be_bytes([high, low]);
            extensions.push(extension);
            if let (KEY_SHARE, SERVER_HELLO, [_, _, high, low, ..]) = (extension, kind, content) {
                group = Some(u16::from_be_bytes([*high, *low]));
            }
            let Some(next) = skip(content, 2) else { break };
            rest = next;
        }
        Some(Self { is_retry: kind == SERVER_HELLO && *random == RETRY, extensions, group })
    }

    pub(crate) fn is_retry(&self) -> bool {
        self.is_retry
    }

    /// In a `ServerHello`: the version is TLS 1.3.
    pub(crate) fn is_tls13(&self) -> bool {
        self.extensions.contains(&SUPPORTED_VERSIONS)
    }

    /// In a `ServerHello`: the group of its key share, by IANA's name.
    pub(crate) fn group(&self) -> Option<&'static str> {
        self.group.map(group_name)
    }

    /// In a `ServerHello`: the session is resumed.
    pub(crate) fn has_pre_shared_key(&self) -> bool {
        self.extensions.contains(&PRE_SHARED_KEY)
    }

    pub(crate) fn has_early_data(&self) -> bool {
        self.extensions.contains(&EARLY_DATA)
    }
}

fn group_name(group: u16) -> &'static str {
    match group {
        23 => "secp256r1",
        24 => "secp384r1",
        29 => "x25519",
        4588 => "X25519MLKEM768",
        other => panic!("group {other} has no name in this test"),
    }
}

/// The group of a server's key exchange of TLS 1.2 that begins a record, and what it is signed with (RFC 8422
/// §5.4): `ECParameters` come first, then the public key.
pub(crate) fn exchanged(record: &[u8]) -> Option<(&'static str, &'static str)> {
    match *record {
        [SERVER_KEY_EXCHANGE, _, _, _, 3, high, low, ref rest @ ..] => {
            let (&[hash, algorithm], _) = skip(rest, 1)?.split_first_chunk()?;
            Some((group_name(u16::from_be_bytes([high, low])), signature_name(hash, algorithm)))
        }
        _ => None,
    }
}

/// A hash and a signature algorithm (RFC 5246 §7.4.1.4.1), by IANA's name of that scheme. RSASSA-PSS came
/// later, with a number for both (RFC 8446 §4.2.3).
fn signature_name(hash: u8, algorithm: u8) -> &'static str {
    const RSA: u8 = 1;
    const ECDSA: u8 = 3;
    const SHA256: u8 = 4;
    match (hash, algorithm) {
        (SHA256, RSA) => "rsa_pkcs1_sha256",
        (SHA256, ECDSA) => "ecdsa_secp256r1_sha256",
        (5, ECDSA) => "ecdsa_secp384r1_sha384",
        (6, RSA) => "rsa_pkcs1_sha512",
        (6, ECDSA) => "ecdsa_secp521r1_sha512",
        (8, 4) => "rsa_pss_rsae_sha256",
        (8, 5) => "rsa_pss_rsae_sha384",
        (8, 7) => "ed25519",
        other => panic!("signature {other:?} has no name in this test"),
    }
}

/// The bytes behind a vector whose length is in the first `width` bytes. Returns `None` if it is cut off.
fn skip(bytes: &[u8], width: usize) -> Option<&[u8]> {
    let length = bytes.get(..width)?.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
    bytes.get(width + length..)
}
