//! What is asked of an ELF file: symbols by name, bytes by address, pointers as the loader will leave them.

use std::collections::HashMap;

use object::{
    LittleEndian, elf,
    read::elf::{FileHeader as _, ProgramHeader as _, Rela as _, SectionHeader as _, SectionTable, Sym as _},
};

type Header = elf::FileHeader64<LittleEndian>;
type Section = elf::SectionHeader64<LittleEndian>;
const LE: LittleEndian = LittleEndian;

/// Files of more segments are not looked at; real ones have about ten.
const MOST_SEGMENTS: usize = 64;
/// Of linked files; `.rela.dyn` and `.rela.plt` are all there is.
const MOST_RELOCATION_SECTIONS: usize = 8;
/// Of linked files; real ones have about forty.
const MOST_SECTIONS: usize = 4096;

/// A 64-bit little-endian program or shared library of a known machine, as far as it can be read.
pub struct Elf<'a> {
    data: &'a [u8],
    pub machine: Machine,
    /// The addresses in the file are those in memory: not PIE, not a shared library.
    pub is_fixed: bool,
    segments: Vec<Segment>,
    sections: SectionTable<'a, Header>,
    section_names: &'a [u8],
}

/// Whose instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    X86_64,
    Aarch64,
}

struct Segment {
    address: u64,
    offset: u64,
    size: u64,
    executable: bool,
}

/// Where a function or an object is, and how many bytes it has if the file says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol {
    pub address: u64,
    pub size: u64,
}

/// The lower half; also keeps sums of an address and the size of a structure in range.
fn is_user_space(address: u64) -> bool {
    i64::try_from(address).is_ok()
}

/// Whether that string is this name. Looks no further than the name is long: strings without an end would make many such
/// questions take for ever.
fn is_named(strings: &[u8], start: u32, name: &str) -> bool {
    let string = strings.get(start as usize..).unwrap_or_default();
    string.strip_prefix(name.as_bytes()).is_some_and(|behind| behind.first() == Some(&0))
}

