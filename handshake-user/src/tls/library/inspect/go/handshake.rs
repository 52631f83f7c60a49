//! Where to probe `crypto/tls.(*Conn).handshakeContext`. It runs on every Read and Write and returns at once
//! when the handshake is complete: the probes are placed after that test, so that they are on no data path. A
//! return probe would break stack growth, so every RET is probed.

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

use super::pclntab::Function;
use crate::tls::library::inspect::{
    decode::{Operation, decode, written},
    elf::{Elf, Machine},
};

/// The maximum number of instructions that are decoded; there are about 600.
const MAX_INSTRUCTIONS: usize = 20_000;

/// The maximum number of returns, each of which takes a probe; there are about ten.
const MAX_RETURNS: usize = 64;

/// Addresses to probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ProbePoints {
    /// The receiver is in its register here: AX, or R0.
    pub enter: u64,
    pub leave: Vec<u64>,
}

/// One instruction.
struct Step {
    address: u64,
    flow: Flow,
    /// Whether it reads the field of the receiver that says whether the handshake is complete.
    is_test: bool,
    keeps_receiver: bool,
}

/// Where the program goes on after an instruction.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    /// At the next one.
    Next,
    /// There or at the next one.
    Branch(u64),
    Jump(u64),
    /// There, and then at the next one.
    Call,
    Return,
    /// Nowhere: the program panics.
    Trap,
    /// At an address that is not known.
    Other,
}

/// `complete`: the offset of the `Conn` field that says whether the handshake is complete.
#[must_use]
pub(super) fn probe_points(elf: &Elf<'_>, function: Function, complete: u16) -> Option<ProbePoints> {
    let steps = match elf.machine {
        Machine::X86_64 => x86_64(elf, function, complete),
        Machine::Aarch64 => aarch64(elf, function, complete),
    }?;
    let test = steps.iter().position(|step| step.is_test)?;
    let branch = test + steps[test..].iter().position(|step| step.flow != Flow::Next)?;
    let Flow::Branch(at_once) = steps[branch].flow else { return None };
    let behind = steps.get(branch + 1)?;
    steps[..=branch].iter().all(|step| step.keeps_receiver).then_some(())?;

    let shortcut = sole_return(&steps, branch, at_once);
    let returns = steps.iter().filter(|step| step.flow == Flow::Return);
    let leave: Vec<_> = returns.map(|step| step.address).filter(|&at| Some(at) != shortcut).collect();
    (1..=MAX_RETURNS).contains(&leave.len()).then_some(ProbePoints { enter: behind.address, leave })
}

