//! Files and their mappings, as all sources report them.

use std::{ops::Range, path::PathBuf};

use crate::tls::reader::UntrustedFile;

/// The identity of a file. Below an overlay it is that of the underlying file, which `stat` does not show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    /// Device of the file system, as `stat` encodes it.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// Distinguishes files that had the same inode number one after the other; 0 where the kernel does not
    /// show it.
    pub generation: u32,
}

/// An executable mapping of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// The process.
    pub pid: u32,
    /// Its addresses.
    pub range: Range<u64>,
    /// The file.
    pub id: FileId,
    /// Whether it is the program that the process executes.
    pub main: bool,
}

/// A file that may contain a TLS library.
#[derive(Debug)]
pub struct Found {
    /// Its identity.
    pub id: FileId,
    /// The open file.
    pub file: UntrustedFile,
    /// The user who owns it.
    pub owner: u32,
    /// Its path as the process sees it, for display.
    pub shown: PathBuf,
    /// A process that has it mapped. `None` if it was found at a standard path, or the process has ended.
    pub pid: Option<u32>,
}
