//! Queries on an ELF file: symbols by name, bytes by address, pointers as relocated by the loader.

use std::{
    collections::HashMap,
    ops::{ControlFlow, Range},
};

use object::{
    LittleEndian, elf, pod,
    read::elf::{FileHeader as _, ProgramHeader as _, Rela as _, SectionHeader as _, SectionTable, Sym as _},
};

use super::image::Image;

type Header = elf::FileHeader64<LittleEndian>;
type Sections<'a> = SectionTable<'a, Header, &'a Image<'a>>;
const LE: LittleEndian = LittleEndian;
const SYMBOL: usize = size_of::<elf::Sym64<LittleEndian>>();
const RELOCATION: usize = size_of::<elf::Rela64<LittleEndian>>();

/// Files with more segments are ignored; real ones have about ten.
const MAX_SEGMENTS: usize = 64;
/// The maximum number of relocation tables; linked files only have `.rela.dyn` and `.rela.plt`.
const MAX_RELOCATION_SECTIONS: usize = 8;
/// Files with more sections are ignored, such as object files with one section per function.
const MAX_SECTIONS: usize = 8192;
/// The maximum number of matches of wanted names in one string table.
const MAX_NAMES: usize = 4096;

/// A 64-bit little-endian program or shared library for a known architecture; only what can be read of it.
pub(super) struct Elf<'a> {
    pub image: &'a Image<'a>,
    pub machine: Machine,
    /// The addresses in the file are those in memory: neither a PIE nor a shared library.
    pub is_fixed: bool,
    segments: Vec<Segment>,
    sections: Sections<'a>,
}

/// The instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Machine {
    X86_64,
    Aarch64,
}

struct Segment {
    address: u64,
    offset: u64,
    size: u64,
    executable: bool,
}

/// The address of a function or an object, and its size if the file gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Symbol {
    pub address: u64,
    pub size: u64,
}

impl Segment {
    /// Its range in the file.
    fn range(&self) -> Range<u64> {
        self.offset..self.offset.saturating_add(self.size)
    }
}

/// The range in the file and the address of a section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Section {
    pub address: u64,
    pub range: Range<u64>,
}

/// The lower half of the address space; also keeps sums of an address and the size of a structure in range.
fn is_user_space(address: u64) -> bool {
    i64::try_from(address).is_ok()
}

