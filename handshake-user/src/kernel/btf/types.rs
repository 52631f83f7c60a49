//! Reads BPF type information (Documentation/bpf/btf.rst) as far as finding a structure member requires. The
//! data may be damaged or hostile: every read is checked, every chain bounded.

use std::{collections::HashMap, ops::Range};

use super::error::BtfError;

const MAGIC: u16 = 0xeb9f;
/// Longer than any chain of typedefs and qualifiers, so that a loop in damaged data ends.
const MAX_CHAIN: usize = 32;
/// Bytes of `struct btf_type`, without what depends on its kind.
const TYPE: usize = 12;

/// `BTF_KIND_*`, include/uapi/linux/btf.h.
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const PTR: u32 = 2;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const FWD: u32 = 7;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNC: u32 = 12;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const FLOAT: u32 = 16;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
}

/// Parsed type information.
#[derive(Debug)]
pub struct Btf {
    bytes: Vec<u8>,
    strings: Range<usize>,
    /// Where each type begins; the type with id n is at n − 1, as id 0 is void.
    types: Vec<usize>,
    /// Named structures; several may share a name.
    structures: HashMap<Vec<u8>, Vec<u32>>,
}

/// A member of a structure or union.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member<'a> {
    pub(super) name: &'a [u8],
    pub(super) type_id: u32,
    /// Offset in the structure, bits.
    pub(super) bits: u32,
}

/// A function's prototype, as ids of types.
#[derive(Clone, Debug)]
pub(super) struct Proto {
    pub(super) parameters: Vec<u32>,
    pub(super) returns: u32,
}

/// One `struct btf_type`.
#[derive(Clone, Copy)]
struct Type {
    at: usize,
    name: u32,
    info: u32,
    /// Size or type, by kind.
    refers_to: u32,
}

impl Type {
    const fn kind(self) -> u32 {
        (self.info >> 24) & 0x1f
    }

    const fn length(self) -> usize {
        (self.info & 0xffff) as usize
    }

    /// Whether member offsets carry the size of a bitfield in their upper byte.
    const fn has_bitfields(self) -> bool {
        self.info >> 31 == 1
    }

    /// Bytes after [`TYPE`]. Returns `None` if the kind is unknown.
    const fn trailer(self) -> Option<usize> {
        Some(match self.kind() {
            kind::INT | kind::VAR | kind::DECL_TAG => 4,
            kind::ARRAY => 12,
            kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => self.length() * 12,
            kind::ENUM | kind::FUNC_PROTO => self.length() * 8,
            kind::PTR
            | kind::FWD
            | kind::TYPEDEF
            | kind::VOLATILE
            | kind::CONST
            | kind::RESTRICT
            | kind::FUNC
            | kind::FLOAT
            | kind::TYPE_TAG => 0,
            _ => return None,
        })
    }
}

impl Btf {
    /// Reads BTF in this machine's byte order.
    ///
    /// # Errors
    /// When it is damaged, or has a type of an unknown kind.
    pub fn from_bytes(bytes: impl Into<Vec<u8>>) -> Result<Self, BtfError> {
        let bytes = bytes.into();
        let malformed = |what: &str| BtfError::Malformed(what.to_owned());
        let magic = bytes.first_chunk().map(|magic| u16::from_ne_bytes(*magic));
        if magic != Some(MAGIC) {
            return Err(malformed("it does not begin with the magic number of BTF"));
        }
        let header = |at: usize| read(&bytes, at).ok_or_else(|| malformed("its header is cut off"));
        let base = header(4)?;
        let section = |offset: u32, length: u32| {
            let start = (base as usize).checked_add(offset as usize)?;
            let range = start..start.checked_add(length as usize)?;
            (range.end <= bytes.len()).then_some(range)
        };
        let types = section(header(8)?, header(12)?).ok_or_else(|| malformed("its types are cut off"))?;
        let strings = section(header(16)?, header(20)?).ok_or_else(|| malformed("its names are cut off"))?;
        let mut btf = Self { bytes, strings, types: Vec::new(), structures: HashMap::new() };
        btf.index(types).ok_or_else(|| malformed("it has a type of an unknown kind, or a cut-off one"))?;
        Ok(btf)
    }

