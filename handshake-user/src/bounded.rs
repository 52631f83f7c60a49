//! Files that others write, or that are as long as others make them: read to a limit.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

/// A file of the kernel's with a few lines at the most, such as a setting.
pub const SMALL: u64 = 64 << 10;
/// `/proc/self/mountinfo`: 100,000 mounts, more than which no namespace has (`fs.mount-max`), with long paths.
pub const MOUNTINFO: u64 = 64 << 20;
/// The kernel's types: of the largest kernels 12 MiB.
pub const KERNEL_BTF: u64 = 128 << 20;

/// The whole of a file that has no more than `most` bytes.
///
/// # Errors
/// When it cannot be read, or is longer.
pub fn read(path: impl AsRef<Path>, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
}

/// The same of text.
///
/// # Errors
/// Also when it is not UTF-8.
pub fn read_to_string(path: impl AsRef<Path>, most: u64) -> io::Result<String> {
    String::from_utf8(read(path, most)?).map_err(|_| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_longer_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "12345").unwrap();
        assert_eq!(read_to_string(&path, 5).unwrap(), "12345");
        assert_eq!(read(&path, 4).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert!(read("/dev/zero", 1 << 20).is_err());
    }
}
