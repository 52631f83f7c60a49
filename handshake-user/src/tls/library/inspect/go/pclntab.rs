//! The function table that every Go program carries for its stack traces, even when stripped. (Go's
//! internal/abi, runtime/symtab.go: `pcHeader`, `functab`, `_func`; the format of Go 1.18 and later)

use std::ops::{ControlFlow, Range};

use crate::tls::library::inspect::elf::{Elf, Section};

/// The magic numbers of Go 1.18, and of 1.20 and later.
const MAGICS: [u32; 2] = [0xffff_fff0, 0xffff_fff1];
/// The table's section in a fixed-address and in a position-independent program.
const SECTIONS: [&str; 2] = [".gopclntab", ".data.rel.ro.gopclntab"];

/// One function: its first address and that of the next function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Function {
    pub entry: u64,
    pub end: u64,
}

/// The table.
pub(super) struct Functions<'a> {
    elf: &'a Elf<'a>,
    text: u64,
    names: Range<u64>,
    /// Starts with the entries; offsets of the functions' own data are relative to it.
    table: Range<u64>,
    count: usize,
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

impl<'a> Functions<'a> {
    /// Returns `None` if the file is not a Go program, or its table has another format.
    #[must_use]
    pub(super) fn find(elf: &'a Elf<'a>) -> Option<Self> {
        const POINTER: u8 = 8;
        let Section { address, range } = SECTIONS.iter().find_map(|name| elf.section(name))?;
        let head = elf.image.bytes(range.start, 8)?;
        let is_known = MAGICS.contains(&number(head, 0)?) && head[7] == POINTER;
        is_known.then_some(())?;
        let [count, _files, text, names, units, _file_names, _counters, table] =
            elf.pointers(address.checked_add(8)?)?;
        let part =
            |start: u64| Some(range.start.checked_add(start)?..range.end).filter(|part| !part.is_empty());
        let (mut names, table) = (part(names)?, part(table)?);
        if let Some(behind) = part(units).filter(|behind| behind.start > names.start) {
            names.end = behind.start;
        }
        let count =
            usize::try_from(count).ok().filter(|&count| (count as u64) < (table.end - table.start) / 8)?;
        // Newer linkers leave out the start of the text.
        let text = if text == 0 { elf.section(".text")?.address } else { text };
        Some(Self { elf, text, names, table, count })
    }

    /// The wanted functions that the program contains, in the order of `wanted`.
    #[must_use]
    pub(super) fn named<const N: usize>(&self, wanted: [&'static str; N]) -> [Option<Function>; N] {
        let mut found = [None; N];
        let names = self.elf.names(self.names.clone(), &wanted);
        if names.is_empty() {
            return found;
        }
        let (mut entries, mut own) = (Window::new(self), Window::new(self));
        for index in 0..self.count as u64 {
            let mut name = || {
                let own_part = u64::from(entries.number(index * 8 + 4)?);
                names.get(&u64::from(own.number(own_part + 4)?))
            };
            let Some(name) = name() else { continue };
            let mut entry = |index: u64| self.text.checked_add(u64::from(entries.number(index * 8)?));
            if let Some(which) = wanted.iter().position(|wanted| wanted == name)
                && let (Some(entry), Some(end)) = (entry(index), entry(index + 1))
            {
                found[which] = Some(Function { entry, end });
            }
        }
        found
    }
}

/// The part of the table that is held in memory; the table is read from front to back.
struct Window<'f, 'a> {
    functions: &'f Functions<'a>,
    start: u64,
    bytes: Vec<u8>,
}

impl<'f, 'a> Window<'f, 'a> {
    const fn new(functions: &'f Functions<'a>) -> Self {
        Self { functions, start: 0, bytes: Vec::new() }
    }

    /// The number at this offset in the table.
    fn number(&mut self, at: u64) -> Option<u32> {
        let at_hand = |this: &Self| number(&this.bytes, usize::try_from(at.checked_sub(this.start)?).ok()?);
        at_hand(self).or_else(|| {
            let Functions { elf, table, .. } = self.functions;
            self.bytes.clear();
            self.start = at;
            elf.image.scan(table.start.checked_add(at)?..table.end, 0, |_, piece, _| {
                self.bytes.extend_from_slice(piece);
                ControlFlow::Break(())
            });
            at_hand(self)
        })
    }
}
