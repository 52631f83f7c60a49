//! Reading kernel memory, at the offsets that user space resolved from the running kernel's BTF.

use core::{ffi::c_void, mem::MaybeUninit};

use aya_ebpf::helpers::generated::{bpf_probe_read_kernel, bpf_skc_to_tcp_sock};
use handshake_common::Layout;

/// Filled in by user space before the load, read-only after it: the verifier takes each member as a constant.
#[unsafe(no_mangle)]
pub(crate) static LAYOUT: Layout = Layout::UNRESOLVED;

/// The value that user space put into a global. Volatile, so that the compiler does not fold the one built
/// in.
#[inline(always)]
pub(crate) fn constant<T: Copy>(global: &'static T) -> T {
    // SAFETY: a reference is valid to read.
    unsafe { core::ptr::from_ref(global).read_volatile() }
}

/// One member of [`LAYOUT`].
macro_rules! layout {
    ($($member:ident).+) => {
        crate::memory::constant(&crate::memory::LAYOUT.$($member).+)
    };
}
pub(crate) use layout;

/// How memory of the kernel is read.
pub(crate) trait Memory {
    /// Reads a `T` at `base + offset`; zero where it cannot be read.
    ///
    /// # Safety
    /// `base` must be a kernel pointer, and a BTF-typed one for [`Direct`].
    unsafe fn read<T: Copy + Default>(base: *const c_void, offset: u32) -> T;
    /// `sk` as a `tcp_sock`, null if it is none.
    fn tcp_sock(sk: *const c_void) -> *const c_void;
}

/// Loads that the verifier checks by type: a wrong offset fails when the program is loaded.
pub(crate) struct Direct;

/// `bpf_probe_read_kernel`, for pointers without a type.
pub(crate) struct Probed;

impl Memory for Direct {
    #[inline(always)]
    unsafe fn read<T: Copy + Default>(base: *const c_void, offset: u32) -> T {
        // SAFETY: the verifier has checked the type at this offset, and a fault reads as zero.
        unsafe { base.cast::<u8>().add(offset as usize).cast::<T>().read_volatile() }
    }

    #[inline(always)]
    fn tcp_sock(sk: *const c_void) -> *const c_void {
        // SAFETY: the helper checks state and protocol, and returns null for anything but a full TCP socket.
        unsafe { bpf_skc_to_tcp_sock(sk.cast_mut()) }.cast()
    }
}

impl Memory for Probed {
    #[expect(clippy::cast_possible_truncation, reason = "a few bytes")]
    #[inline(always)]
    unsafe fn read<T: Copy + Default>(base: *const c_void, offset: u32) -> T {
        let mut value = MaybeUninit::<T>::uninit();
        let from = base.cast::<u8>().wrapping_add(offset as usize);
        // SAFETY: the helper catches any fault and then fills the value with zeros
        // (bpf_probe_read_kernel_common), for which any `T` is valid. Its result is not asked for: the
        // verifier would follow both.
        unsafe {
            bpf_probe_read_kernel(value.as_mut_ptr().cast(), size_of::<T>() as u32, from.cast());
            value.assume_init()
        }
    }

    #[inline(always)]
    fn tcp_sock(sk: *const c_void) -> *const c_void {
        sk
    }
}