    /// Finds where each type begins.
    fn index(&mut self, section: Range<usize>) -> Option<()> {
        let mut at = section.start;
        while at < section.end {
            let found = self.type_at(at)?;
            self.types.push(at);
            if found.kind() == kind::STRUCT {
                let name = self.name(found.name).to_vec();
                let id = u32::try_from(self.types.len()).ok()?;
                if !name.is_empty() {
                    self.structures.entry(name).or_default().push(id);
                }
            }
            at = at.checked_add(TYPE)?.checked_add(found.trailer()?)?;
        }
        (at == section.end).then_some(())
    }

    fn type_at(&self, at: usize) -> Option<Type> {
        Some(Type {
            at,
            name: read(&self.bytes, at)?,
            info: read(&self.bytes, at + 4)?,
            refers_to: read(&self.bytes, at + 8)?,
        })
    }

    fn type_of(&self, id: u32) -> Option<Type> {
        let at = self.types.get((id as usize).checked_sub(1)?)?;
        self.type_at(*at)
    }

    fn name(&self, offset: u32) -> &[u8] {
        let strings = self.bytes.get(self.strings.clone()).unwrap_or_default();
        let rest = strings.get(offset as usize..).unwrap_or_default();
        rest.split(|&byte| byte == 0).next().unwrap_or_default()
    }

    /// The structures of this name.
    pub(super) fn structures(&self, name: &str) -> &[u32] {
        self.structures.get(name.as_bytes()).map_or(&[], Vec::as_slice)
    }

    /// Whether there is a typedef of this name.
    pub(super) fn has_typedef(&self, name: &str) -> bool {
        self.types
            .iter()
            .filter_map(|&at| self.type_at(at))
            .any(|found| found.kind() == kind::TYPEDEF && self.name(found.name) == name.as_bytes())
    }

    /// The prototypes of the functions of this name; several files of the kernel may each have one.
    pub(super) fn functions(&self, name: &str) -> Vec<Proto> {
        self.types
            .iter()
            .filter_map(|&at| self.type_at(at))
            .filter(|found| found.kind() == kind::FUNC && self.name(found.name) == name.as_bytes())
            .filter_map(|found| self.type_of(found.refers_to))
            .filter(|proto| proto.kind() == kind::FUNC_PROTO)
            .map(|proto| Proto {
                parameters: (0..proto.length())
                    .map_while(|index| read(&self.bytes, proto.at + TYPE + index * 8 + 4))
                    .collect(),
                returns: proto.refers_to,
            })
            .collect()
    }

    /// The name of the structure that a pointer is to. Returns `None` for any other type.
    pub(super) fn pointee(&self, id: u32) -> Option<&[u8]> {
        let pointer = self.resolve(id).filter(|found| found.kind() == kind::PTR)?;
        let structure = self.resolve(pointer.refers_to).filter(|found| found.kind() == kind::STRUCT)?;
        Some(self.name(structure.name))
    }

    /// The members of a structure or union behind typedefs and qualifiers; none for any other type.
    pub(super) fn members(&self, id: u32) -> impl Iterator<Item = Member<'_>> {
        let structure = self.resolve(id).filter(|it| matches!(it.kind(), kind::STRUCT | kind::UNION));
        let length = structure.map_or(0, Type::length);
        (0..length).filter_map(move |index| {
            let structure = structure?;
            let at = structure.at + TYPE + index * 12;
            let offset = read(&self.bytes, at + 8)?;
            Some(Member {
                name: self.name(read(&self.bytes, at)?),
                type_id: read(&self.bytes, at + 4)?,
                bits: if structure.has_bitfields() { offset & 0x00ff_ffff } else { offset },
            })
        })
    }

    /// The type behind typedefs and qualifiers.
    fn resolve(&self, id: u32) -> Option<Type> {
        let mut here = self.type_of(id)?;
        for _ in 0..MAX_CHAIN {
            match here.kind() {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    here = self.type_of(here.refers_to)?;
                }
                _ => return Some(here),
            }
        }
        None
    }
}

fn read(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(word.try_into().ok()?))
}
