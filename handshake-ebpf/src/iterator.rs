//! What all iterators of the kernel have in common.

use aya_ebpf::bindings::seq_file;

/// `struct bpf_iter_meta`, its beginning.
#[repr(C)]
pub(crate) struct Meta {
    /// Where records go to.
    pub(crate) seq: *mut seq_file,
}
