//! Instructions of x86-64.

use std::collections::HashSet;

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind,
    Register as Named,
};

use super::operation::{Operation, Register};
use crate::tls::library::inspect::elf::Elf;

/// RAX.
pub(super) const RESULT: Register = 0;
/// The offset of the stack protector's canary in the FS segment.
const CANARY: u64 = 0x28;
/// The maximum number of instructions between that check and the return.
const MAX_EPILOGUE: usize = 32;
/// The longest instruction (Intel SDM, volume 2, §2.3.11).
const MAX_INSTRUCTION: usize = 15;
/// `endbr64`: the landing pad of indirect jumps.
const LANDING_PAD: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];

/// The instruction at the start of `code`, which is at `address`, and the address of the next one.
pub(super) fn decode(code: &[u8], address: u64) -> Option<(Operation, u64)> {
    let instruction = one(code, address)?;
    Some((operation(&instruction), instruction.next_ip()))
}

fn one(code: &[u8], address: u64) -> Option<Instruction> {
    let code = &code[..code.len().min(MAX_INSTRUCTION)];
    let instruction = Decoder::with_ip(64, code, address, DecoderOptions::NONE).decode();
    (!instruction.is_invalid()).then_some(instruction)
}

fn operation(instruction: &Instruction) -> Operation {
    match instruction.flow_control() {
        FlowControl::Next => straight(instruction),
        FlowControl::UnconditionalBranch => Operation::Jump { target: instruction.near_branch_target() },
        FlowControl::ConditionalBranch => Operation::Branch { target: instruction.near_branch_target() },
        FlowControl::Call => Operation::Call { target: Some(instruction.near_branch_target()) },
        FlowControl::IndirectCall => Operation::Call { target: None },
        FlowControl::IndirectBranch => {
            Operation::Leap { in_table: instruction.segment_prefix() == Named::DS } // notrack
        }
        FlowControl::Return => Operation::Return,
        _ => Operation::Stop,
    }
}

fn straight(instruction: &Instruction) -> Operation {
    use Mnemonic::{Add, Cmp, Endbr64, Lea, Mov, Movsx, Movsxd, Movzx, Nop, Push, Sub, Test, Xor};
    let understood = match instruction.mnemonic() {
        Endbr64 | Nop | Push => Some(Operation::Nothing),
        Cmp | Test => Some(load(instruction, None).unwrap_or(Operation::Nothing)),
        Mov if instruction.op0_kind() == OpKind::Memory => Some(Operation::Nothing),
        Mov | Movzx | Movsx | Movsxd => moved(instruction),
        Lea => address(instruction),
        Add | Sub => sum(instruction),
        Xor if instruction.op1_kind() == OpKind::Register
            && instruction.op0_register() == instruction.op1_register() =>
        {
            whole(instruction.op0_register()).map(|to| Operation::Constant { to, value: 0 })
        }
        _ => None,
    };
    understood.unwrap_or_else(|| Operation::Forget { registers: written(instruction) })
}

/// A register that an instruction overwrites completely: writing the lower half clears the upper one.
fn whole(register: Named) -> Option<Register> {
    (register.is_gpr32() || register.is_gpr64()).then(|| number(register)).flatten()
}

fn number(register: Named) -> Option<Register> {
    register.is_gpr().then(|| u8::try_from(register.full_register().number()).ok()).flatten()
}

fn moved(instruction: &Instruction) -> Option<Operation> {
    let to = whole(instruction.op0_register())?;
    match instruction.op1_kind() {
        OpKind::Memory => load(instruction, Some(to)),
        OpKind::Register => {
            let from = instruction.op1_register();
            let is_high_byte = matches!(from, Named::AH | Named::BH | Named::CH | Named::DH);
            let width = u8::try_from(from.size()).ok().filter(|_| !is_high_byte)?;
            let from = number(from)?;
            Some(match width {
                8 => Operation::Add { to, from, by: 0 },
                width => Operation::Narrow { to, from, width },
            })
        }
        OpKind::Immediate8to32 | OpKind::Immediate32 | OpKind::Immediate32to64 | OpKind::Immediate64 => {
            Some(Operation::Constant { to, value: instruction.immediate(1) })
        }
        _ => None,
    }
}

