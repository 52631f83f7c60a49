//! ServerHello and HelloRetryRequest (RFC 8446 §4.1.3, §4.1.4; RFC 5246 §7.4.1.3): what the server chose.

use handshake_common::{TlsVersion, tls::wire::record::handshake};

use super::{
    client_hello::body,
    extensions::{Extensions, Protocols, kind},
    reader::Reader,
};

/// The random of a ServerHello that is a HelloRetryRequest: the SHA-256 of that word (RFC 8446 §4.1.3).
pub const HELLO_RETRY_RANDOM: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91, 0xc2,
    0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];

/// One ServerHello, which borrows from the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerHello<'a> {
    /// The version as on the wire: `supported_versions`, else `legacy_version`.
    pub version: u16,
    /// Random.
    pub random: [u8; 32],
    /// In TLS 1.3 always the client's session id; before that, the client's if that session is resumed, else
    /// one chosen by the server, or none.
    pub session_id: &'a [u8],
    /// The cipher suite.
    pub cipher: u16,
    /// The group of the server's key share; in a HelloRetryRequest, the one that the server wants.
    pub group: Option<u16>,
    /// The server accepted the client's pre-shared key.
    pub pre_shared_key: bool,
    /// The application protocol (TLS 1.2 and before; encrypted in TLS 1.3).
    pub protocol: Option<&'a [u8]>,
}

impl<'a> ServerHello<'a> {
    /// Parses a handshake message including its header; bytes after the message are ignored. Returns `None`
    /// if it is not a ServerHello, is truncated, or is malformed.
    #[must_use]
    pub fn parse(message: &'a [u8]) -> Option<Self> {
        let mut reader = body(message, handshake::SERVER_HELLO)?;
        let mut hello = Self {
            version: reader.u16()?,
            random: reader.array()?,
            session_id: reader.vector8()?,
            cipher: reader.u16()?,
            group: None,
            pre_shared_key: false,
            protocol: None,
        };
        let _compression = reader.u8()?;
        if hello.session_id.len() > 32 {
            return None;
        }
        for extension in Extensions::read(reader)? {
            let (kind, body) = extension?;
            hello.extend(kind, body)?;
        }
        Some(hello)
    }

    fn extend(&mut self, kind: u16, mut body: Reader<'a>) -> Option<()> {
        match kind {
            kind::SUPPORTED_VERSIONS => self.version = body.u16()?,
            kind::KEY_SHARE => self.group = Some(body.u16()?),
            kind::PRE_SHARED_KEY => self.pre_shared_key = true,
            kind::ALPN => self.protocol = Some(Protocols::read(body)?.iter().next()?),
            _ => {}
        }
        Some(())
    }

    /// Whether it is a HelloRetryRequest, which asks the client to start over.
    #[must_use]
    pub fn is_hello_retry(&self) -> bool {
        self.random == HELLO_RETRY_RANDOM
    }

    /// The version, if it is known.
    #[must_use]
    pub const fn tls_version(&self) -> Option<TlsVersion> {
        match self.version {
            0x0301 => Some(TlsVersion::Tls10),
            0x0302 => Some(TlsVersion::Tls11),
            0x0303 => Some(TlsVersion::Tls12),
            0x0304 => Some(TlsVersion::Tls13),
            _ => None,
        }
    }
}
