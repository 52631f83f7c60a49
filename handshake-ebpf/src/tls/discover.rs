//! `iter/task_vma`: tells user space which files are mapped as code, by their true inodes. `/proc/PID/maps`
//! shows the inode of the overlay instead (`file_user_inode`, 6.8), of which one library can have many.
//!
//! It runs when user space asks, never by itself.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_seq_write;
use handshake_common::tls::discover::{self, Mapping};

use crate::kernel::{Direct, IteratorMeta, Memory as _, S_IFMT, S_IFREG, layout};

/// `include/linux/mm.h`.
const VM_EXEC: u64 = 4;

/// `struct bpf_iter__task_vma`.
#[repr(C)]
pub(crate) struct TaskVma {
    meta: *const IteratorMeta,
    task: *const c_void,
    vma: *const c_void,
}

/// Writes one record for each executable mapping of a file.
///
/// # Safety
/// The kernel calls it with a context of this type.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_vma")]
pub(crate) unsafe extern "C" fn mappings(ctx: *const TaskVma) -> i32 {
    // SAFETY: the context is the kernel's, the pointers out of it are BTF-typed, and the null pointers that
    // end an iteration are sent away first.
    unsafe {
        let (task, vma) = ((*ctx).task, (*ctx).vma);
        if task.is_null() || vma.is_null() || Direct::read::<u64>(vma, layout!(vma_flags)) & VM_EXEC == 0 {
            return 0;
        }
        let file = Direct::read::<usize>(vma, layout!(vma_file)) as *const c_void;
        if file.is_null() {
            return 0;
        }
        let inode = Direct::read::<usize>(file, layout!(file_inode)) as *const c_void;
        // Devices can be mapped as well; user space must not open them.
        if Direct::read::<u16>(inode, layout!(inode_mode)) & S_IFMT != S_IFREG {
            return 0;
        }
        let sb = Direct::read::<usize>(inode, layout!(inode_sb)) as *const c_void;
        let mm = Direct::read::<usize>(task, layout!(task_mm)) as *const c_void;
        let (start, end): (u64, u64) =
            (Direct::read(vma, layout!(vma_start)), Direct::read(vma, layout!(vma_end)));
        // Not by `exe_file`: under an overlay its inode is the overlay's. In the middle of exec it is not set
        // yet, and what is mapped by then may be the program.
        let code: u64 = Direct::read(mm, layout!(mm_start_code));
        let record = Mapping {
            start,
            end,
            ino: Direct::read(inode, layout!(inode_ino)),
            dev: Direct::read(sb, layout!(sb_dev)),
            generation: Direct::read(inode, layout!(inode_generation)),
            pid: Direct::read(task, layout!(task_tgid)),
            main: u32::from(code == 0 || (start <= code && code < end)),
        };
        // When the buffer is full the kernel asks again for this mapping.
        let _ = bpf_seq_write((*(*ctx).meta).seq, (&raw const record).cast(), discover::SIZE);
    }
    0
}