/// Base and displacement of a memory operand without further parts.
fn simple(instruction: &Instruction) -> Option<(Register, i64)> {
    let is_simple = instruction.memory_index() == Named::None
        && instruction.segment_prefix() == Named::None
        && instruction.memory_base().is_gpr64();
    is_simple.then_some(())?;
    Some((number(instruction.memory_base())?, instruction.memory_displacement64().cast_signed()))
}

fn load(instruction: &Instruction, to: Option<Register>) -> Option<Operation> {
    (instruction.op0_kind() == OpKind::Memory || instruction.op1_kind() == OpKind::Memory).then_some(())?;
    let (base, by) = simple(instruction)?;
    let width = u8::try_from(instruction.memory_size().size()).ok()?;
    Some(Operation::Load { to, base, by, width })
}

fn address(instruction: &Instruction) -> Option<Operation> {
    let to = instruction.op0_register();
    (to.is_gpr64()).then_some(())?;
    let to = number(to)?;
    if instruction.is_ip_rel_memory_operand() {
        return Some(Operation::Constant { to, value: instruction.ip_rel_memory_address() });
    }
    if let Some((from, by)) = simple(instruction) {
        return Some(Operation::Add { to, from, by });
    }
    let parts = [instruction.memory_base(), instruction.memory_index()];
    (parts.iter().all(|part| part.is_gpr64()) && instruction.segment_prefix() == Named::None).then_some(())?;
    let [base, index] = parts.map(number);
    let scale = u8::try_from(instruction.memory_index_scale()).ok()?;
    let by = instruction.memory_displacement64().cast_signed();
    Some(Operation::Index { to, base: base?, index: index?, scale, by })
}

fn sum(instruction: &Instruction) -> Option<Operation> {
    let to = instruction.op0_register();
    let is_immediate = matches!(instruction.op1_kind(), OpKind::Immediate8to64 | OpKind::Immediate32to64);
    (instruction.op0_kind() == OpKind::Register && to.is_gpr64() && is_immediate).then_some(())?;
    let by = instruction.immediate(1).cast_signed();
    let by = if instruction.mnemonic() == Mnemonic::Sub { by.checked_neg()? } else { by };
    let to = number(to)?;
    Some(Operation::Add { to, from: to, by })
}

/// The registers that an instruction changes, one bit each.
pub(crate) fn written(instruction: &Instruction) -> u32 {
    let mut factory = InstructionInfoFactory::new();
    factory
        .info(instruction)
        .used_registers()
        .iter()
        .filter(|used| !matches!(used.access(), OpAccess::None | OpAccess::Read | OpAccess::CondRead))
        .filter_map(|used| number(used.register()))
        .fold(0, |registers, register| registers | 1 << register)
}

/// Where to probe a function at `address`: after its `endbr64` if the kernel emulates the next instruction,
/// which is ten times cheaper than single-stepping the `endbr64`. The stack is the same as at the entry, so a
/// return probe finds the return address there, too.
pub(crate) fn behind_landing_pad(code: &[u8], address: u64) -> u64 {
    let (code, start) = body(code, address);
    if one(code, start).is_some_and(|instruction| is_emulated(&instruction)) { start } else { address }
}

/// Where to probe a function that frees its argument: after its initial test for a null pointer, if the
/// kernel emulates the next instruction. The argument is still in its register there, and freeing a null
/// pointer is of no interest.
pub(crate) fn behind_null_test(whole: &[u8], address: u64) -> u64 {
    let (code, start) = body(whole, address);
    let after_test = || {
        let test = one(code, start)?;
        let is_test = test.mnemonic() == Mnemonic::Test
            && test.op0_register() == Named::RDI
            && test.op1_register() == Named::RDI;
        let branch = one(code.get(test.len()..)?, test.next_ip())?;
        let skips = branch.mnemonic() == Mnemonic::Je && branch.near_branch_target() > branch.next_ip();
        let rest = one(code.get(test.len() + branch.len()..)?, branch.next_ip())?;
        (is_test && skips && is_emulated(&rest)).then_some(rest.ip())
    };
    after_test().unwrap_or_else(|| behind_landing_pad(whole, address))
}

