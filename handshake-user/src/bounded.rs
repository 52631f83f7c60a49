//! Reads files whose length others control, up to a limit.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

/// A kernel file of at most a few lines, such as a sysctl.
pub const SMALL: u64 = 64 << 10;
/// `/proc/self/mountinfo`: 100,000 mounts, the limit of a namespace (`fs.mount-max`), with long paths.
pub const MOUNTINFO: u64 = 64 << 20;
/// The kernel's type information: up to 12 MiB in the largest kernels.
pub const KERNEL_BTF: u64 = 128 << 20;

/// Reads a whole file of at most `most` bytes.
///
/// # Errors
/// When it cannot be read, or is longer.
pub fn read(path: impl AsRef<Path>, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
}

/// Reads a whole text file of at most `most` bytes.
///
/// # Errors
/// When it cannot be read, is longer, or is not UTF-8.
pub fn read_to_string(path: impl AsRef<Path>, most: u64) -> io::Result<String> {
    String::from_utf8(read(path, most)?).map_err(|_| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longer_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "12345").unwrap();
        assert_eq!(read_to_string(&path, 5).unwrap(), "12345");
        assert_eq!(read(&path, 4).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert!(read("/dev/zero", 1 << 20).is_err());
    }
}
