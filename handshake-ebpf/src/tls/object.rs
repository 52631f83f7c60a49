//! Reads the fields of a library's session object, along the ways that user space found in the library's own code.

use aya_ebpf::helpers::bpf_probe_read_user;
use handshake_common::tls::target::Path;

/// The address of the field; `None` where the way is not known or memory cannot be read.
#[inline(always)]
fn address(object: u64, path: &Path) -> Option<u64> {
    if !path.is_known() {
        return None;
    }
    let [first, second, third] = path.steps;
    let mut at = object.wrapping_add(u64::from(first));
    if path.hops >= 1 {
        at = follow(at)?.wrapping_add(u64::from(second));
    }
    if path.hops >= 2 {
        at = follow(at)?.wrapping_add(u64::from(third));
    }
    Some(at)
}

/// The pointer at an address; a null pointer leads nowhere.
#[inline(always)]
fn follow(at: u64) -> Option<u64> {
    // SAFETY: the helper catches any fault.
    match unsafe { bpf_probe_read_user(at as *const u64) } {
        Ok(0) | Err(_) => None,
        Ok(pointer) => Some(pointer),
    }
}

/// The field as a number.
#[inline(always)]
pub fn number(object: u64, path: &Path) -> Option<u64> {
    let at = address(object, path)?;
    // SAFETY: the helper catches any fault.
    unsafe {
        match path.width {
            1 => bpf_probe_read_user(at as *const u8).ok().map(u64::from),
            2 => bpf_probe_read_user(at as *const u16).ok().map(u64::from),
            4 => bpf_probe_read_user(at as *const u32).ok().map(u64::from),
            8 => bpf_probe_read_user(at as *const u64).ok(),
            _ => None,
        }
    }
}

/// The field as 32 bytes.
#[inline(always)]
pub fn bytes(object: u64, path: &Path) -> Option<[u8; 32]> {
    let at = address(object, path)?;
    // SAFETY: the helper catches any fault.
    unsafe { bpf_probe_read_user(at as *const [u8; 32]) }.ok()
}
