//! Determines what small functions do from their instructions: where an accessor finds the value it returns,
//! which addresses it computes, which arguments it passes on. Every path through the function is followed, up
//! to a limit; an instruction that is not understood makes a value unknown, never wrong.

mod aarch64;
mod operation;
mod walk;
mod x86;

use std::collections::HashSet;

pub(super) use self::{
    operation::{Operation, Register},
    walk::{Trace, decode, only, tails, texts, trace, trace_with},
    x86::{behind_landing_pad, behind_null_test, through_pointer, written},
};
use crate::tls::library::inspect::elf::{Elf, Machine};

/// The register that holds a result.
#[must_use]
pub(super) const fn result(machine: Machine) -> Register {
    match machine {
        Machine::X86_64 => x86::RESULT,
        Machine::Aarch64 => aarch64::RESULT,
    }
}

/// Whether this is the linker's stub for an imported function, which jumps through the pointer at `slot`.
#[must_use]
pub(super) fn is_stub(machine: Machine, code: &[u8], address: u64, slot: u64) -> bool {
    match machine {
        Machine::X86_64 => through_pointer(code, address, slot).next().is_some(),
        Machine::Aarch64 => aarch64::stub(code, address) == Some(slot),
    }
}

/// An instruction on every path to a return (the last of these instructions) that is much cheaper to probe,
/// and the register that holds the result there.
#[must_use]
pub(super) fn checked_return(
    elf: &Elf<'_>,
    steps: &[(u64, Operation)],
    jumped_to: &HashSet<u64>,
) -> Option<(u64, Register)> {
    match elf.machine {
        Machine::X86_64 => x86::checked_return(elf, steps, jumped_to),
        // The kernel simulates the return itself.
        Machine::Aarch64 => None,
    }
}

#[cfg(test)]
mod tests {
    use handshake_common::tls::library::target::Path;

    use super::*;
    use crate::tls::library::inspect::{
        elf::{Elf, Symbol},
        image::Image,
        sample,
    };

    fn traced(machine: u16, code: &[u8]) -> Trace {
        let file = sample::file(machine, &[("f", code)]);
        let image = Image::new(&file);
        let elf = Elf::parse(&image).unwrap();
        trace(&elf, Symbol { address: sample::address(0), size: code.len() as u64 })
    }

    #[test]
    fn accessor_shows_the_field() {
        // mov 0x4d0(%rdi),%eax; xor %edi,%edi; ret
        let code = [0x8b, 0x87, 0xd0, 0x04, 0x00, 0x00, 0x31, 0xff, 0xc3];
        assert_eq!(traced(sample::X86_64, &code).returned, [Path::direct(0x4d0, 4)]);
        // bti c; ldr w0, [x0, #1232]; ret
        let code = [0x5f, 0x24, 0x03, 0xd5, 0x00, 0xd0, 0x44, 0xb9, 0xc0, 0x03, 0x5f, 0xd6];
        assert_eq!(traced(sample::AARCH64, &code).returned, [Path::direct(0x4d0, 4)]);
    }

    #[test]
    fn pointers_are_followed_and_other_paths_return_constants() {
        // mov 0xf8(%rdi),%rax; test %rax,%rax; je 1f; mov 0x8(%rax),%eax; ret; 1: mov $0xff,%eax; ret
        let code = [
            0x48, 0x8b, 0x87, 0xf8, 0, 0, 0, 0x48, 0x85, 0xc0, 0x74, 0x04, 0x8b, 0x40, 0x08, 0xc3, 0xb8,
            0xff, 0, 0, 0, 0xc3,
        ];
        let trace = traced(sample::X86_64, &code);
        assert_eq!(trace.returned, [Path { steps: [0xf8, 8, 0], hops: 1, width: 4 }]);
        assert_eq!(trace.constants, [0xff]);
        // ldr x0, [x0, #248]; cbz x0, 1f; ldr w0, [x0, #8]; ret; 1: mov w0, #255; ret
        let code = [0xf940_7c00_u32, 0xb400_0060, 0xb940_0800, 0xd65f_03c0, 0x5280_1fe0, 0xd65f_03c0];
        let trace = traced(sample::AARCH64, &code.map(u32::to_le_bytes).concat());
        assert_eq!(trace.returned, [Path { steps: [0xf8, 8, 0], hops: 1, width: 4 }]);
        assert_eq!(trace.constants, [0xff]);
    }

