//! The lower bits of integers. `try_from` and its error would cost the verifier a branch.
#![expect(clippy::cast_possible_truncation, reason = "what it is for")]

/// The lower 16 bits.
#[must_use]
#[inline(always)]
pub const fn low_16(number: u64) -> u16 {
    number as u16
}

/// The lower 32 bits.
#[must_use]
#[inline(always)]
pub const fn low_32(number: u64) -> u32 {
    number as u32
}
