//! Finds where a function returns. A return probe replaces the return address by one of its own and keeps the
//! original on a stack in the kernel: that kills a program that switches from the function's stack to another
//! one and back (coroutines; OpenSSL's asynchronous jobs). Therefore the exits themselves are probed, as
//! ordinary instructions.

use std::collections::HashSet;

use handshake_common::tls::library::target::Base;

use super::{
    decode::{self, Operation, Register},
    elf::Elf,
    frames::{Frame, Frames},
};

/// The maximum number of instructions of one function; the largest one probed, wolfSSL's, has some thousands.
const MAX_INSTRUCTIONS: usize = 50_000;
/// The maximum number of parts of a function and of functions that it tail-calls.
const MAX_PARTS: usize = 16;
/// The maximum number of returns of one function.
const MAX_EXITS: usize = 64;

/// A place through which the function returns, possibly one of several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Exit {
    pub address: u64,
    /// Where the stack pointer at the entry is found there: it identifies the call that returns.
    pub base: Base,
    /// The register that holds the result there.
    pub result: Register,
}

struct Part {
    frame: Frame,
    steps: Vec<(u64, Operation)>,
}

/// All exits of the function that begins at `entry`, except for those through the imported function `but`.
/// Returns `None` if one may be missing: the function continues at an address that the file does not show, or
/// there is no unwind table.
pub(super) fn exits(elf: &Elf<'_>, entry: u64, but: Option<&str>) -> Option<Vec<Exit>> {
    let frames = Frames::of(elf)?;
    let slot = but.and_then(|name| elf.import(name));
    let parts = parts(elf, &frames, entry, |target| slot.is_some_and(|slot| is_stub(elf, target, slot)))?;
    let jumped_to: HashSet<u64> =
        parts.iter().flat_map(|part| &part.steps).filter_map(|(_, operation)| target(*operation)).collect();
    // A probe that is not at the beginning of an instruction would break the program: data between the
    // instructions would be detected here.
    let begins: HashSet<u64> =
        parts.iter().flat_map(|part| &part.steps).map(|&(address, _)| address).collect();
    let within = |target: &u64| parts.iter().any(|part| part.frame.holds(*target));
    if !jumped_to.iter().filter(|target| within(target)).chain([&entry]).all(|at| begins.contains(at)) {
        return None;
    }
    let mut exits = Vec::new();
    for Part { frame, steps } in &parts {
        for (index, (address, operation)) in steps.iter().enumerate() {
            match operation {
                Operation::Return => {
                    // Only the return address is left on the stack there.
                    if frame.base(*address)? != Base::STACK_POINTER || exits.len() == MAX_EXITS {
                        return None;
                    }
                    let cheaper = decode::checked_return(elf, &steps[..=index], &jumped_to);
                    let cheaper = cheaper.and_then(|(address, result)| {
                        Some(Exit { address, base: frame.base(address)?, result })
                    });
                    exits.push(cheaper.unwrap_or(Exit {
                        address: *address,
                        base: Base::STACK_POINTER,
                        result: decode::result(elf.machine),
                    }));
                }
                // A jump through a table stays in the function. Without a frame left it is a tail call.
                Operation::Leap { in_table } if frame.base(*address)? == Base::STACK_POINTER && !in_table => {
                    return None;
                }
                _ => {}
            }
        }
    }
    (!exits.is_empty()).then_some(exits)
}

/// The function from its first to its last instruction, and everything outside of that range to which it
/// jumps.
fn parts(
    elf: &Elf<'_>,
    frames: &Frames<'_>,
    entry: u64,
    is_left_out: impl Fn(u64) -> bool,
) -> Option<Vec<Part>> {
    let mut parts: Vec<Part> = Vec::new();
    let mut waiting = vec![entry];
    let mut left = MAX_INSTRUCTIONS;
    while let Some(address) = waiting.pop() {
        if parts.iter().any(|part| part.frame.holds(address)) || is_left_out(address) {
            continue;
        }
        let frame = frames.at(address).filter(|_| parts.len() < MAX_PARTS)?;
        let mut steps = Vec::new();
        let mut at = frame.start;
        while at < frame.end {
            left = left.checked_sub(1)?;
            let (operation, next) = decode::decode(elf, at)?;
            steps.push((at, operation));
            waiting.extend(target(operation).filter(|&target| !frame.holds(target)));
            at = next;
        }
        parts.push(Part { frame, steps });
    }
    Some(parts)
}

/// The linker's stub for an imported function, which jumps through the pointer at `slot`.
fn is_stub(elf: &Elf<'_>, address: u64, slot: u64) -> bool {
    /// The maximum length, for all architectures and linkers.
    const MAX_STUB: usize = 20;
    let code = elf.code(address, MAX_STUB).unwrap_or_default();
    decode::is_stub(elf.machine, code, address, slot)
}