    #[test]
    fn vector_instructions_keep_general_registers() {
        // sub sp, sp, #96; movi v0.4s, #0; str q0, [sp, #16]; ldr w0, [x0, #56]; ret
        let code = [0xd101_83ff_u32, 0x4f00_0400, 0x3d80_07e0, 0xb940_3800, 0xd65f_03c0];
        let code = code.map(u32::to_le_bytes).concat();
        assert_eq!(traced(sample::AARCH64, &code).returned, [Path::direct(0x38, 4)]);
        // fmov x0, d0; ldr w0, [x0, #56]; ret
        let code = [0x9e66_0000_u32, 0xb940_3800, 0xd65f_03c0].map(u32::to_le_bytes).concat();
        assert_eq!(traced(sample::AARCH64, &code).returned, []);
    }

    #[test]
    fn result_of_a_call_is_unknown() {
        // call 1f; mov 0x78(%rax),%eax; ret; 1: ret
        let code = [0xe8, 0x04, 0, 0, 0, 0x8b, 0x40, 0x78, 0xc3, 0xc3];
        assert_eq!(traced(sample::X86_64, &code).returned, []);
    }

    #[test]
    fn computed_value_is_not_a_field() {
        // movzbl 0xa4(%rdi),%eax; and $1,%eax; ret
        let code = [0x0f, 0xb6, 0x87, 0xa4, 0, 0, 0, 0x83, 0xe0, 0x01, 0xc3];
        let trace = traced(sample::X86_64, &code);
        assert_eq!(trace.returned, []);
        assert_eq!(trace.loads, [Path::direct(0xa4, 1)]);
    }

    #[test]
    fn constant_index_and_argument_are_followed() {
        let symbol = |size: usize| Symbol { address: sample::address(0), size: size as u64 };
        // mov %esi,%esi; lea (%rsi,%rsi,2),%rax; lea (%rdi,%rax,8),%rax; mov 0x98(%rax),%rax; ret
        let code = [
            0x89, 0xf6, 0x48, 0x8d, 0x04, 0x76, 0x48, 0x8d, 0x04, 0xc7, 0x48, 0x8b, 0x80, 0x98, 0, 0, 0, 0xc3,
        ];
        let file = sample::file(sample::X86_64, &[("f", &code)]);
        let image = Image::new(&file);
        let elf = Elf::parse(&image).unwrap();
        let trace = trace_with(&elf, symbol(code.len()), Some(10));
        assert_eq!(trace.returned, [Path::direct(0x98 + 240, 8)]);
        assert_eq!(traced(sample::X86_64, &code).returned, []);
        // ubfiz x3, x1, #1, #32; add x1, x3, w1, uxtw; add x1, x0, x1, lsl #3; ldr x0, [x1, #152]; ret
        let code = [0xd37f_7c23_u32, 0x8b21_4061, 0x8b01_0c01, 0xf940_4c20, 0xd65f_03c0];
        let code = code.map(u32::to_le_bytes).concat();
        let file = sample::file(sample::AARCH64, &[("f", &code)]);
        let image = Image::new(&file);
        let trace = trace_with(&Elf::parse(&image).unwrap(), symbol(code.len()), Some(10));
        assert_eq!(trace.returned, [Path::direct(0x98 + 240, 8)]);
        assert_eq!(traced(sample::AARCH64, &code).returned, []);
        // mov w1, #10; bl 1f; 1: ret
        let code = [0x5280_0141_u32, 0x9400_0001, 0xd65f_03c0].map(u32::to_le_bytes).concat();
        assert_eq!(traced(sample::AARCH64, &code).calls, [(sample::address(0) + 8, 10)]);
        // mov $10,%esi; call 1f; 1: mov (%rsp),%rdx; mov 0x30(%rdx),%eax; mov 0x28(%rdx),%rdx; ret
        let code = [
            0xbe, 10, 0, 0, 0, 0xe8, 0, 0, 0, 0, 0x48, 0x8b, 0x14, 0x24, 0x8b, 0x42, 0x30, 0x48, 0x8b, 0x52,
            0x28, 0xc3,
        ];
        assert_eq!(traced(sample::X86_64, &code).calls, [(sample::address(0) + 10, 10)]);
        let file = sample::file(sample::X86_64, &[("f", &code)]);
        let image = Image::new(&file);
        assert_eq!(texts(&Elf::parse(&image).unwrap(), symbol(code.len())), [0x28]);
    }

