//! The extents of functions and the positions of their frames, according to the file's own unwind tables
//! (`.eh_frame`; DWARF 5 §6.4), which stripped files keep.

use gimli::{
    AArch64, BaseAddresses, CfaRule, EhFrame, EhFrameOffset, EndianSlice, Error, FrameDescriptionEntry,
    LittleEndian, UnwindContext, UnwindSection as _, Vendor, X86_64,
};
use handshake_common::tls::library::target::Base;

use super::elf::{Elf, Machine, Section};

type Bytes<'a> = EndianSlice<'a, LittleEndian>;

/// The maximum length of a common information entry, which is read once for each entry that refers to it;
/// compilers write about 30 bytes.
const MAX_COMMON: u32 = 128;
/// The maximum number of changes of one function's frame.
const MAX_ROWS: usize = 50_000;

/// The unwind tables of a file.
pub(super) struct Frames<'a> {
    bytes: &'a [u8],
    section: EhFrame<Bytes<'a>>,
    bases: BaseAddresses,
    machine: Machine,
}

/// A function, or a part of one that the compiler placed elsewhere.
pub(super) struct Frame {
    /// Its first instruction.
    pub start: u64,
    /// The end of its last instruction.
    pub end: u64,
    rows: Vec<Row>,
}

/// A range of instructions in which the frame does not change.
struct Row {
    start: u64,
    end: u64,
    base: Option<Base>,
}

impl<'a> Frames<'a> {
    /// Returns `None` if the file has no such tables.
    pub(super) fn of(elf: &Elf<'a>) -> Option<Self> {
        let Section { address, range } = elf.section(".eh_frame")?;
        let bytes = elf.image.bytes(range.start, usize::try_from(range.end - range.start).ok()?)?;
        let mut section = EhFrame::new(bytes, LittleEndian);
        if elf.machine == Machine::Aarch64 {
            // Where a return address is signed (`paciasp`), an instruction of the table says so.
            section.set_vendor(Vendor::AArch64);
        }
        let bases = BaseAddresses::default().set_eh_frame(address);
        Some(Self { bytes, section, bases, machine: elf.machine })
    }

    /// The part of a function that contains this instruction.
    pub(super) fn at(&self, address: u64) -> Option<Frame> {
        let find = |section: &EhFrame<_>, bases: &_, offset: EhFrameOffset| {
            if self.length(offset.0).is_none_or(|length| length > MAX_COMMON) {
                return Err(Error::OffsetOutOfBounds(offset.0 as u64));
            }
            section.cie_from_offset(bases, offset)
        };
        let entry = self.section.fde_for_address(&self.bases, address, find).ok()?;
        let start = entry.initial_address();
        Some(Frame { start, end: start.checked_add(entry.len())?, rows: self.rows(&entry) })
    }

    /// The length of the entry at this place.
    fn length(&self, at: usize) -> Option<u32> {
        self.bytes.get(at..)?.first_chunk().map(|length| u32::from_le_bytes(*length))
    }

    /// In one pass: starting over for each instruction could take arbitrarily long with a hostile file.
    fn rows(&self, entry: &FrameDescriptionEntry<Bytes<'a>>) -> Vec<Row> {
        let mut context = UnwindContext::new();
        let mut rows = Vec::new();
        let Ok(mut table) = entry.rows(&self.section, &self.bases, &mut context) else { return rows };
        while rows.len() < MAX_ROWS
            && let Ok(Some(row)) = table.next_row()
        {
            let base = self.base(row.cfa());
            rows.push(Row { start: row.start_address(), end: row.end_address(), base });
        }
        rows
    }

    fn base(&self, rule: &CfaRule<usize>) -> Option<Base> {
        let &CfaRule::RegisterAndOffset { register, offset } = rule else { return None };
        // The canonical frame address is the stack pointer before the call, which on x86-64 pushes the return
        // address.
        let (stack, frame, pushed) = match self.machine {
            Machine::X86_64 => (X86_64::RSP, X86_64::RBP, 8),
            Machine::Aarch64 => (AArch64::SP, AArch64::X29, 0),
        };
        let depth = u32::try_from(offset.checked_sub(pushed)?).ok()?;
        (register == stack || register == frame)
            .then_some(Base { is_frame_pointer: register == frame, depth })
            .filter(Base::is_plausible)
    }
}

impl Frame {
    /// Whether it contains this address.
    pub(super) fn holds(&self, address: u64) -> bool {
        (self.start..self.end).contains(&address)
    }

    /// Where the stack pointer at the function's entry is found before this instruction. Returns `None` if it
    /// is not at an offset from a register.
    pub(super) fn base(&self, address: u64) -> Option<Base> {
        let row = self.rows.get(self.rows.partition_point(|row| row.end <= address))?;
        (row.start <= address).then_some(row.base)?
    }
}
