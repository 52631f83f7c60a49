//! Instructions of AArch64: the few of which small functions consist. (Arm ARM, C4.1)

use super::operation::{Operation, Register};

/// X0.
pub(super) const RESULT: Register = 0;
/// The register number of the zero register or the stack pointer.
const ZERO: u32 = 31;

/// The instruction at the start of `code`, which is at `address`, and the address of the next one.
pub(super) fn decode(code: &[u8], address: u64) -> Option<(Operation, u64)> {
    let word = u32::from_le_bytes(*code.first_chunk()?);
    Some((operation(word, address), address.checked_add(4)?))
}

/// The slot with the address to which the linker's stub at `address` jumps, for a function in another file:
/// `adrp x16, …; ldr x17, [x16, …]; add x16, x16, …; br x17`, with a landing pad before them or not.
pub(super) fn stub(code: &[u8], address: u64) -> Option<u64> {
    let (mut page, mut slot) = (None, None);
    for (word, at) in code.as_chunks().0.iter().zip((address..).step_by(4)) {
        match operation(u32::from_le_bytes(*word), at) {
            Operation::Constant { to, value } => page = Some((to, value)),
            Operation::Load { base, by, width: 8, .. } => {
                slot =
                    page.filter(|&(register, _)| register == base).map(|(_, at)| at.wrapping_add_signed(by));
            }
            Operation::Leap { .. } => return slot,
            Operation::Nothing | Operation::Add { .. } => {}
            _ => return None,
        }
    }
    None
}

/// `bits` bits of the word from bit `from` on.
const fn part(word: u32, from: u32, bits: u32) -> u32 {
    word >> from & ((1 << bits) - 1)
}

#[expect(clippy::cast_possible_truncation, reason = "five bits")]
const fn register(word: u32, from: u32) -> Register {
    part(word, from, 5) as Register
}

/// The same, sign-extended.
fn signed(word: u32, from: u32, bits: u32) -> i64 {
    let shift = 32 - bits;
    i64::from((part(word, from, bits) << shift).cast_signed() >> shift)
}

fn operation(word: u32, address: u64) -> Operation {
    let ahead = |from, bits| address.wrapping_add_signed(signed(word, from, bits) * 4);
    let is = |mask, value| word & mask == value;
    if is(0xffff_f01f, 0xd503_201f) {
        return Operation::Nothing; // hints: bti, paciasp, nop
    }
    if is(0xfc00_0000, 0x1400_0000) {
        return Operation::Jump { target: ahead(0, 26) };
    }
    if is(0xff00_0010, 0x5400_0000) || is(0x7e00_0000, 0x3400_0000) {
        return Operation::Branch { target: ahead(5, 19) }; // b.cond, cbz, cbnz
    }
    if is(0x7e00_0000, 0x3600_0000) {
        return Operation::Branch { target: ahead(5, 14) }; // tbz, tbnz
    }
    if is(0xfc00_0000, 0x9400_0000) {
        return Operation::Call { target: Some(ahead(0, 26)) }; // bl
    }
    if is(0xffff_fc1f, 0xd63f_0000) {
        return Operation::Call { target: None }; // blr
    }
    if is(0xffff_fc1f, 0xd65f_0000) || is(0xffff_fbff, 0xd65f_0bff) {
        return Operation::Return; // ret, retaa, retab
    }
    if is(0xffff_fc1f, 0xd61f_0000) || is(0xfeff_f800, 0xd61f_0800) {
        return Operation::Leap { in_table: false }; // br, braa, brab
    }
    if is(0x1c00_0000, 0x1400_0000) {
        return Operation::Stop; // other branches, system and exceptions
    }
    vector(word).or_else(|| memory(word)).or_else(|| arithmetic(word, address)).unwrap_or_else(|| {
        // Arithmetic has one destination; a load may name others, and changes its base.
        let is_memory = is(0x0a00_0000, 0x0800_0000);
        let others = if is_memory { mask(word, 5) | mask(word, 10) | mask(word, 16) } else { 0 };
        Operation::Forget { registers: mask(word, 0) | others }
    })
}

/// A set of one register; the zero register never changes.
fn mask(word: u32, from: u32) -> u32 {
    1 << part(word, from, 5) & !(1 << ZERO)
}

/// Vector and floating-point instructions do not change general-purpose registers, except for a few moves and
/// conversions, and a base register with writeback.
fn vector(word: u32) -> Option<Operation> {
    let is = |mask, value| word & mask == value;
    if is(0x3f00_0000, 0x3d00_0000) || is(0x3f80_0000, 0x2d00_0000) {
        return Some(Operation::Nothing); // ldr, str, ldp, stp with an offset
    }
    if is(0x0e00_0000, 0x0c00_0000) && is(0x0400_0000, 0x0400_0000) {
        return Some(Operation::Forget { registers: mask(word, 5) });
    }
    let is_vector = is(0x0e00_0000, 0x0e00_0000);
    let is_to_general = is(0x5f20_fc00, 0x1e20_0000) || is(0x9fe0_8400, 0x0e00_0400);
    is_vector.then(|| Operation::Forget { registers: if is_to_general { mask(word, 0) } else { 0 } })
}

