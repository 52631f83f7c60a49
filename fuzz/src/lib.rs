//! Code shared by the fuzz targets: splitting the input, building files from it, and checks that must hold
//! for all output.

pub mod elf;
pub mod go;
pub mod image;
pub mod library;
pub mod record;

use handshake::untrusted::is_harmless;

/// The input of a fuzzer, consumed from front to back.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// The next byte.
    pub fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// The next two bytes, in little-endian order.
    pub fn word(&mut self) -> Option<u16> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u16::from_le_bytes(*first))
    }

    /// The next `count` bytes, or all that are left.
    pub fn bytes(&mut self, length: usize) -> &'a [u8] {
        let (first, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        first
    }

    /// Bytes preceded by their length in two bytes.
    pub fn block(&mut self) -> Option<&'a [u8]> {
        let length = self.word()?;
        Some(self.bytes(length.into()))
    }
}

/// Asserts that nothing in the text controls a terminal or forges a line.
///
/// # Panics
/// If something does.
pub fn assert_harmless(lines: &str) {
    let harmful = lines.chars().find(|&c| c != '\n' && !is_harmless(c));
    assert_eq!(harmful, None, "output contains it unescaped: {lines:?}");
}
