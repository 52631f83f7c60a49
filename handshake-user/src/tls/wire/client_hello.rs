//! ClientHello (RFC 8446 §4.1.2, RFC 5246 §7.4.1.2): what a client offers.

use handshake_common::tls::wire::record::handshake;

use super::{
    extensions::{Extensions, Protocols, kind},
    reader::{Numbers, Reader},
};

/// One ClientHello, which borrows from the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each says whether an extension is there")]
pub struct ClientHello<'a> {
    /// `legacy_version`: the highest version up to TLS 1.2.
    pub legacy_version: u16,
    /// Random: unique to this handshake, and the same in a second ClientHello.
    pub random: [u8; 32],
    /// `legacy_session_id`: a session to be resumed, or 32 random bytes for middleboxes (TLS 1.3).
    pub session_id: &'a [u8],
    /// Cipher suites in the order of preference.
    pub cipher_suites: Numbers<'a>,
    /// The host that the client wants to reach (RFC 6066 §3), if the name is printable ASCII.
    pub server_name: Option<&'a str>,
    /// Application protocols that the client offers.
    pub protocols: Option<Protocols<'a>>,
    /// `supported_versions`; empty if the client does not support TLS 1.3.
    pub versions: Numbers<'a>,
    /// Groups that the client could use for the key exchange.
    pub groups: Numbers<'a>,
    /// The client sent a list of key shares, possibly empty (TLS 1.3).
    key_shares: Option<&'a [u8]>,
    /// `pre_shared_key`: the client wants to resume a session (or has an external key).
    pub pre_shared_key: bool,
    /// `early_data`: data follows this message immediately.
    pub early_data: bool,
    /// `encrypted_client_hello` (RFC 9849): a hello is hidden in it, or it is random bytes (GREASE, §6.2).
    pub encrypted_hello: bool,
    /// `session_ticket` containing a ticket (RFC 5077): the client wants to resume a TLS 1.2 session.
    pub ticket: bool,
}

impl<'a> ClientHello<'a> {
    /// Parses a handshake message including its header; bytes after the message are ignored. Returns `None`
    /// if it is not a ClientHello, is truncated, or is malformed.
    #[must_use]
    pub fn parse(message: &'a [u8]) -> Option<Self> {
        let mut reader = body(message, handshake::CLIENT_HELLO)?;
        let legacy_version = reader.u16()?;
        let random = reader.array()?;
        let session_id = reader.vector8()?;
        let cipher_suites = Numbers::new(reader.vector16()?)?;
        let compression = reader.vector8()?;
        if session_id.len() > 32 || cipher_suites.is_empty() || compression.is_empty() {
            return None;
        }
        let mut hello = Self {
            legacy_version,
            random,
            session_id,
            cipher_suites,
            server_name: None,
            protocols: None,
            versions: Numbers::default(),
            groups: Numbers::default(),
            key_shares: None,
            pre_shared_key: false,
            early_data: false,
            encrypted_hello: false,
            ticket: false,
        };
        for extension in Extensions::read(reader)? {
            let (kind, body) = extension?;
            hello.extend(kind, body)?;
        }
        Some(hello)
    }

    fn extend(&mut self, kind: u16, mut body: Reader<'a>) -> Option<()> {
        match kind {
            kind::SERVER_NAME => self.server_name = host_name(Reader(body.vector16()?)),
            kind::SUPPORTED_GROUPS => self.groups = Numbers::new(body.vector16()?)?,
            kind::ALPN => self.protocols = Some(Protocols::read(body)?),
            kind::SESSION_TICKET => self.ticket = !body.is_empty(),
            kind::PRE_SHARED_KEY => self.pre_shared_key = true,
            kind::EARLY_DATA => self.early_data = true,
            kind::ENCRYPTED_CLIENT_HELLO => self.encrypted_hello = true,
            kind::SUPPORTED_VERSIONS => self.versions = Numbers::new(body.vector8()?)?,
            kind::KEY_SHARE => {
                let shares = body.vector16()?;
                let mut check = Reader(shares);
                while !check.is_empty() {
                    check.u16()?;
                    check.vector16()?;
                }
                self.key_shares = Some(shares);
            }
            _ => {}
        }
        Some(())
    }

    /// Groups for which the client sent a key share.
    pub fn shares(&self) -> impl Iterator<Item = u16> + use<'a> {
        let mut shares = Reader(self.key_shares.unwrap_or_default());
        core::iter::from_fn(move || {
            let group = shares.u16()?;
            shares.vector16()?;
            Some(group)
        })
    }

    /// Whether the client offers this version (as on the wire, 0x0304 for TLS 1.3).
    #[must_use]
    pub fn offers(&self, version: u16) -> bool {
        if self.versions.is_empty() {
            version <= self.legacy_version
        } else {
            self.versions.contains(version)
        }
    }
}

/// The body of a complete handshake message of this type.
pub(super) fn body(message: &[u8], kind: u8) -> Option<Reader<'_>> {
    let mut reader = Reader(message);
    let [found, a, b, c] = reader.array()?;
    let length = u32::from_be_bytes([0, a, b, c]);
    let body = reader.take(usize::try_from(length).ok()?)?;
    (found == kind).then_some(Reader(body))
}

/// The first host name in the list, if it is printable ASCII.
fn host_name(mut list: Reader<'_>) -> Option<&str> {
    const HOST_NAME: u8 = 0;
    loop {
        let kind = list.u8()?;
        let name = list.vector16()?;
        if kind == HOST_NAME {
            let printable = !name.is_empty() && name.iter().all(u8::is_ascii_graphic);
            return core::str::from_utf8(name).ok().filter(|_| printable);
        }
    }
}
