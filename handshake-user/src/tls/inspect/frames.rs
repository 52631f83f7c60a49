//! How far functions reach and where their frames lie, as the file's own unwind tables tell (`.eh_frame`; DWARF 5 §6.4). Stripped
//! files keep them.

use gimli::{
    BaseAddresses, CfaRule, EhFrame, EndianSlice, FrameDescriptionEntry, LittleEndian, Register,
    UnwindContext, UnwindSection as _,
};
use handshake_common::tls::target::Base;

use super::elf::{Elf, Machine, Section};

type Bytes<'a> = EndianSlice<'a, LittleEndian>;

/// The unwind tables of a file.
pub struct Frames<'a> {
    section: EhFrame<Bytes<'a>>,
    bases: BaseAddresses,
    machine: Machine,
}

/// A function, or a part of one that the compiler has put elsewhere.
pub struct Frame<'f, 'a> {
    frames: &'f Frames<'a>,
    entry: FrameDescriptionEntry<Bytes<'a>>,
    /// Its first instruction.
    pub start: u64,
    /// Behind its last one.
    pub end: u64,
}

impl<'a> Frames<'a> {
    /// `None`: the file has no such tables.
    pub fn of(elf: &Elf<'a>) -> Option<Self> {
        let Section { address, range } = elf.section(".eh_frame")?;
        let bytes = elf.image.bytes(range.start, usize::try_from(range.end - range.start).ok()?)?;
        let section = EhFrame::new(bytes, LittleEndian);
        Some(Self { section, bases: BaseAddresses::default().set_eh_frame(address), machine: elf.machine })
    }

    /// The part of a function that holds this instruction.
    pub fn at(&self, address: u64) -> Option<Frame<'_, 'a>> {
        let find = |section: &EhFrame<_>, bases: &_, offset| section.cie_from_offset(bases, offset);
        let entry = self.section.fde_for_address(&self.bases, address, find).ok()?;
        let start = entry.initial_address();
        Some(Frame { frames: self, start, end: start.checked_add(entry.len())?, entry })
    }
}

impl Frame<'_, '_> {
    /// Whether this address is in it.
    pub fn holds(&self, address: u64) -> bool {
        (self.start..self.end).contains(&address)
    }

    /// Where, before this instruction, the stack pointer of the function's entry is to be found; `None`: not as a distance from
    /// a register.
    pub fn base(&self, address: u64) -> Option<Base> {
        let Frames { section, bases, machine } = self.frames;
        let mut context = UnwindContext::new();
        let row = self.entry.unwind_info_for_address(section, bases, &mut context, address).ok()?;
        let &CfaRule::RegisterAndOffset { register, offset } = row.cfa() else { return None };
        // The canonical frame address is the stack pointer before the call, which on x86-64 pushes the return address.
        let (stack, frame, pushed) = match machine {
            Machine::X86_64 => (Register(7), Register(6), 8),
            Machine::Aarch64 => (Register(31), Register(29), 0),
        };
        let depth = u32::try_from(offset.checked_sub(pushed)?).ok()?;
        (register == stack || register == frame)
            .then_some(Base { is_frame_pointer: register == frame, depth })
            .filter(Base::is_plausible)
    }
}