/// The wanted symbols that the file defines.
#[derive(Debug, Default)]
pub(super) struct Symbols(HashMap<&'static str, Symbol>);

impl Symbols {
    #[must_use]
    pub(super) fn get(&self, name: &str) -> Option<Symbol> {
        self.0.get(name).copied()
    }

    #[must_use]
    pub(super) fn address(&self, name: &str) -> Option<u64> {
        self.get(name).map(|symbol| symbol.address)
    }

    #[must_use]
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
}

impl<'a> Elf<'a> {
    /// Returns `None` if it is another kind of file, or malformed.
    #[must_use]
    pub(super) fn parse(image: &'a Image<'a>) -> Option<Self> {
        let header = Header::parse(image).ok()?;
        if header.is_big_endian() || !header.is_class_64() {
            return None;
        }
        let machine = match header.e_machine(LE) {
            elf::EM_X86_64 => Machine::X86_64,
            elf::EM_AARCH64 => Machine::Aarch64,
            _ => return None,
        };
        if usize::from(header.e_phnum(LE)) > MAX_SEGMENTS {
            return None;
        }
        let headers = header.program_headers(LE, image).ok()?;
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
        // Real segments share at most a page; if each covered the whole file, every search would take as many
        // times as long.
        let total = segments.iter().try_fold(0_u64, |total, segment| total.checked_add(segment.size))?;
        let is_user_space =
            segments.iter().all(|it| it.address.checked_add(it.size).is_some_and(is_user_space));
        (is_user_space && total / 2 <= image.size()).then_some(())?;
        let is_fixed = header.e_type(LE) == elf::ET_EXEC;
        Some(Self { image, machine, is_fixed, segments, sections: sections(header, image) })
    }

    /// The wanted symbols that this file defines, in one pass over both symbol tables.
    #[must_use]
    pub(super) fn symbols(&self, wanted: &[&'static str]) -> Symbols {
        let mut found = HashMap::new();
        for kind in [elf::SHT_DYNSYM, elf::SHT_SYMTAB] {
            let Some((symbols, strings)) = self.symbol_table(kind) else { continue };
            let names = self.names(strings, wanted);
            if names.is_empty() {
                continue;
            }
            self.image.scan(symbols, 0, |_, piece, _| {
                for symbol in table::<elf::Sym64<LittleEndian>, SYMBOL>(piece) {
                    if symbol.st_shndx(LE) != elf::SHN_UNDEF
                        && symbol.st_value(LE) != 0
                        && let Some(&name) = names.get(&u64::from(symbol.st_name(LE)))
                    {
                        let symbol = Symbol { address: symbol.st_value(LE), size: symbol.st_size(LE) };
                        found.entry(name).or_insert(symbol);
                    }
                }
                ControlFlow::Continue(())
            });
        }
        Symbols(found)
    }

    /// The ranges in the file of the symbols of this kind and of their names.
    fn symbol_table(&self, kind: u32) -> Option<(Range<u64>, Range<u64>)> {
        let table = self.sections.iter().find(|section| section.sh_type(LE) == kind)?;
        let strings = self.sections.section(table.link(LE)).ok()?;
        Some((range(table)?, range(strings)?))
    }

    /// Finds these names at the ends of the strings in this part of the file, by offset from its beginning:
    /// linkers let a name share the end of a longer one.
    #[must_use]
    pub(super) fn names(&self, strings: Range<u64>, wanted: &[&'static str]) -> HashMap<u64, &'static str> {
        let mut by_end: [Vec<&'static str>; 256] = [const { Vec::new() }; 256];
        for name in wanted {
            if let Some(&last) = name.as_bytes().last() {
                by_end[usize::from(last)].push(name);
            }
        }
        let longest = wanted.iter().map(|name| name.len()).max().unwrap_or(0);
        let mut found = HashMap::new();
        let start = strings.start;
        self.image.scan(strings, longest + 1, |at, piece, own| {
            for end in memchr::memchr_iter(0, piece) {
                let Some(&last) = piece[..end].last() else { continue };
                let names = by_end[usize::from(last)].iter();
                for name in names.filter(|name| piece[..end].ends_with(name.as_bytes())) {
                    if end - name.len() < own {
                        found.insert(at - start + (end - name.len()) as u64, *name);
                    }
                }
            }
            if found.len() > MAX_NAMES { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        found
    }

    /// The section with this name.
    #[must_use]
    pub(super) fn section(&self, name: &str) -> Option<Section> {
        let (_, section) = self.sections.section_by_name(LE, name.as_bytes())?;
        is_user_space(section.sh_addr(LE)).then_some(())?;
        Some(Section { address: section.sh_addr(LE), range: range(section)? })
    }

    fn segment(&self, address: u64) -> Option<&Segment> {
        self.segments
            .iter()
            .find(|segment| address.checked_sub(segment.address).is_some_and(|into| into < segment.size))
    }

    /// The first address of the segment that holds `address`.
    #[must_use]
    pub(super) fn segment_start(&self, address: u64) -> Option<u64> {
        Some(self.segment(address)?.address)
    }

    /// The bytes from `address` on, at most `most` and within the segment.
    #[must_use]
    pub(super) fn bytes(&self, address: u64, most: usize) -> Option<&'a [u8]> {
        let segment = self.segment(address)?;
        let into = address - segment.address;
        let start = segment.offset.checked_add(into)?;
        let size = (segment.size - into).min(self.image.size().checked_sub(start)?);
        self.image.bytes(start, usize::try_from(size).map_or(most, |size| size.min(most)))
    }

    /// The instructions from `address` on, at most `most` bytes and within the segment.
    #[must_use]
    pub(super) fn code(&self, address: u64, most: usize) -> Option<&'a [u8]> {
        self.segment(address).filter(|segment| segment.executable)?;
        self.bytes(address, most)
    }

    /// Whether the address is executable.
    #[must_use]
    pub(super) fn is_code(&self, address: u64) -> bool {
        self.segment(address).is_some_and(|segment| segment.executable)
    }

    /// The file offset of the instruction at `address`, at which a uprobe is placed.
    #[must_use]
    pub(super) fn code_offset(&self, address: u64) -> Option<u64> {
        let segment = self.segment(address).filter(|segment| segment.executable)?;
        segment.offset.checked_add(address - segment.address)
    }

    /// The pointers in a table at `address` as relocated by the loader, as addresses of this file.
    #[must_use]
    pub(super) fn pointers<const N: usize>(&self, address: u64) -> Option<[u64; N]> {
        self.words(address, N).try_into().ok()
    }

    /// The words from `address` on, at most `most` and within the segment; pointers among them as relocated
    /// by the loader, as addresses of this file. With packed relative relocations (RELR) and in a
    /// fixed-address program, the file already contains these values.
    #[must_use]
    pub(super) fn words(&self, address: u64, most: usize) -> Vec<u64> {
        let bytes = self.bytes(address, most.saturating_mul(8)).unwrap_or_default().as_chunks().0;
        let mut words: Vec<_> = bytes.iter().map(|word| u64::from_le_bytes(*word)).collect();
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

    /// The places where the file holds one of these addresses as a pointer, at most `most`.
    #[must_use]
    pub(super) fn references(&self, targets: &[u64], most: usize) -> Vec<u64> {
        let mut found = Vec::new();
        let (Some(&lowest), Some(&highest)) = (targets.iter().min(), targets.iter().max()) else {
            return found;
        };
        let is_one = |word: u64| lowest <= word && word <= highest && targets.contains(&word);
        for segment in &self.segments {
            let before = found.len();
            self.image.scan(segment.range(), 0, |at, piece, _| {
                let start = segment.address.wrapping_add(at - segment.offset);
                let words = piece.as_chunks().0.iter().zip((0_u64..).step_by(8));
                let hits = words.filter(|(word, _)| is_one(u64::from_le_bytes(**word)));
                let left = most - (found.len() - before);
                found.extend(hits.map(|(_, into)| start.wrapping_add(into)).take(left));
                if found.len() - before == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
        }
        self.each_relative(|at, target| {
            if is_one(target) && found.len() < 2 * most && !found.contains(&at) {
                found.push(at);
            }
        });
        found.truncate(most);
        found
    }

    /// The addresses at which these bytes occur, at most `most`.
    #[must_use]
    pub(super) fn find(&self, bytes: &[u8], most: usize) -> Vec<u64> {
        let mut found = Vec::new();
        let finder = memchr::memmem::Finder::new(bytes);
        for segment in &self.segments {
            self.image.scan(segment.range(), bytes.len().saturating_sub(1), |at, piece, _| {
                let start = segment.address.wrapping_add(at - segment.offset);
                let places = finder.find_iter(piece).map(|into| start.wrapping_add(into as u64));
                found.extend(places.take(most - found.len()));
                if found.len() == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
        }
        found
    }

    /// Every relative relocation with an explicit addend: its place, and the resulting address.
    pub(super) fn each_relative(&self, mut each: impl FnMut(u64, u64)) {
        let relative = match self.machine {
            Machine::X86_64 => elf::R_X86_64_RELATIVE,
            Machine::Aarch64 => elf::R_AARCH64_RELATIVE,
        };
        self.each_relocation(|relocation| {
            if relocation.r_type(LE, false) == relative {
                each(relocation.r_offset(LE), relocation.r_addend(LE).cast_unsigned());
            }
            ControlFlow::Continue(())
        });
    }

    fn each_relocation(&self, mut each: impl FnMut(&elf::Rela64<LittleEndian>) -> ControlFlow<()>) {
        let sections = self.sections.iter().filter(|section| section.sh_type(LE) == elf::SHT_RELA);
        let mut goes_on = ControlFlow::Continue(());
        for section in sections.take(MAX_RELOCATION_SECTIONS).filter_map(range) {
            self.image.scan(section, 0, |_, piece, _| {
                goes_on =
                    table::<elf::Rela64<LittleEndian>, RELOCATION>(piece).iter().try_for_each(&mut each);
                goes_on
            });
            if goes_on.is_break() {
                return;
            }
        }
    }

    /// The slot in which the loader will store the address of an imported function.
    #[must_use]
    pub(super) fn import(&self, name: &str) -> Option<u64> {
        let kinds = match self.machine {
            Machine::X86_64 => [elf::R_X86_64_JUMP_SLOT, elf::R_X86_64_GLOB_DAT],
            Machine::Aarch64 => [elf::R_AARCH64_JUMP_SLOT, elf::R_AARCH64_GLOB_DAT],
        };
        let (symbols, strings) = self.symbol_table(elf::SHT_DYNSYM)?;
        let is_it = |index: u32| {
            let symbol = symbols.start.checked_add(u64::from(index) * SYMBOL as u64)?;
            let symbol = self.image.bytes(symbol, SYMBOL).filter(|_| symbol < symbols.end)?;
            let [symbol] = table::<elf::Sym64<LittleEndian>, SYMBOL>(symbol) else { return None };
            let at = strings.start.checked_add(u64::from(symbol.st_name(LE)))?;
            let text = self.image.bytes(at, name.len() + 1)?;
            Some(text.strip_prefix(name.as_bytes()) == Some(&[0]))
        };
        let mut found = None;
        self.each_relocation(|relocation| {
            let symbol = relocation.symbol(LE, false);
            if kinds.contains(&relocation.r_type(LE, false))
                && symbol.and_then(|symbol| is_it(u32::try_from(symbol.0).ok()?)) == Some(true)
            {
                found = Some(relocation.r_offset(LE));
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
        found
    }

    /// Passes the executable parts to `each`, piece by piece: the address, the bytes followed by `ahead`
    /// more, and how many bytes belong to the piece itself.
    pub(super) fn scan_code(&self, ahead: usize, mut each: impl FnMut(u64, &[u8], usize) -> ControlFlow<()>) {
        for segment in self.segments.iter().filter(|segment| segment.executable) {
            self.image.scan(segment.range(), ahead, |at, piece, own| {
                each(segment.address.wrapping_add(at - segment.offset), piece, own)
            });
        }
    }

    /// The first printable text in the loaded parts that begins with `start` and a version of three numbers.
    #[must_use]
    pub(super) fn text_with_version(&self, start: &str) -> Option<String> {
        const MAX_LEN: usize = 80;
        let mut found = None;
        let finder = memchr::memmem::Finder::new(start.as_bytes());
        for segment in &self.segments {
            self.image.scan(segment.range(), MAX_LEN, |_, piece, own| {
                let mut begins = finder.find_iter(piece).take_while(|at| *at < own);
                let text = |at: usize| versioned(&piece[at..piece.len().min(at + MAX_LEN)], start);
                found = begins.find_map(text).map(str::to_owned);
                if found.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            if found.is_some() {
                break;
            }
        }
        found
    }
}

/// A file may lack sections; then it has no usable symbols.
fn sections<'a>(header: &Header, image: &'a Image<'a>) -> Sections<'a> {
    let is_bounded = header.shnum(LE, image).is_ok_and(|count| count <= MAX_SECTIONS);
    if is_bounded { header.sections(LE, image).unwrap_or_default() } else { Sections::default() }
}

/// The range of a section in the file.
fn range(section: &elf::SectionHeader64<LittleEndian>) -> Option<Range<u64>> {
    let (start, size) = section.file_range(LE)?;
    Some(start..start.checked_add(size)?)
}

/// The complete entries of a table.
fn table<T: pod::Pod, const SIZE: usize>(bytes: &[u8]) -> &[T] {
    pod::slice_from_bytes(bytes, bytes.len() / SIZE).map_or(&[], |(entries, _)| entries)
}

/// The printable text at the beginning, if it consists of `start` followed by a version of three numbers.
fn versioned<'t>(bytes: &'t [u8], start: &str) -> Option<&'t str> {
    let end = bytes.iter().position(|byte| !matches!(byte, b' '..=b'~')).unwrap_or(bytes.len());
    let text = str::from_utf8(&bytes[..end]).ok()?;
    let number = text.get(start.len()..)?.split(' ').next()?;
    let has_parts = number.matches('.').count() >= 2;
    (has_parts && number.starts_with(|next: char| next.is_ascii_digit())).then_some(text)
}
