//! The table of functions that every Go program carries for its stack traces, stripped or not.
//! (Go's internal/abi, runtime/symtab.go: `pcHeader`, `functab`, `_func`; the form of Go 1.18 and later)

use crate::tls::inspect::elf::Elf;

/// Of Go 1.18, and of 1.20 and later.
const MAGICS: [u32; 2] = [0xffff_fff0, 0xffff_fff1];
/// Where the table is in a fixed and in a position-independent program.
const SECTIONS: [&str; 2] = [".gopclntab", ".data.rel.ro.gopclntab"];

/// One function: its first address and that of the function behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    pub entry: u64,
    pub end: u64,
}

/// The table.
pub struct Functions<'a> {
    text: u64,
    names: &'a [u8],
    /// Begins with the entries; where a function's own part is counts from here.
    table: &'a [u8],
    count: usize,
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

impl<'a> Functions<'a> {
    /// `None`: no Go program, or one whose table has another form.
    #[must_use]
    pub fn find(elf: &Elf<'a>) -> Option<Self> {
        const POINTER: u8 = 8;
        let (address, data) = SECTIONS.iter().find_map(|name| elf.section(name))?;
        let is_known = MAGICS.contains(&number(data, 0)?) && *data.get(7)? == POINTER;
        is_known.then_some(())?;
        let [count, _files, text, names, _units, _file_names, _counters, table] =
            elf.pointers(address + 8)?;
        let part = |start: u64| data.get(usize::try_from(start).ok()?..);
        let table = part(table)?;
        let count = usize::try_from(count).ok().filter(|&count| count < table.len() / 8)?;
        // Newer linkers leave the start of the text out.
        let text = if text == 0 { elf.section(".text")?.0 } else { text };
        Some(Self { text, names: part(names)?, table, count })
    }

    fn entry(&self, index: usize) -> Option<u64> {
        self.text.checked_add(u64::from(number(self.table, index * 8)?))
    }

    /// Those of the wanted functions that are in the program, in the order of `wanted`.
    #[must_use]
    pub fn named<const N: usize>(&self, wanted: [&str; N]) -> [Option<Function>; N] {
        let mut found = [None; N];
        for index in 0..self.count {
            let name = || {
                let own = usize::try_from(number(self.table, index * 8 + 4)?).ok()?;
                let name = number(self.table, own.checked_add(4)?)?;
                self.names.get(usize::try_from(name).ok()?..)
            };
            let Some(name) = name() else { continue };
            let is_it = |wanted: &str| {
                name.strip_prefix(wanted.as_bytes()).is_some_and(|behind| behind.first() == Some(&0))
            };
            if let Some(which) = wanted.iter().position(|wanted| is_it(wanted))
                && let (Some(entry), Some(end)) = (self.entry(index), self.entry(index + 1))
            {
                found[which] = Some(Function { entry, end });
            }
        }
        found
    }
}
