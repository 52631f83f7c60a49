//! Reads the fields of a library's session object, along the ways that user space found in the library's own code.

use aya_ebpf::helpers::{bpf_probe_read_user, bpf_probe_read_user_buf};
use handshake_common::tls::target::Path;

/// What [`number`] says of a field that cannot be read. An `Option` would be cheaper to read but not to verify: the
/// compiler leaves its value undefined when there is none.
pub const UNKNOWN: u64 = u64::MAX;

/// The address of the field; 0 where the way is not known or memory cannot be read.
#[inline(always)]
fn address(object: u64, path: &Path) -> u64 {
    if !path.is_known() {
        return 0;
    }
    let [first, second, third] = path.steps;
    let mut at = object.wrapping_add(u64::from(first));
    if path.hops >= 1 {
        at = follow(at, second);
    }
    if path.hops >= 2 && at != 0 {
        at = follow(at, third);
    }
    at
}

/// `step` bytes behind what the pointer at an address leads to; a null pointer leads nowhere.
#[inline(always)]
fn follow(at: u64, step: u16) -> u64 {
    // SAFETY: the helper catches any fault.
    let pointer = unsafe { bpf_probe_read_user(at as *const u64) }.unwrap_or(0);
    if pointer == 0 { 0 } else { pointer.wrapping_add(u64::from(step)) }
}

/// The field as a number, or [`UNKNOWN`]. A program of its own for the verifier, which looks at it once.
#[inline(never)]
pub fn number(object: u64, path: &Path) -> u64 {
    let at = address(object, path);
    let width = path.width;
    if at == 0 || !matches!(width, 1 | 2 | 4 | 8) {
        return UNKNOWN;
    }
    let mut bytes = [0; 8];
    let Some(wanted) = bytes.get_mut(..usize::from(width)) else { return UNKNOWN };
    // SAFETY: the helper catches any fault.
    if unsafe { bpf_probe_read_user_buf(at as *const u8, wanted) }.is_err() {
        return UNKNOWN;
    }
    u64::from_le_bytes(bytes)
}

/// Copies 32 bytes; false where they cannot be read, and then they are zero.
#[inline(always)]
pub fn bytes(object: u64, path: &Path, into: &mut [u8; 32]) -> bool {
    let at = address(object, path);
    // SAFETY: the helper catches any fault.
    at != 0 && unsafe { bpf_probe_read_user_buf(at as *const u8, into) }.is_ok()
}

/// The lower 16 bits: versions and cipher suites are so on the wire.
#[expect(clippy::cast_possible_truncation, reason = "what it is for")]
#[inline(always)]
pub const fn low_half(number: u64) -> u16 {
    number as u16
}
