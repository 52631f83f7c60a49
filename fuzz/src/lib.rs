//! What the fuzz targets share: how they take their bytes apart, the files that they make of them, and what
//! must hold of everything that is shown.

pub mod elf;
pub mod go;
pub mod image;
pub mod library;
pub mod record;

use handshake::untrusted::is_harmless;

/// Bytes of a fuzzer, from front to back.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// The next byte.
    pub fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// The next two bytes, the lower one first.
    pub fn word(&mut self) -> Option<u16> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u16::from_le_bytes(*first))
    }

    /// So many bytes, or as many as there are.
    pub fn bytes(&mut self, length: usize) -> &'a [u8] {
        let (first, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        first
    }

    /// Bytes with their length, two bytes, in front.
    pub fn block(&mut self) -> Option<&'a [u8]> {
        let length = self.word()?;
        Some(self.bytes(length.into()))
    }
}

/// Nothing in it drives a terminal or forges a line.
///
/// # Panics
/// When something does.
pub fn assert_harmless(lines: &str) {
    let harmful = lines.chars().find(|&c| c != '\n' && !is_harmless(c));
    assert_eq!(harmful, None, "it is shown as it is: {lines:?}");
}