/// Loads and stores of general-purpose registers.
fn memory(word: u32) -> Option<Operation> {
    let is = |mask, value| word & mask == value;
    let width = 1 << part(word, 30, 2);
    let by = if is(0x3fff_fc00, 0x08df_fc00) {
        0 // ldar
    } else if is(0x3b00_0000, 0x3900_0000) {
        i64::from(part(word, 10, 12)) * i64::from(width)
    } else if is(0x3b20_0c00, 0x3800_0000) {
        signed(word, 12, 9)
    } else if is(0x3a00_0000, 0x2800_0000) {
        // Pairs: some also change the base, which is then the stack pointer.
        let loaded = if is(0x0040_0000, 0x0040_0000) { mask(word, 0) | mask(word, 10) } else { 0 };
        let moved = if is(0x0080_0000, 0x0080_0000) { mask(word, 5) } else { 0 };
        return Some(Operation::Forget { registers: loaded | moved });
    } else {
        return None;
    };
    let base = register(word, 5);
    match part(word, 22, 2) {
        0 => Some(Operation::Nothing),
        _ if part(word, 0, 5) == ZERO => None,
        _ => Some(Operation::Load { to: Some(register(word, 0)), base, by, width }),
    }
}

fn arithmetic(word: u32, address: u64) -> Option<Operation> {
    let is = |mask, value| word & mask == value;
    let is_64 = part(word, 31, 1) == 1;
    let to = register(word, 0);
    // subs and ands into the zero register: comparisons.
    if is(0x7f00_001f, 0x7100_001f) || is(0x7f20_001f, 0x6b00_001f) || is(0x7f80_001f, 0x7200_001f) {
        return Some(Operation::Nothing);
    }
    if part(word, 0, 5) == ZERO {
        return None;
    }
    if is(0x7f80_0000, 0x1100_0000) || is(0x7f80_0000, 0x5100_0000) {
        let by = i64::from(part(word, 10, 12)) << (12 * part(word, 22, 1));
        let by = if part(word, 30, 1) == 1 { -by } else { by };
        return is_64.then_some(Operation::Add { to, from: register(word, 5), by });
    }
    if let Some(index) = index(word) {
        return Some(index);
    }
    if is(0x7fe0_ffe0, 0x2a00_03e0) {
        let from = register(word, 16);
        return Some(match (u32::from(from), is_64) {
            (ZERO, _) => Operation::Constant { to, value: 0 },
            (_, true) => Operation::Add { to, from, by: 0 },
            (_, false) => Operation::Narrow { to, from, width: 4 },
        });
    }
    if is(0x7f80_0000, 0x5280_0000) {
        let value = u64::from(part(word, 5, 16)) << (16 * part(word, 21, 2));
        return Some(Operation::Constant { to, value });
    }
    if is(0x1f00_0000, 0x1000_0000) {
        let by = signed(word, 5, 19) << 2 | i64::from(part(word, 29, 2));
        let value = if is_64 {
            (address & !0xfff).wrapping_add_signed(by << 12)
        } else {
            address.wrapping_add_signed(by)
        };
        return Some(Operation::Constant { to, value });
    }
    None
}

/// Additions of a register, and shifts, of 64 bits.
fn index(word: u32) -> Option<Operation> {
    let is = |mask, value| word & mask == value;
    let (to, from) = (register(word, 0), register(word, 5));
    if is(0xffe0_0000, 0x8b00_0000) {
        let scale = u8::try_from(1_u64 << part(word, 10, 6)).ok()?;
        return Some(Operation::Index { to, base: from, index: register(word, 16), scale, by: 0 }); // add, lsl
    }
    if is(0xffe0_c000, 0x8b20_4000) {
        let scale = 1_u8 << part(word, 10, 3);
        return Some(Operation::Index { to, base: from, index: register(word, 16), scale, by: 0 }); // add, uxtw
    }
    if is(0xffc0_0000, 0xd340_0000) {
        let (rotation, last) = (part(word, 16, 6), part(word, 10, 6));
        // lsl, or ubfiz of at least 32 bits: the number itself, and so many times more.
        let shift = (last < rotation && last >= 31).then(|| 64 - rotation)?;
        let scale = u8::try_from((1_u64 << shift) - 1).ok()?;
        return Some(Operation::Index { to, base: from, index: from, scale, by: 0 });
    }
    None
}