/// The branch of the stack protector's check before a return: the kernel emulates it but single-steps a
/// return, which takes fifteen times as long on a virtual machine. If the branch is taken, the function does
/// not return. (`-fstack-protector`)
pub(super) fn checked_return(
    elf: &Elf<'_>,
    steps: &[(u64, Operation)],
    jumped_to: &HashSet<u64>,
) -> Option<(u64, Register)> {
    let instruction = |address| one(elf.code(address, MAX_INSTRUCTION)?, address);
    let mut result = RESULT;
    let (&(mut behind, _), before) = steps.split_last()?;
    for (index, &(at, operation)) in before.iter().enumerate().rev().take(MAX_EPILOGUE) {
        if jumped_to.contains(&behind) {
            return None;
        }
        match operation {
            Operation::Branch { .. } => {
                // GCC compares with the canary in memory, Clang loads it first.
                let checks = &before[index.saturating_sub(2)..index];
                let mut checks = checks.iter().filter_map(|&(address, _)| instruction(address));
                return checks.any(|check| is_canary(&check)).then_some((at, result));
            }
            Operation::Jump { .. }
            | Operation::Leap { .. }
            | Operation::Return
            | Operation::Stop
            | Operation::Call { .. } => {
                return None;
            }
            _ => result = before_move(&instruction(at)?, result)?,
        }
        behind = at;
    }
    None
}

fn is_canary(instruction: &Instruction) -> bool {
    instruction.segment_prefix() == Named::FS
        && instruction.memory_displacement64() == CANARY
        && instruction.memory_base() == Named::None
}

/// The register that held the value before an instruction that `register` holds after it.
fn before_move(instruction: &Instruction, register: Register) -> Option<Register> {
    if written(instruction) & 1 << register == 0 {
        return Some(register);
    }
    let is_move = instruction.mnemonic() == Mnemonic::Mov
        && instruction.op0_kind() == OpKind::Register
        && instruction.op1_kind() == OpKind::Register;
    (is_move && whole(instruction.op0_register()) == Some(register)).then_some(())?;
    whole(instruction.op1_register())
}

/// Where `code`, which is at `address`, calls or jumps through the pointer at `slot`: functions of another
/// file are reached either through one stub or from each call site.
pub(crate) fn through_pointer(code: &[u8], address: u64, slot: u64) -> impl Iterator<Item = u64> {
    memchr::memchr_iter(0xff, code).filter_map(move |at| {
        // call *x(%rip), jmp *x(%rip)
        let [_, 0x15 | 0x25, by @ ..] = code[at..].first_chunk::<6>()? else { return None };
        let is_at = address + at as u64;
        let leads_to = (is_at + 6).wrapping_add_signed(i64::from(i32::from_le_bytes(*by)));
        // The `bnd` prefix belongs to the instruction.
        let is_bnd = at.checked_sub(1).is_some_and(|before| code[before] == 0xf2);
        (leads_to == slot).then_some(is_at - u64::from(is_bnd))
    })
}

/// The code of the function after its `endbr64`.
fn body(code: &[u8], address: u64) -> (&[u8], u64) {
    match code.strip_prefix(&LANDING_PAD) {
        Some(rest) => (rest, address + LANDING_PAD.len() as u64),
        None => (code, address),
    }
}

/// A push, a jump or a call, which the kernel emulates instead of single-stepping.
/// (`arch/x86/kernel/uprobes.c`)
fn is_emulated(instruction: &Instruction) -> bool {
    match instruction.mnemonic() {
        Mnemonic::Push => instruction.op0_kind() == OpKind::Register,
        Mnemonic::Nop => true,
        Mnemonic::Call | Mnemonic::Jmp => instruction.op0_kind() == OpKind::NearBranch64,
        _ => instruction.flow_control() == FlowControl::ConditionalBranch,
    }
}