    #[test]
    fn loops_and_negative_offsets_yield_no_field() {
        assert_eq!(traced(sample::X86_64, &[0xeb, 0xfe]), Trace::default());
        // 1: mov (%rdi),%rdi; jne 1b; mov -8(%rdi),%eax; ret
        let code = [0x48, 0x8b, 0x3f, 0x75, 0xfb, 0x8b, 0x47, 0xf8, 0xc3];
        assert_eq!(traced(sample::X86_64, &code).returned, []);
    }

    #[test]
    fn tail_calls_are_found() {
        let far = i32::try_from(sample::address(8) - sample::address(0) - 10).unwrap().to_le_bytes();
        // mov $1,%esi; jmp far
        let code = [[0xbe, 1, 0, 0, 0, 0xe9].as_slice(), &far].concat();
        let filler = ("", [0x90].as_slice());
        let mut functions = vec![("f", code.as_slice())];
        functions.extend([filler; 8]);
        let file = sample::file(sample::X86_64, &functions);
        assert_eq!(tails(&Elf::parse(&Image::new(&file)).unwrap(), sample::address(0)), [sample::address(8)]);
    }

    #[test]
    fn landing_pad_is_skipped_before_an_emulated_instruction() {
        const PAD: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
        let at = |behind: &[u8]| behind_landing_pad(&[&PAD, behind].concat(), 0x1000);
        assert_eq!(at(&[0x41, 0x57]), 0x1004, "push %r15");
        assert_eq!(at(&[0x48, 0x83, 0xec, 0x18]), 0x1000, "sub $0x18,%rsp");
        assert_eq!(at(&[]), 0x1000);
        assert_eq!(behind_landing_pad(&[0x41, 0x57], 0x1000), 0x1000, "no landing pad");
    }

    #[test]
    fn null_test_is_skipped_before_an_emulated_instruction() {
        // test %rdi,%rdi; je far; push %r13
        let code = [0x48, 0x85, 0xff, 0x0f, 0x84, 0x97, 0x03, 0, 0, 0x41, 0x55];
        assert_eq!(behind_null_test(&code, 0x1000), 0x1009);
        let mut padded = vec![0xf3, 0x0f, 0x1e, 0xfa];
        padded.extend(code);
        assert_eq!(behind_null_test(&padded, 0x1000), 0x100d);
        let mut other = code;
        other[2] = 0xf6; // test %rsi,%rsi
        assert_eq!(behind_null_test(&other, 0x1000), 0x1000);
        other = code;
        other[9..].copy_from_slice(&[0x89, 0xd8]); // mov %ebx,%eax: would be stepped over, too
        assert_eq!(behind_null_test(&other, 0x1000), 0x1000);
    }

    #[test]
    fn stub_of_an_imported_function_is_recognized() {
        // bti c; adrp x16, +0x205000; ldr x17, [x16, #3328]; add x16, x16, #3328; br x17
        let code = [0xd503_245f_u32, 0xb000_1030, 0xf946_8211, 0x9134_0210, 0xd61f_0220];
        let bytes = |code: &[u32]| code.iter().copied().flat_map(u32::to_le_bytes).collect::<Vec<_>>();
        let slot = |code: &[u32]| aarch64::stub(&bytes(code), 0x3_9840);
        assert_eq!(slot(&code), Some(0x23_ed00));
        assert_eq!(slot(&code[1..]), Some(0x23_ed00));
        assert!(is_stub(Machine::Aarch64, &bytes(&code), 0x3_9840, 0x23_ed00));
        assert!(!is_stub(Machine::Aarch64, &bytes(&code), 0x3_9840, 0x23_ed08));
        assert_eq!(slot(&code[..4]), None, "it does not jump");
        assert_eq!(slot(&[code[1], 0xf946_8231, code[4]]), None, "ldr x17, [x17, #3328]: another base");
    }

    #[test]
    fn calls_through_a_pointer_are_found() {
        // nop; call *0x10(%rip); bnd jmp *8(%rip); jmp *0(%rip)
        let code = [0x90, 0xff, 0x15, 0x10, 0, 0, 0, 0xf2, 0xff, 0x25, 0x09, 0, 0, 0, 0xff, 0x25, 0, 0, 0, 0];
        let through = |code: &[u8], slot| through_pointer(code, 0x1000, slot).collect::<Vec<_>>();
        assert_eq!(through(&code, 0x1017), [0x1001, 0x1007]);
        assert!(through(&code, 0x2000).is_empty());
        assert!(through(&[0xff, 0x25, 0], 0x1000).is_empty());
    }
}
