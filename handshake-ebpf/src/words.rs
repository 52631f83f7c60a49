//! Copies and clears structures eight bytes at a time. What the compiler calls for it, `memcpy` and `memset`, goes byte by
//! byte on this target.

/// Copies a structure of whole words.
///
/// # Safety
/// Both must be valid for a `T` and aligned to eight bytes; `T` must be plain and have no padding.
#[inline(always)]
pub unsafe fn copy<T>(from: *const T, to: *mut T) {
    const { assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() == 8) };
    let mut at = 0;
    while at < size_of::<T>() / 8 {
        // SAFETY: inside a T, by the caller's promise. Volatile, or the compiler would call memcpy after all.
        unsafe { to.cast::<u64>().add(at).write_volatile(from.cast::<u64>().add(at).read_volatile()) };
        at += 1;
    }
}

/// Makes a structure of whole words all zeros.
///
/// # Safety
/// See [`copy`].
#[inline(always)]
pub unsafe fn zero<T>(to: *mut T) {
    const { assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() == 8) };
    let mut at = 0;
    while at < size_of::<T>() / 8 {
        // SAFETY: inside a T, by the caller's promise. Volatile, or the compiler would call memset after all.
        unsafe { to.cast::<u64>().add(at).write_volatile(0) };
        at += 1;
    }
}
