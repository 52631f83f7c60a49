//! Copies and clears structures eight bytes at a time. The compiler's own `memcpy` and `memset` work byte by
//! byte on this target.

use core::mem::MaybeUninit;

/// Copies a structure of whole words.
///
/// # Safety
/// Both must be valid for a `T` and aligned to eight bytes; `T` must be plain and have no padding.
#[inline(always)]
pub(crate) unsafe fn copy<T>(from: *const T, to: *mut T) {
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
pub(crate) unsafe fn zero<T>(to: *mut T) {
    const { assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() == 8) };
    let mut at = 0;
    while at < size_of::<T>() / 8 {
        // SAFETY: inside a T, by the caller's promise. Volatile, or the compiler would call memset after all.
        unsafe { to.cast::<u64>().add(at).write_volatile(0) };
        at += 1;
    }
}

/// A zeroed structure on the stack, initialized by reference: returning it by value would copy it byte by
/// byte.
///
/// # Safety
/// See [`copy`]; zeros must be a valid `T`.
#[inline(always)]
pub(crate) unsafe fn zeroed<T>(space: &mut MaybeUninit<T>) -> &mut T {
    // SAFETY: the space is a T's, and the caller promises the rest.
    unsafe {
        zero(space.as_mut_ptr());
        space.assume_init_mut()
    }
}
