//! Where to probe `crypto/tls.(*Conn).handshakeContext`. It runs on every Read and Write and returns at once when the
//! handshake is complete: the probes go behind that test, so that they are on no data path. A return probe would
//! break the growing of stacks, so every RET is one.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

use super::pclntab::Function;
use crate::tls::inspect::{decode::written, elf::Elf};

/// More instructions are not looked at; there are about 600.
const MOST_INSTRUCTIONS: usize = 20_000;

/// Addresses to probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// The receiver is in AX here.
    pub enter: u64,
    pub leave: Vec<u64>,
}

/// `complete`: the offset of the field that says that a `Conn`'s handshake is complete.
#[must_use]
pub fn places(elf: &Elf<'_>, function: Function, complete: u16) -> Option<Places> {
    let size = usize::try_from(function.end.checked_sub(function.entry)?).ok()?;
    let code = elf.code(function.entry)?.get(..size)?;
    let instructions: Vec<_> = Decoder::with_ip(64, code, function.entry, DecoderOptions::NONE)
        .into_iter()
        .take(MOST_INSTRUCTIONS)
        .collect();

    let test = instructions.iter().position(|it| is_field(it, complete))?;
    let branch = test + instructions[test..].iter().position(|it| it.flow_control() != FlowControl::Next)?;
    let (before, behind) = (&instructions[..=branch], instructions.get(branch + 1)?);
    let keeps_receiver = before.iter().all(|it| written(it) & 1 == 0);
    let is_branch = instructions[branch].flow_control() == FlowControl::ConditionalBranch;
    (keeps_receiver && is_branch).then_some(())?;

    let at_once = instructions[branch].near_branch_target();
    let shortcut = sole_return(&instructions, branch, at_once);
    let returns = instructions.iter().filter(|it| it.flow_control() == FlowControl::Return);
    let leave: Vec<_> = returns.map(Instruction::ip).filter(|&ip| Some(ip) != shortcut).collect();
    (!leave.is_empty()).then_some(Places { enter: behind.ip(), leave })
}

/// Whether it reads that field of the receiver.
fn is_field(instruction: &Instruction, offset: u16) -> bool {
    let reads = match instruction.mnemonic() {
        Mnemonic::Mov | Mnemonic::Movzx => instruction.op1_kind() == OpKind::Memory,
        Mnemonic::Cmp | Mnemonic::Test => true,
        _ => false,
    };
    reads
        && instruction.memory_base() == Register::RAX
        && instruction.memory_index() == Register::None
        && instruction.memory_displacement64() == u64::from(offset)
}

/// The RET that only the branch at `from` to `start` leads to, if there is one.
fn sole_return(instructions: &[Instruction], from: usize, start: u64) -> Option<u64> {
    let first = instructions.iter().position(|it| it.ip() == start)?;
    let last = first + instructions[first..].iter().position(|it| it.flow_control() != FlowControl::Next)?;
    let block = start..=instructions[last].ip();
    let falls_in = match instructions[first.checked_sub(1)?].flow_control() {
        FlowControl::UnconditionalBranch | FlowControl::Return | FlowControl::Exception => false,
        _ => instructions[first - 1].mnemonic() != Mnemonic::Ud2,
    };
    let leads_in = |(index, it): (usize, &Instruction)| {
        let is_jump =
            matches!(it.flow_control(), FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch);
        index != from && is_jump && block.contains(&it.near_branch_target())
    };
    let is_return = instructions[last].flow_control() == FlowControl::Return;
    (is_return && !falls_in && !instructions.iter().enumerate().any(leads_in))
        .then(|| instructions[last].ip())
}
