//! Where to probe `crypto/tls.(*Conn).handshakeContext`. It runs on every Read and Write and returns at once
//! when the handshake is complete: the probes are placed after that test, so that they are on no data path. A
//! return probe would break stack growth, so every RET is probed.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

use super::pclntab::Function;
use crate::tls::library::inspect::{decode::written, elf::Elf};

/// The maximum number of instructions that are decoded; there are about 600.
const MAX_INSTRUCTIONS: usize = 20_000;

/// The maximum number of returns, each of which takes a probe; there are about ten.
const MAX_RETURNS: usize = 64;

/// Addresses to probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ProbePoints {
    /// The receiver is in AX here.
    pub enter: u64,
    pub leave: Vec<u64>,
}

/// `complete`: the offset of the `Conn` field that says whether the handshake is complete.
#[must_use]
pub(super) fn probe_points(elf: &Elf<'_>, function: Function, complete: u16) -> Option<ProbePoints> {
    let size = usize::try_from(function.end.checked_sub(function.entry)?).ok()?;
    let code = elf.code(function.entry, size).filter(|code| code.len() == size)?;
    let instructions: Vec<_> = Decoder::with_ip(64, code, function.entry, DecoderOptions::NONE)
        .into_iter()
        .take(MAX_INSTRUCTIONS)
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
    (1..=MAX_RETURNS).contains(&leave.len()).then_some(ProbePoints { enter: behind.ip(), leave })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::library::inspect::{image::Image, sample};

    /// The code of Go 1.24, shortened.
    #[rustfmt::skip]
    const CODE: &[u8] = &[
        0x49, 0x3b, 0x66, 0x10,       //  0: cmp 0x10(%r14),%rsp
        0x76, 0x16,                   //  4: jbe 28
        0x55,                         //  6: push %rbp
        0x8b, 0x50, 0x28,             //  7: mov 0x28(%rax),%edx
        0x85, 0xd2,                   // 10: test %edx,%edx
        0x75, 0x08,                   // 12: jne 22
        0x48, 0x89, 0x44, 0x24, 0x08, // 14: mov %rax,0x8(%rsp)
        0x90,                         // 19: nop
        0x5d,                         // 20: pop %rbp
        0xc3,                         // 21: ret
        0x31, 0xc0,                   // 22: xor %eax,%eax
        0x31, 0xdb,                   // 24: xor %ebx,%ebx
        0x5d,                         // 26: pop %rbp
        0xc3,                         // 27: ret, at once
        0xeb, 0xe2,                   // 28: jmp 0
    ];

    fn points_in(code: &[u8], complete: u16) -> Option<ProbePoints> {
        let file = sample::file(sample::X86_64, &[("", code)]);
        let entry = sample::address(0);
        let function = Function { entry, end: entry + code.len() as u64 };
        probe_points(&Elf::parse(&Image::new(&file)).unwrap(), function, complete)
    }

    #[test]
    fn probe_points_follow_the_completion_test() {
        let entry = sample::address(0);
        let expected = ProbePoints { enter: entry + 14, leave: vec![entry + 21] };
        assert_eq!(points_in(CODE, 0x28), Some(expected));
    }

    #[test]
    fn other_field_or_unknown_receiver_yields_none() {
        assert_eq!(points_in(CODE, 0x30), None);
        let mut code = CODE.to_vec();
        code[7] = 0x8b;
        code[8] = 0x40; // mov 0x28(%rax),%eax
        assert_eq!(points_in(&code, 0x28), None);
    }

    #[test]
    fn return_shared_with_the_shortcut_is_probed() {
        let mut code = CODE.to_vec();
        code[19..22].copy_from_slice(&[0x90, 0x90, 0x90]); // falls into the shortcut
        let expected = ProbePoints { enter: sample::address(0) + 14, leave: vec![sample::address(0) + 27] };
        assert_eq!(points_in(&code, 0x28), Some(expected));
    }
}