fn target(operation: Operation) -> Option<u64> {
    match operation {
        Operation::Jump { target } | Operation::Branch { target } => Some(target),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::library::inspect::{image::Image, sample};

    /// The code of the first function; addresses are relative to its own.
    fn found(machine: u16, functions: &[&[u8]]) -> Option<Vec<(u64, Base, Register)>> {
        let functions: Vec<_> = functions.iter().map(|code| ("f", *code)).collect();
        let file = sample::file(machine, &functions);
        let start = sample::address(0);
        let exits = exits(&Elf::parse(&Image::new(&file)).unwrap(), start, None)?;
        Some(exits.iter().map(|exit| (exit.address - start, exit.base, exit.result)).collect())
    }

    const RAX: Register = 0;
    const RBX: Register = 3;

    #[test]
    fn every_return_is_an_exit() {
        // test %edi,%edi; je 1f; ret; 1: ret
        let code = [0x85, 0xff, 0x74, 0x01, 0xc3, 0xc3];
        let plain = |at| (at, Base::STACK_POINTER, RAX);
        assert_eq!(found(sample::X86_64, &[&code]), Some(vec![plain(4), plain(5)]));
        // cbz w0, 1f; ret; 1: ret
        let code = [0x3400_0040_u32, 0xd65f_03c0, 0xd65f_03c0].map(u32::to_le_bytes).concat();
        assert_eq!(found(sample::AARCH64, &[&code]), Some(vec![plain(4), plain(8)]));
    }

    #[test]
    fn signed_return_address_hides_no_exit() {
        // paciasp; cbz w0, 1f; autiasp; ret; 1: autiasp; ret
        let code = [0xd503_233f_u32, 0x3400_0060, 0xd503_23bf, 0xd65f_03c0, 0xd503_23bf, 0xd65f_03c0];
        let exits = found(sample::AARCH64, &[&code.map(u32::to_le_bytes).concat()]);
        let plain = |at| (at, Base::STACK_POINTER, RAX);
        assert_eq!(exits, Some(vec![plain(12), plain(20)]));
    }

    /// `push %rbx; sub %fs:0x28,%rax; jne far; mov %ebx,%eax; pop %rbx; ret`
    const CHECKED: [u8; 19] = [
        0x53, 0x64, 0x48, 0x2b, 0x04, 0x25, 0x28, 0, 0, 0, 0x75, 0x04, 0x89, 0xd8, 0x5b, 0xc3, 0x90, 0x90,
        0x90,
    ];

    #[test]
    fn stack_protector_check_is_the_cheaper_exit() {
        let exits = |code: &[u8]| found(sample::X86_64, &[code]).unwrap();
        assert_eq!(exits(&CHECKED), [(10, Base::STACK_POINTER, RBX)]);
        // push %rbx; mov %fs:0x28,%rax; cmp 8(%rsp),%rax; jne far; mov %ebx,%eax; pop %rbx; ret
        let clang = [
            0x53, 0x64, 0x48, 0x8b, 0x04, 0x25, 0x28, 0, 0, 0, 0x48, 0x3b, 0x44, 0x24, 0x08, 0x75, 0x04,
            0x89, 0xd8, 0x5b, 0xc3, 0x90, 0x90,
        ];
        assert_eq!(exits(&clang), [(15, Base::STACK_POINTER, RBX)]);
        let the_return = [(15, Base::STACK_POINTER, RAX)];
        let with = |at: usize, byte| {
            let mut code = CHECKED;
            code[at] = byte;
            code
        };
        assert_eq!(exits(&with(6, 0x30)), the_return, "another word is compared");
        assert_eq!(exits(&with(12, 0x31)), the_return, "xor %ebx,%eax: nowhere is the result yet");
        // jmp to the mov: a path bypasses the check.
        let mut around = with(16, 0xeb);
        around[17] = (-6_i8).cast_unsigned();
        assert_eq!(exits(&around), the_return);
    }

    #[test]
    fn return_of_a_tail_call_is_an_exit() {
        let far = i32::try_from(sample::address(1) - sample::address(0) - 5).unwrap().to_le_bytes();
        let jump = [[0xe9].as_slice(), &far].concat();
        let exits = found(sample::X86_64, &[&jump, &[0x90, 0xc3]]).unwrap();
        assert_eq!(exits, [(sample::address(1) + 1 - sample::address(0), Base::STACK_POINTER, RAX)]);
    }

    #[test]
    fn unknown_exit_yields_none() {
        // jmp *%rax: may continue in any function.
        assert_eq!(found(sample::X86_64, &[&[0xc3, 0xff, 0xe0]]), None);
        // notrack jmp *%rax: one of its own labels.
        assert!(found(sample::X86_64, &[&[0xc3, 0x3e, 0xff, 0xe0]]).is_some());
        // br x0
        let code = [0xd65f_03c0_u32, 0xd61f_0000].map(u32::to_le_bytes).concat();
        assert_eq!(found(sample::AARCH64, &[&code]), None);
        // It never returns.
        assert_eq!(found(sample::X86_64, &[&[0xeb, 0xfe]]), None);
        // jmp into the middle of the mov: not at an instruction boundary.
        assert_eq!(found(sample::X86_64, &[&[0xeb, 0x01, 0xb8, 0, 0, 0, 0, 0xc3]]), None);
        // jmp outside of the file
        assert_eq!(found(sample::X86_64, &[&[0xc3, 0xe9, 0, 0, 0, 0x10]]), None);
    }
}
