//! The kernel side of `handshake`: collects what the tracepoints report, per connection.
//!
//! A program in [`tcp`] is entered with a socket ([`kernel`] reads it), finds the connection's state in
//! [`maps`], lets the state machine of `handshake-common` advance it, and hands what is due to [`emit`].
// core::sync::atomic has no fetch_add for this target; the intrinsic behind it becomes one BPF instruction.
#![feature(core_intrinsics)]
#![allow(internal_features, reason = "see above")]
#![expect(clippy::inline_always, reason = "a program is one function for the verifier")]
#![expect(clippy::needless_pass_by_value, reason = "the entry points get their contexts by value")]
#![no_std]
#![no_main]

mod emit;
mod function;
mod iterator;
mod kernel;
mod maps;
mod memory;
mod process;
mod stack;
mod tcp;
mod tls;
mod word_copy;

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // The verifier refuses a program that can get here: panics are a fault found at load, never at run time.
    loop {}
}

/// Helpers such as `bpf_probe_read_kernel` are for programs under the GPL.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
