//! One file of records, which can be read while it is written and after a crash at any instant.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use flate2::{Compression, write::GzEncoder};

/// Records tell who talked with whom.
const MODE: u32 = 0o640;

/// Whether lines are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Plain,
    Gzip,
}

impl Encoding {
    /// As the name of the file says.
    pub(super) fn of(path: &Path) -> Self {
        if path.extension().is_some_and(|extension| extension == "gz") { Self::Gzip } else { Self::Plain }
    }

    /// Whole lines as a part of the file that can be read without the others: a member of its own (RFC 1952,
    /// section 2.2).
    pub(super) fn encode(self, lines: Vec<u8>) -> io::Result<Vec<u8>> {
        match self {
            Self::Plain => Ok(lines),
            Self::Gzip => {
                let mut encoder = GzEncoder::new(Vec::with_capacity(lines.len() / 4), Compression::fast());
                encoder.write_all(&lines)?;
                encoder.finish()
            }
        }
    }
}

/// A file that this process made and alone appends to.
#[derive(Debug)]
pub(super) struct RecordFile {
    file: File,
    /// Bytes of whole parts.
    len: u64,
    /// Whether there is more behind them.
    is_torn: bool,
}

impl RecordFile {
    /// Makes it.
    ///
    /// # Errors
    /// Also when it exists: what someone has recorded is not overwritten.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create_new(true).mode(MODE).open(path)?;
        Ok(Self { file, len: 0, is_torn: false })
    }

    /// Appends a part, whole or not at all.
    ///
    /// # Errors
    /// When the disk is full, or fails.
    pub(super) fn append(&mut self, part: &[u8]) -> io::Result<()> {
        self.mend()?;
        self.file.write_all(part).inspect_err(|_| {
            self.is_torn = true;
            // Else before the next part.
            let _ = self.mend();
        })?;
        self.len += part.len() as u64;
        Ok(())
    }

    /// Cuts off a part that was not written whole: it would hide all that follows from a reader.
    fn mend(&mut self) -> io::Result<()> {
        if self.is_torn {
            self.file.set_len(self.len)?;
            self.is_torn = false;
        }
        Ok(())
    }

    /// Its size, bytes.
    pub(super) const fn len(&self) -> u64 {
        self.len
    }
}

#[cfg(test)]
impl RecordFile {
    /// One that has no room for anything.
    pub(super) fn of_full_disk() -> Self {
        Self { file: OpenOptions::new().append(true).open("/dev/full").unwrap(), len: 0, is_torn: false }
    }
}
