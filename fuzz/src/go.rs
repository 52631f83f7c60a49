//! Go programs: sections at fixed addresses with arbitrary content.

use crate::{
    Input,
    image::{BASE, Image, PROGBITS, X86_64},
};

/// The space reserved for each section.
pub const ROOM: u64 = 0x600;
/// The sections of a description in order, with their addresses.
pub const SECTIONS: [(&str, u64); 4] = [
    (".gopclntab", BASE + ROOM),
    (".rodata", BASE + 2 * ROOM),
    (".text", BASE + 3 * ROOM),
    (".go.buildinfo", BASE + 4 * ROOM),
];
pub const TABLE: u64 = SECTIONS[0].1;
pub const DATA: u64 = SECTIONS[1].1;
pub const TEXT: u64 = SECTIONS[2].1;

/// Builds a program from a description: a byte of flags (1: not fixed-address), then the bytes of each
/// section, preceded by their length.
#[must_use]
pub fn file(description: &[u8]) -> Vec<u8> {
    let mut input = Input(description);
    let is_fixed = input.byte().is_none_or(|flags| flags & 1 == 0);
    let mut image = Image::new(X86_64, is_fixed);
    for (name, address) in SECTIONS {
        let bytes = input.block().unwrap_or_default();
        let bytes = &bytes[..bytes.len().min(usize::try_from(ROOM).expect("small"))];
        image.put_at(address, bytes);
        image.section(name, PROGBITS, address, bytes.len());
    }
    image.finish()
}
