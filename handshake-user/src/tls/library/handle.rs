//! A probed file, kept open to notice when it is changed or deleted.

use std::{fs::File, io};

use rustix::fs::{AtFlags, Statx, StatxFlags, StatxTimestamp};

use crate::tls::reader::UntrustedFile;

/// An open file, with its size and modification time.
#[derive(Debug)]
pub struct Handle {
    file: UntrustedFile,
    size: u64,
    modified: (i64, u32),
}

impl Handle {
    /// Records the current state of the file.
    ///
    /// # Errors
    /// If that cannot be read.
    pub fn new(file: UntrustedFile) -> io::Result<Self> {
        let status = status(&file)?;
        Ok(Self { size: status.stx_size, modified: time(&status.stx_mtime), file })
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Whether it was written to or truncated, so that its probes may be in the wrong places.
    #[must_use]
    pub fn is_changed(&self) -> bool {
        status(&self.file)
            .is_ok_and(|status| (status.stx_size, time(&status.stx_mtime)) != (self.size, self.modified))
    }

    /// Whether it has no name any more, so that only processes that have it open or mapped can use it.
    #[must_use]
    pub fn is_deleted(&self) -> bool {
        status(&self.file).is_ok_and(|status| status.stx_nlink == 0)
    }
}

/// From what this host has cached: a remote server or a FUSE process is not asked, as it may never answer.
fn status(file: &File) -> io::Result<Statx> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    Ok(rustix::fs::statx(file, "", flags, StatxFlags::BASIC_STATS)?)
}

const fn time(time: &StatxTimestamp) -> (i64, u32) {
    (time.tv_sec, time.tv_nsec)
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write as _};

    use super::*;
    use crate::tls::reader::Reader;

    #[test]
    fn change_and_deletion_are_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "content").unwrap();
        let handle = Handle::new(Reader::of_files().adopt(0, File::open(&path).unwrap())).unwrap();
        assert!(!handle.is_changed() && !handle.is_deleted());
        let other_name = folder.path().join("other");
        fs::hard_link(&path, &other_name).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(!handle.is_changed() && !handle.is_deleted(), "it has another name");
        File::options().append(true).open(&other_name).unwrap().write_all(b"more").unwrap();
        assert!(handle.is_changed());
        fs::remove_file(&other_name).unwrap();
        assert!(handle.is_deleted());
    }
}
