//! Reads the fields of a library's session object, along the pointer paths that user space found in the
//! library's own code.

use core::hint::black_box;

use aya_ebpf::helpers::{bpf_probe_read_user, bpf_probe_read_user_buf, generated};
use handshake_common::tls::library::{
    session::{MAX_ALPN, Session},
    target::{Path, STATEM_WORDS, Statem, Target},
};

/// What [`number`] returns for a field that cannot be read. An `Option` would be cheaper to read but not to
/// verify: the compiler leaves its value undefined when there is none.
pub(crate) const UNKNOWN: u64 = u64::MAX;

/// The address of the field; 0 if the path is unknown or memory cannot be read.
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

/// `step` bytes after the target of the pointer at an address; 0 for a null pointer.
#[inline(always)]
fn follow(at: u64, step: u16) -> u64 {
    // SAFETY: the helper catches any fault.
    let pointer = unsafe { bpf_probe_read_user(at as *const u64) }.unwrap_or(0);
    if pointer == 0 { 0 } else { pointer.wrapping_add(u64::from(step)) }
}

/// The field as a number, or [`UNKNOWN`]. A function of its own, which the verifier checks once.
#[inline(never)]
pub(crate) fn number(object: u64, path: &Path) -> u64 {
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

/// The state of OpenSSL's state machine.
#[derive(Clone, Copy, Default)]
pub(crate) struct States {
    pub(crate) flow_state: u32,
    pub(crate) hand_state: u32,
    pub(crate) in_init: u32,
    /// False: none of them could be read.
    pub(crate) known: bool,
}

/// Reads the states of OpenSSL's state machine.
#[expect(clippy::cast_possible_truncation, reason = "the size of some words")]
#[inline(always)]
pub(crate) fn states(object: u64, at: &Statem) -> States {
    if at.known == 0 {
        return States::default();
    }
    let mut words = [0_u64; STATEM_WORDS / 2];
    let from = object.wrapping_add(u64::from(at.from)) as *const [u64; STATEM_WORDS / 2];
    // SAFETY: the helper catches any fault, and has room for the words.
    let error = unsafe {
        generated::bpf_probe_read_user((&raw mut words).cast(), size_of_val(&words) as u32, from.cast())
    };
    let word = |index: u8| {
        let index = black_box(usize::from(index)) & (STATEM_WORDS - 1);
        // SAFETY: one of the words.
        unsafe { (&raw const words).cast::<u32>().add(index).read_volatile() }
    };
    States {
        flow_state: word(at.flow_state),
        hand_state: word(at.hand_state),
        in_init: word(at.in_init),
        known: error == 0,
    }
}

/// Copies 32 bytes. Returns false if they cannot be read; then they are zero.
#[inline(always)]
pub(crate) fn bytes(object: u64, path: &Path, into: &mut [u8; 32]) -> bool {
    let at = address(object, path);
    // SAFETY: the helper catches any fault.
    at != 0 && unsafe { bpf_probe_read_user_buf(at as *const u8, into) }.is_ok()
}

/// Reads the application protocol that was chosen.
#[expect(clippy::cast_possible_truncation, reason = "no more than MAX_ALPN bytes")]
#[inline(always)]
pub(crate) fn alpn(session: &mut Session, target: &Target) {
    let length = number(session.object, &target.alpn_length);
    let at = address(session.object, &target.alpn);
    // Counted from 0, so that one comparison gives both bounds to every verifier. The compiler must not
    // optimise the comparison away.
    let last = black_box((length.min(u64::from(u32::MAX)) as u32).wrapping_sub(1));
    if at == 0 || last >= MAX_ALPN as u32 {
        return;
    }
    // SAFETY: the helper catches any fault, and there is room for so many bytes.
    let error = unsafe {
        generated::bpf_probe_read_user(
            (&raw mut session.alpn).cast(),
            last + 1,
            at as *const core::ffi::c_void,
        )
    };
    session.alpn_length = if error == 0 { (last + 1) as u8 } else { 0 };
}
