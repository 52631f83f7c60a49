//! What the kernel side reports about one executable mapping of a file when user space asks for the mappings
//! of the host.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Name of the iterator program in the eBPF object.
pub const PROGRAM: &str = "mappings";

/// The kernel's kind of iterator, `bpf_iter_task_vma`.
pub const ITERATOR: &str = "task_vma";

/// Executable pages of a file in the memory of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// The first address after it.
    pub end: u64,
    /// `i_ino` of the file that the pages come from: under an overlay file system that of the layer below.
    pub ino: u64,
    /// `s_dev` of its file system, in the kernel's own encoding: the minor number is the lower 20 bits.
    pub dev: u32,
    /// `i_generation`: distinguishes two files that had the same number one after the other.
    pub generation: u32,
    /// The process (`tgid` in the initial PID namespace).
    pub pid: u32,
    /// 1: the program that the process executes; 0: a library.
    pub main: u32,
}

/// Bytes of one record.
pub const SIZE: u32 = 40;

const _: () = assert!(size_of::<Mapping>() == SIZE as usize, "no padding, and both sides know the size");

impl Mapping {
    /// Reads one record. Returns `None` if the length is wrong.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Self::read_from_bytes(bytes).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_another_length_are_no_record() {
        assert_eq!(Mapping::from_bytes(&[0; SIZE as usize]), Some(Mapping::default()));
        assert_eq!(Mapping::from_bytes(&[0; SIZE as usize - 1]), None);
        let mut bytes = [0; SIZE as usize];
        bytes[32..36].copy_from_slice(&7_u32.to_ne_bytes());
        assert_eq!(Mapping::from_bytes(&bytes).map(|mapping| mapping.pid), Some(7));
    }
}
