//! A stack of its own for every run of a program that may be entered twice on a CPU.
//!
//! Since 6.13 the kernel gives programs that need 64 bytes of stack or more one stack per CPU
//! (`bpf_enable_priv_stack` in kernel/bpf/verifier.c) and relies on a program not being entered twice on a
//! CPU. Nothing ensures that for uprobes: on a preemptible kernel a task may be interrupted inside the
//! program, another may run through it, and the first continues with the other's values. The program on
//! changes of state is entered a second time on purpose. Programs with a tail call are left on the stack of
//! their task.

use aya_ebpf::{EbpfContext, btf_maps::ProgramArray, macros::btf_map};

use crate::kernel::constant;

/// Empty.
#[btf_map]
static NOWHERE: ProgramArray<1> = ProgramArray::new();

/// Always zero. The map it lives in is frozen, so the verifier removes the tail call as dead code, but only
/// after it has decided where the program's stack is.
#[unsafe(no_mangle)]
static NEVER: u32 = 0;

/// To be called first in every uprobe program. Costs nothing at run time.
#[inline(always)]
pub(crate) fn of_the_task(ctx: &impl EbpfContext) {
    of_the_task_with(ctx, &NOWHERE);
}

/// The same for a program of another type: the kernel lets an array hold programs of one type only.
#[inline(always)]
pub(crate) fn of_the_task_with(ctx: &impl EbpfContext, programs: &ProgramArray<1>) {
    if constant(&NEVER) != 0 {
        // SAFETY: never reached.
        unsafe { programs.tail_call(ctx, 0) };
    }
}