/// Those of the wanted symbols that the file defines.
#[derive(Debug, Default)]
pub struct Symbols(HashMap<&'static str, Symbol>);

impl Symbols {
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Symbol> {
        self.0.get(name).copied()
    }

    #[must_use]
    pub fn address(&self, name: &str) -> Option<u64> {
        self.get(name).map(|symbol| symbol.address)
    }

    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
}

impl<'a> Elf<'a> {
    /// `None`: another kind of file, or a broken one.
    #[must_use]
    pub fn parse(data: &'a [u8]) -> Option<Self> {
        let header = Header::parse(data).ok()?;
        if header.is_big_endian() || !header.is_class_64() {
            return None;
        }
        let machine = match header.e_machine(LE) {
            elf::EM_X86_64 => Machine::X86_64,
            elf::EM_AARCH64 => Machine::Aarch64,
            _ => return None,
        };
        let headers = header.program_headers(LE, data).ok()?;
        if headers.len() > MOST_SEGMENTS {
            return None;
        }
        let segments: Vec<_> = headers
            .iter()
            .filter(|segment| segment.p_type(LE) == elf::PT_LOAD)
            .map(|segment| Segment {
                address: segment.p_vaddr(LE),
                offset: segment.p_offset(LE),
                size: segment.p_filesz(LE),
                executable: segment.p_flags(LE) & elf::PF_X != 0,
            })
            .collect();
        // Segments share a page at most; were each one the whole file, every search would take that many times as long.
        let total = segments.iter().try_fold(0_u64, |total, segment| total.checked_add(segment.size))?;
        let is_user_space =
            segments.iter().all(|it| it.address.checked_add(it.size).is_some_and(is_user_space));
        (is_user_space && total / 2 <= data.len() as u64).then_some(())?;
        // A file may do without sections; then it has no symbols for us.
        let sections = header.sections(LE, data).ok().filter(|sections| sections.len() <= MOST_SECTIONS);
        let sections = sections.unwrap_or_default();
        let names = header.section_strings_index(LE, data).and_then(|index| sections.section(index));
        let section_names = names.and_then(|names| names.data(LE, data)).unwrap_or_default();
        let is_fixed = header.e_type(LE) == elf::ET_EXEC;
        Some(Self { data, machine, is_fixed, segments, sections, section_names })
    }

    /// The wanted symbols that are defined here, in one pass over both symbol tables.
    #[must_use]
    pub fn symbols(&self, wanted: &[&'static str]) -> Symbols {
        let wanted: HashMap<&[u8], &'static str> =
            wanted.iter().map(|&name| (name.as_bytes(), name)).collect();
        let longest = wanted.keys().map(|name| name.len()).max().unwrap_or(0);
        // Never further than the longest wanted name: strings without an end would make this quadratic.
        let name_at = |strings: &'a [u8], start: u32| {
            let rest = strings.get(start as usize..)?;
            let rest = &rest[..rest.len().min(longest + 1)];
            Some(&rest[..memchr::memchr(0, rest)?])
        };
        let mut found = HashMap::new();
        for kind in [elf::SHT_DYNSYM, elf::SHT_SYMTAB] {
            let Ok(table) = self.sections.symbols(LE, self.data, kind) else { continue };
            let strings = self.sections.section(table.string_section()).and_then(|it| it.data(LE, self.data));
            let Ok(strings) = strings else { continue };
            for symbol in table.iter() {
                if symbol.st_shndx(LE) == elf::SHN_UNDEF || symbol.st_value(LE) == 0 {
                    continue;
                }
                if let Some(name) = name_at(strings, symbol.st_name(LE))
                    && let Some(&name) = wanted.get(name)
                {
                    let symbol = Symbol { address: symbol.st_value(LE), size: symbol.st_size(LE) };
                    found.entry(name).or_insert(symbol);
                }
            }
        }
        Symbols(found)
    }

    /// The section of that name, with the address of its first byte.
    #[must_use]
    pub fn section(&self, name: &str) -> Option<(u64, &'a [u8])> {
        let is_it = |section: &&Section| is_named(self.section_names, section.sh_name(LE), name);
        let section = self.sections.iter().find(is_it)?;
        is_user_space(section.sh_addr(LE)).then_some(())?;
        Some((section.sh_addr(LE), section.data(LE, self.data).ok()?))
    }

    fn segment(&self, address: u64) -> Option<&Segment> {
        self.segments
            .iter()
            .find(|segment| address.checked_sub(segment.address).is_some_and(|into| into < segment.size))
    }

    /// The first address of the segment that holds `address`.
    #[must_use]
    pub fn segment_start(&self, address: u64) -> Option<u64> {
        Some(self.segment(address)?.address)
    }

    /// The bytes from `address` to the end of its segment.
    #[must_use]
    pub fn bytes(&self, address: u64) -> Option<&'a [u8]> {
        let segment = self.segment(address)?;
        let into = address - segment.address;
        let start = usize::try_from(segment.offset.checked_add(into)?).ok()?;
        let size = usize::try_from(segment.size - into).ok()?;
        let rest = self.data.get(start..)?;
        Some(&rest[..size.min(rest.len())])
    }

    /// The instructions from `address` to the end of its segment.
    #[must_use]
    pub fn code(&self, address: u64) -> Option<&'a [u8]> {
        self.segment(address).filter(|segment| segment.executable)?;
        self.bytes(address)
    }

    /// Where in the file the instruction at `address` is: what a uprobe is placed at.
    #[must_use]
    pub fn code_offset(&self, address: u64) -> Option<u64> {
        let segment = self.segment(address).filter(|segment| segment.executable)?;
        segment.offset.checked_add(address - segment.address)
    }

    /// The pointers in a table at `address` as the loader will leave them, as addresses of this file.
    #[must_use]
    pub fn pointers<const N: usize>(&self, address: u64) -> Option<[u64; N]> {
        self.words(address, N).try_into().ok()
    }

    /// Words from `address` on, at most so many and none beyond the segment; pointers among them as the loader will
    /// leave them, as addresses of this file. In a table of packed relative relocations (RELR) and in a fixed program
    /// they stand in the file already.
    #[must_use]
    pub fn words(&self, address: u64, most: usize) -> Vec<u64> {
        let bytes = self.bytes(address).unwrap_or_default().as_chunks().0;
        let mut words: Vec<_> = bytes.iter().take(most).map(|word| u64::from_le_bytes(*word)).collect();
        self.each_relative(|at, target| {
            if let Some(into) = at.checked_sub(address)
                && into % 8 == 0
                && let Some(word) = usize::try_from(into / 8).ok().and_then(|slot| words.get_mut(slot))
            {
                *word = target;
            }
        });
        words
    }

    /// Where the file holds one of these addresses as a pointer: so many places at most.
    #[must_use]
    pub fn references(&self, targets: &[u64], most: usize) -> Vec<u64> {
        let mut found = Vec::new();
        let (Some(&lowest), Some(&highest)) = (targets.iter().min(), targets.iter().max()) else {
            return found;
        };
        let is_one = |word: u64| lowest <= word && word <= highest && targets.contains(&word);
        for (start, bytes) in self.loaded() {
            let words = bytes.as_chunks().0.iter().zip((0_u64..).step_by(8));
            let hits = words.filter(|(word, _)| is_one(u64::from_le_bytes(**word)));
            found.extend(hits.map(|(_, into)| start.wrapping_add(into)).take(most));
        }
        self.each_relative(|at, target| {
            if is_one(target) && found.len() < 2 * most && !found.contains(&at) {
                found.push(at);
            }
        });
        found.truncate(most);
        found
    }

    /// Addresses at which these bytes are: so many at most.
    #[must_use]
    pub fn find(&self, bytes: &[u8], most: usize) -> Vec<u64> {
        let places = self.loaded().flat_map(|(start, loaded)| {
            memchr::memmem::find_iter(loaded, bytes).map(move |into| start.wrapping_add(into as u64))
        });
        places.take(most).collect()
    }

    /// Every relative relocation with an addend of its own: where, and the address that will stand there.
    pub fn each_relative(&self, mut each: impl FnMut(u64, u64)) {
        let relative = match self.machine {
            Machine::X86_64 => elf::R_X86_64_RELATIVE,
            Machine::Aarch64 => elf::R_AARCH64_RELATIVE,
        };
        let sections = self.sections.iter().filter(|section| section.sh_type(LE) == elf::SHT_RELA);
        for section in sections.take(MOST_RELOCATION_SECTIONS) {
            let Ok(Some((relocations, _))) = section.rela(LE, self.data) else { continue };
            for relocation in relocations {
                if relocation.r_type(LE, false) == relative {
                    each(relocation.r_offset(LE), relocation.r_addend(LE).cast_unsigned());
                }
            }
        }
    }

    /// Where the loader will put the address of a function of another file.
    #[must_use]
    pub fn import(&self, name: &str) -> Option<u64> {
        let kinds = match self.machine {
            Machine::X86_64 => [elf::R_X86_64_JUMP_SLOT, elf::R_X86_64_GLOB_DAT],
            Machine::Aarch64 => [elf::R_AARCH64_JUMP_SLOT, elf::R_AARCH64_GLOB_DAT],
        };
        let symbols = self.sections.symbols(LE, self.data, elf::SHT_DYNSYM).ok()?;
        let strings = self.sections.section(symbols.string_section()).ok()?.data(LE, self.data).ok()?;
        let is_it =
            |index| symbols.symbol(index).is_ok_and(|symbol| is_named(strings, symbol.st_name(LE), name));
        let sections = self.sections.iter().filter(|section| section.sh_type(LE) == elf::SHT_RELA);
        let mut relocations = sections
            .take(MOST_RELOCATION_SECTIONS)
            .filter_map(|section| section.rela(LE, self.data).ok()?)
            .flat_map(|(relocations, _)| relocations);
        let found = relocations.find(|relocation| {
            kinds.contains(&relocation.r_type(LE, false)) && relocation.symbol(LE, false).is_some_and(is_it)
        });
        found.map(|relocation| relocation.r_offset(LE))
    }

    /// The parts of the file that are executed, with their addresses.
    pub fn executable(&self) -> impl Iterator<Item = (u64, &'a [u8])> {
        let segments = self.segments.iter().filter(|segment| segment.executable);
        segments.filter_map(|segment| Some((segment.address, self.bytes(segment.address)?)))
    }

    /// The parts of the file that are loaded, with their addresses.
    pub fn loaded(&self) -> impl Iterator<Item = (u64, &'a [u8])> {
        self.segments.iter().filter_map(|segment| Some((segment.address, self.bytes(segment.address)?)))
    }

    /// The first printable text in the loaded parts that begins with `start` and a version of three numbers.
    #[must_use]
    pub fn text_with_version(&self, start: &str) -> Option<&'a str> {
        const LONGEST: usize = 80;
        self.loaded().find_map(|(_, bytes)| {
            memchr::memmem::find_iter(bytes, start.as_bytes()).find_map(|at| {
                let text = &bytes[at..bytes.len().min(at + LONGEST)];
                let end = text.iter().position(|byte| !matches!(byte, b' '..=b'~')).unwrap_or(text.len());
                let text = str::from_utf8(&text[..end]).ok()?;
                let number = text[start.len()..].split(' ').next()?;
                let has_parts = number.matches('.').count() >= 2;
                (has_parts && number.starts_with(|next: char| next.is_ascii_digit())).then_some(text)
            })
        })
    }
}
