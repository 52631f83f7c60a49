//! The extensions of the hellos (RFC 8446 §4.2) that say something about the handshake.

use super::reader::Reader;

/// Extension types (IANA).
pub(super) mod kind {
    pub(crate) const SERVER_NAME: u16 = 0;
    pub(crate) const SUPPORTED_GROUPS: u16 = 10;
    pub(crate) const ALPN: u16 = 16;
    pub(crate) const SESSION_TICKET: u16 = 35;
    pub(crate) const PRE_SHARED_KEY: u16 = 41;
    pub(crate) const EARLY_DATA: u16 = 42;
    pub(crate) const SUPPORTED_VERSIONS: u16 = 43;
    pub(crate) const KEY_SHARE: u16 = 51;
    pub(crate) const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;
}

/// Iterates over the extensions at the end of a hello; yields `None` where they are truncated.
pub(super) struct Extensions<'a>(Reader<'a>);

impl<'a> Extensions<'a> {
    /// The rest of a hello after its fixed fields: either nothing, or exactly one vector of extensions.
    pub(super) fn read(rest: Reader<'a>) -> Option<Self> {
        let mut reader = rest;
        if reader.is_empty() {
            return Some(Self(reader));
        }
        let all = reader.vector16()?;
        reader.is_empty().then_some(Self(Reader(all)))
    }
}

impl<'a> Iterator for Extensions<'a> {
    type Item = Option<(u16, Reader<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let extension = self.0.u16().and_then(|kind| Some((kind, Reader(self.0.vector16()?))));
        if extension.is_none() {
            self.0 = Reader(&[]);
        }
        Some(extension)
    }
}

/// Protocol names (RFC 7301 §3.1), each preceded by its length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Protocols<'a>(&'a [u8]);

impl<'a> Protocols<'a> {
    /// Returns `None` unless the list consists of complete, non-empty names.
    pub(super) fn read(mut body: Reader<'a>) -> Option<Self> {
        let list = body.vector16()?;
        let mut names = Reader(list);
        while !names.is_empty() {
            if names.vector8()?.is_empty() {
                return None;
            }
        }
        (body.is_empty() && !list.is_empty()).then_some(Self(list))
    }

    /// In order of preference.
    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut names = Reader(self.0);
        core::iter::from_fn(move || names.vector8())
    }
}
