//! Writes ELF files: one segment that covers the file, with sections anywhere in it.

/// Address of the first byte of the file.
pub const BASE: u64 = 0x40_0000;

const HEADERS: usize = 64 + 56;
const SECTION: usize = 64;
const ALIGNMENT: usize = 16;

pub const X86_64: u16 = 62;
pub const AARCH64: u16 = 183;

pub const PROGBITS: u32 = 1;
pub const STRTAB: u32 = 3;
pub const RELA: u32 = 4;
pub const DYNSYM: u32 = 11;

/// An ELF file under construction.
pub struct Image {
    machine: u16,
    is_fixed: bool,
    bytes: Vec<u8>,
    sections: Vec<Section>,
    names: Vec<u8>,
}

struct Section {
    name: usize,
    kind: u32,
    address: u64,
    size: usize,
    link: usize,
    entry: u64,
}

/// An entry of a symbol table; imported if it has no address.
pub struct Symbol<'a> {
    pub name: &'a str,
    pub address: Option<u64>,
    pub size: u64,
}

/// A place where the loader stores a pointer.
pub struct Relocation {
    pub at: u64,
    pub kind: u32,
    pub symbol: u32,
    pub addend: i64,
}

impl Image {
    /// `is_fixed`: the file is loaded at the addresses that it contains.
    #[must_use]
    pub fn new(machine: u16, is_fixed: bool) -> Self {
        let names = vec![0];
        Self { machine, is_fixed, bytes: vec![0; HEADERS], sections: Vec::new(), names }
    }

    /// The address of the next bytes.
    #[must_use]
    pub fn next(&self) -> u64 {
        BASE + self.bytes.len().next_multiple_of(ALIGNMENT) as u64
    }

    /// Appends bytes. Returns their address.
    pub fn put(&mut self, bytes: &[u8]) -> u64 {
        let address = self.next();
        self.put_at(address, bytes);
        address
    }

    /// Writes bytes at this place, overwriting what is there.
    pub fn put_at(&mut self, address: u64, bytes: &[u8]) {
        let start = usize::try_from(address - BASE).expect("an address of this file");
        self.bytes.resize(self.bytes.len().max(start + bytes.len()), 0);
        self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
    }

    /// Adds a section header. Returns its index.
    pub fn section(&mut self, name: &str, kind: u32, address: u64, size: usize) -> usize {
        let start = self.names.len();
        self.names.extend_from_slice(name.as_bytes());
        self.names.push(0);
        self.sections.push(Section { name: start, kind, address, size, link: 0, entry: 0 });
        self.sections.len()
    }

    /// Adds a symbol table and its names. Returns the index of the table.
    pub fn symbols(&mut self, symbols: &[Symbol<'_>]) -> usize {
        let (mut table, mut names) = (vec![0; 24], vec![0]);
        for symbol in symbols {
            table.extend(u32::try_from(names.len()).expect("short").to_le_bytes());
            table.extend([0x12, 0, u8::from(symbol.address.is_some()), 0]);
            table.extend(symbol.address.unwrap_or(0).to_le_bytes());
            table.extend(symbol.size.to_le_bytes());
            names.extend_from_slice(symbol.name.as_bytes());
            names.push(0);
        }
        let address = self.put(&names);
        let link = self.section(".dynstr", STRTAB, address, names.len());
        let address = self.put(&table);
        let index = self.section(".dynsym", DYNSYM, address, table.len());
        (self.sections[index - 1].link, self.sections[index - 1].entry) = (link, 24);
        index
    }

    /// Adds a relocation table that refers to these symbols.
    pub fn relocations(&mut self, relocations: &[Relocation], symbols: usize) {
        let mut table = Vec::new();
        for relocation in relocations {
            table.extend(relocation.at.to_le_bytes());
            table.extend((u64::from(relocation.symbol) << 32 | u64::from(relocation.kind)).to_le_bytes());
            table.extend(relocation.addend.to_le_bytes());
        }
        let address = self.put(&table);
        let index = self.section(".rela.dyn", RELA, address, table.len());
        (self.sections[index - 1].link, self.sections[index - 1].entry) = (symbols, 24);
    }

    /// The finished file.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        let names = std::mem::take(&mut self.names);
        let address = self.put(&names);
        let section_names = self.section("", STRTAB, address, names.len());
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
        let loaded = self.bytes.len() as u64;
        let mut table = vec![0; SECTION];
        for section in &self.sections {
            // The name of the string table itself was added last.
            let name = if section.name < names.len() { section.name } else { 0 };
            table.extend([u32::try_from(name).expect("short"), section.kind].map(u32::to_le_bytes).concat());
            let words = [2, section.address, section.address - BASE, section.size as u64];
            table.extend(words.map(u64::to_le_bytes).concat());
            table.extend([u32::try_from(section.link).expect("few"), 0].map(u32::to_le_bytes).concat());
            table.extend([8, section.entry].map(u64::to_le_bytes).concat());
        }
        self.bytes.extend(table);

        let mut header = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        header.extend([if self.is_fixed { 2 } else { 3 }, self.machine, 1, 0].map(u16::to_le_bytes).concat());
        header.extend([BASE, 64, loaded].map(u64::to_le_bytes).concat());
        header.extend([0; 4]);
        let halves = [64, 56, 1, 64, self.sections.len() + 1, section_names];
        header.extend(halves.map(|half| u16::try_from(half).expect("few").to_le_bytes()).concat());
        header.extend([1_u32, 7].map(u32::to_le_bytes).concat());
        header.extend([0, BASE, BASE, loaded, loaded, 0x1000].map(u64::to_le_bytes).concat());
        self.bytes[..HEADERS].copy_from_slice(&header);
        self.bytes
    }
}
