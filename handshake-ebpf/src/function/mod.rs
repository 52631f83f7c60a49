//! Kernel functions, for what no tracepoint tells: one file a function. Each has a program for fentry or
//! fexit, and one for kprobe or kretprobe where the kernel refuses the first.

mod accept;
mod cookie;
mod time_wait;
mod time_wait_end;
mod time_wait_segment;
mod time_wait_timer;

use aya_ebpf::{btf_maps::PerCpuArray, macros::btf_map};
use handshake_common::function::{COUNT, Function};

/// How often each was hit.
#[btf_map]
static FUNCTION_HITS: PerCpuArray<[u64; COUNT], 1> = PerCpuArray::new();

#[inline(always)]
fn count(function: Function) {
    if let Some(hits) = FUNCTION_HITS.get_ptr_mut(0) {
        // SAFETY: the map's own value of this CPU, which has room for every function.
        unsafe { crate::emit::add(hits.cast::<u64>().add(function as usize), 1) };
    }
}

/// Reads what the function returned, in a fexit program: it comes behind the arguments, whose number user
/// space takes from the kernel's own prototype.
macro_rules! returned {
    ($ctx:expr, $arity:ident, $few:literal or $many:literal) => {{
        #[unsafe(no_mangle)]
        static $arity: u32 = 0;
        match crate::kernel::constant(&$arity) {
            // Two loads at fixed offsets; the verifier refuses one at an offset that depends.
            $few => core::hint::black_box($ctx.arg::<*const core::ffi::c_void>($few)),
            $many => core::hint::black_box($ctx.arg::<*const core::ffi::c_void>($many)),
            _ => core::ptr::null(),
        }
    }};
}
use returned;
