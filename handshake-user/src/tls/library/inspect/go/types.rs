//! Finds the fields of a structure by the type descriptors that every Go program carries for its garbage
//! collector, even when stripped. (Go's internal/abi/type.go: `StructType`, `StructField`, `Name`)

use crate::tls::library::inspect::elf::Elf;

/// The maximum number of fields of one structure that are examined.
const MAX_FIELDS: usize = 128;
/// The maximum number of places where a name is stored, and where it is referenced.
const MAX_PLACES: usize = 16;
/// The number of words of a `StructField`: name, type, offset.
const FIELD: usize = 3;
/// The number of words before the first field, from `StructType.PkgPath` on: `PkgPath`, `Fields` (address,
/// length, capacity) and the `UncommonType` that every named type has.
const HEAD: usize = 6;

/// The fields of one structure, with their offsets.
pub(super) struct Structure<'a>(Vec<(&'a str, u64)>);

impl<'a> Structure<'a> {
    /// The structure of this package that has this field. Returns `None` unless there is exactly one.
    #[must_use]
    pub(super) fn with(elf: &Elf<'a>, package: &str, field: &str) -> Option<Self> {
        let length = u8::try_from(field.len()).ok().filter(|&length| length < 0x80)?;
        let encoded = [&[length], field.as_bytes()].concat();
        // The length is preceded by a byte of flags.
        let names: Vec<_> =
            elf.find(&encoded, MAX_PLACES).into_iter().filter_map(|at| at.checked_sub(1)).collect();
        let mut found = elf
            .references(&names, MAX_PLACES)
            .into_iter()
            .filter_map(|reference| Self::around(elf, package, reference));
        let first = found.next()?;
        found.next().is_none().then_some(first)
    }

    /// The structure to which the field described at `field` belongs.
    fn around(elf: &Elf<'a>, package: &str, field: u64) -> Option<Self> {
        const BEFORE: u64 = (MAX_FIELDS * FIELD + HEAD) as u64 * 8;
        let start = field.saturating_sub(BEFORE).max(elf.segment_start(field)?);
        let start = start + (field - start) % 8;
        let words = elf.words(start, 2 * (MAX_FIELDS * FIELD + HEAD));
        let at = usize::try_from((field - start) / 8).ok()?;
        (0..MAX_FIELDS).find_map(|index| {
            let first = at.checked_sub(index * FIELD)?;
            let head = words.get(first.checked_sub(HEAD)?..first)?;
            let count =
                usize::try_from(head[2]).ok().filter(|&count| index < count && count <= MAX_FIELDS)?;
            let is_head = head[1] == start + first as u64 * 8 && name(elf, head[0]) == Some(package);
            let fields = is_head.then(|| words.get(first..first + count * FIELD)).flatten()?;
            let fields = fields.as_chunks::<FIELD>().0.iter();
            fields
                .map(|&[field, _, offset]| Some((name(elf, field)?, offset)))
                .collect::<Option<_>>()
                .map(Self)
        })
    }

    /// The offset from the beginning of the structure, in bytes.
    #[must_use]
    pub(super) fn offset(&self, field: &str) -> Option<u16> {
        let (_, offset) = self.0.iter().find(|(name, _)| *name == field)?;
        u16::try_from(*offset).ok()
    }
}

/// A name: flags, a one-byte length (no name that matters here is longer), the text.
fn name<'a>(elf: &Elf<'a>, address: u64) -> Option<&'a str> {
    let [_flags, length, text @ ..] = elf.bytes(address, 2 + 0x7f)? else { return None };
    (*length < 0x80).then_some(())?;
    str::from_utf8(text.get(..usize::from(*length))?).ok()
}