fn x86_64(elf: &Elf<'_>, function: Function, complete: u16) -> Option<Vec<Step>> {
    let size = usize::try_from(function.end.checked_sub(function.entry)?).ok()?;
    let code = elf.code(function.entry, size).filter(|code| code.len() == size)?;
    let flow = |it: &Instruction| match it.flow_control() {
        FlowControl::Exception => Flow::Trap,
        _ if it.code() == Code::Ud2 => Flow::Trap,
        FlowControl::Next => Flow::Next,
        FlowControl::ConditionalBranch => Flow::Branch(it.near_branch_target()),
        FlowControl::UnconditionalBranch => Flow::Jump(it.near_branch_target()),
        FlowControl::Call | FlowControl::IndirectCall => Flow::Call,
        FlowControl::Return => Flow::Return,
        _ => Flow::Other,
    };
    let instructions = Decoder::with_ip(64, code, function.entry, DecoderOptions::NONE);
    let step = |it: Instruction| Step {
        address: it.ip(),
        flow: flow(&it),
        is_test: is_field(&it, complete),
        keeps_receiver: written(&it) & 1 == 0,
    };
    Some(instructions.into_iter().take(MAX_INSTRUCTIONS).map(step).collect())
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

/// There an atomic load has no offset: the address of the field is computed before.
fn aarch64(elf: &Elf<'_>, function: Function, complete: u16) -> Option<Vec<Step>> {
    const REGISTERS: usize = 32;
    // How far behind the receiver each register points.
    let mut offsets = [None::<i64>; REGISTERS];
    offsets[0] = Some(0);
    let (mut steps, mut at) = (Vec::new(), function.entry);
    while at < function.end && steps.len() < MAX_INSTRUCTIONS {
        let (operation, next) = decode(elf, at)?;
        let flow = match operation {
            Operation::Branch { target } => Flow::Branch(target),
            Operation::Jump { target } => Flow::Jump(target),
            Operation::Return => Flow::Return,
            Operation::Call { .. } => Flow::Call,
            Operation::Leap { .. } | Operation::Stop => Flow::Other,
            _ => Flow::Next,
        };
        let behind = |register: u8, by: i64| offsets[usize::from(register)]?.checked_add(by);
        let is_test = matches!(operation, Operation::Load { base, by, .. }
            if behind(base, by) == Some(i64::from(complete)));
        let computed = match operation {
            Operation::Add { from, by, .. } => behind(from, by),
            _ => None,
        };
        let written = operation.written();
        for (register, offset) in offsets.iter_mut().enumerate() {
            if written & 1 << register != 0 {
                *offset = computed;
            }
        }
        steps.push(Step { address: at, flow, is_test, keeps_receiver: written & 1 == 0 });
        at = next;
    }
    Some(steps)
}

/// The return that only the branch at `from` to `start` leads to, if there is one.
fn sole_return(steps: &[Step], from: usize, start: u64) -> Option<u64> {
    let first = steps.iter().position(|step| step.address == start)?;
    // Go calls its deferred functions before it returns: here there are none.
    let goes_on = |step: &Step| matches!(step.flow, Flow::Next | Flow::Call);
    let last = first + steps[first..].iter().position(|step| !goes_on(step))?;
    let block = start..=steps[last].address;
    let falls_in = !matches!(steps[first.checked_sub(1)?].flow, Flow::Jump(_) | Flow::Return | Flow::Trap);
    let leads_in = |(index, step): (usize, &Step)| {
        let (Flow::Jump(target) | Flow::Branch(target)) = step.flow else { return false };
        index != from && block.contains(&target)
    };
    (steps[last].flow == Flow::Return && !falls_in && !steps.iter().enumerate().any(leads_in))
        .then(|| steps[last].address)
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
        points_for(sample::X86_64, code, complete)
    }

    fn points_for(machine: u16, code: &[u8], complete: u16) -> Option<ProbePoints> {
        let file = sample::file(machine, &[("", code)]);
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

    /// The code of Go 1.19, shortened.
    #[rustfmt::skip]
    const AARCH64: [u32; 14] = [
        0xf940_0b90, //  0: ldr x16, [x28, #16]
        0xeb30_63ff, //  4: cmp sp, x16
        0x5400_0169, //  8: b.ls 52
        0xf81f_0ffe, // 12: str x30, [sp, #-16]!
        0x3980_001b, // 16: ldrsb x27, [x0]
        0x9100_8003, // 20: add x3, x0, #32
        0x88df_fc64, // 24: ldar w4, [x3]
        0x7100_049f, // 28: cmp w4, #1
        0x5400_0060, // 32: b.eq 44
        0xf900_0be0, // 36: str x0, [sp, #16]
        0xd65f_03c0, // 40: ret
        0x9400_0040, // 44: bl far
        0xd65f_03c0, // 48: ret, at once
        0x17ff_fff3, // 52: b 0
    ];

    #[test]
    fn completion_test_of_aarch64_is_an_atomic_load() {
        let bytes = |code: &[u32]| code.iter().copied().flat_map(u32::to_le_bytes).collect::<Vec<_>>();
        let points = |code: &[u32]| points_for(sample::AARCH64, &bytes(code), 32);
        let entry = sample::address(0);
        assert_eq!(points(&AARCH64), Some(ProbePoints { enter: entry + 36, leave: vec![entry + 40] }));
        let mut code = AARCH64;
        code[5] = 0x9100_a003; // add x3, x0, #40
        assert_eq!(points(&code), None, "another field");
        code = AARCH64;
        code[5] = 0x9100_8000; // add x0, x0, #32
        assert_eq!(points(&code), None, "the receiver is lost");
        code = AARCH64;
        code[10] = 0xd503_201f; // nop: it falls into the shortcut
        assert_eq!(points(&code), Some(ProbePoints { enter: entry + 36, leave: vec![entry + 48] }));
    }
}
