//! The bytes of a file under inspection: read in blocks on demand, within limits. The file is never
//! memory-mapped: its owner can truncate it, and touching the lost part of a mapping kills the program with
//! SIGBUS.

use std::{
    cell::Cell,
    fs::File,
    io,
    ops::{ControlFlow, Range},
    os::unix::fs::FileExt as _,
    time::{Duration, Instant},
};

use elsa::FrozenMap;
use object::ReadRef;

/// The alignment of blocks.
const BLOCK: u64 = 64 << 10;
/// How far a block extends into the next one, so that few requests span two.
const OVERLAP: u64 = 8 << 10;
/// The piece size when data is scanned only once: a multiple of a word and of the entries of ELF tables.
const STRIDE: usize = 24 * 8192;

/// Larger files are not inspected. The largest programs that contain TLS, browsers and Go programs, are a
/// quarter of this size.
const MAX_FILE: u64 = 1 << 30;
/// The most that is read in one piece: an unwind table.
const MAX_PIECE: usize = 24 << 20;
/// The most that one inspection holds in memory.
const MAX_KEPT: usize = 40 << 20;
/// The most that one inspection reads: the largest Go program, once for each search of its types.
const MAX_READ: u64 = 4 << 30;
/// How long one inspection may take; the largest programs take half a second.
const TIME_LIMIT: Duration = Duration::from_secs(10);

/// Why a file cannot be inspected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InspectError {
    /// The file or its tables exceed the limits.
    #[error("it is too large, or its tables are")]
    TooLarge,
    /// Reading took too long.
    #[error("reading it takes too long")]
    Timeout,
    /// The file was truncated, or changed since the start.
    #[error("it changes while it is read")]
    Changed,
    /// A read failed.
    #[error("it cannot be read")]
    Unreadable,
}

enum Content<'s> {
    Bytes(&'s [u8]),
    File(&'s File),
}

/// A file, and the blocks read so far.
pub struct Image<'s> {
    content: Content<'s>,
    size: u64,
    /// [`STRIDE`], except in tests of the boundaries between pieces.
    stride: usize,
    kept: FrozenMap<(u64, usize), Vec<u8>>,
    kept_bytes: Cell<usize>,
    read_bytes: Cell<u64>,
    deadline: Instant,
    failure: Cell<Option<InspectError>>,
}

impl<'s> Image<'s> {
    /// An image of bytes in memory.
    #[must_use]
    pub fn new(bytes: &'s [u8]) -> Self {
        Self::of(Content::Bytes(bytes), bytes.len() as u64)
    }

    /// An image of bytes in memory of whose tables this many complete entries are read at a time.
    #[must_use]
    pub(crate) fn in_pieces(bytes: &'s [u8], entries: usize) -> Self {
        Self { stride: 24 * entries.max(1), ..Self::new(bytes) }
    }

    /// An image of a file.
    ///
    /// # Errors
    /// If the file is too large.
    pub fn open(file: &'s File, size: u64) -> Result<Self, InspectError> {
        if size > MAX_FILE { Err(InspectError::TooLarge) } else { Ok(Self::of(Content::File(file), size)) }
    }

    fn of(content: Content<'s>, size: u64) -> Self {
        Self {
            content,
            size,
            stride: STRIDE,
            kept: FrozenMap::new(),
            kept_bytes: Cell::new(0),
            read_bytes: Cell::new(0),
            deadline: Instant::now() + TIME_LIMIT,
            failure: Cell::new(None),
        }
    }

    /// The length of the file, in bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Why a read failed, if one did. Then no conclusion from the file is valid.
    #[must_use]
    pub fn failure(&self) -> Option<InspectError> {
        self.failure.get()
    }

    /// Reads `size` bytes. Returns `None` if the range is not inside the file, or after an earlier failure.
    #[must_use]
    pub fn bytes(&self, offset: u64, size: usize) -> Option<&[u8]> {
        let end = offset.checked_add(size as u64).filter(|end| *end <= self.size)?;
        let block = offset - offset % BLOCK;
        if end > block + BLOCK + OVERLAP {
            return self.keep(offset, size);
        }
        let whole = self.keep(block, usize::try_from((self.size - block).min(BLOCK + OVERLAP)).ok()?)?;
        whole.get(usize::try_from(offset - block).ok()?..)?.get(..size)
    }

    fn keep(&self, offset: u64, size: usize) -> Option<&[u8]> {
        if let Some(kept) = self.kept.get(&(offset, size)) {
            return Some(kept);
        }
        let total = self.kept_bytes.get().saturating_add(size);
        if size > MAX_PIECE || total > MAX_KEPT {
            return self.fail(InspectError::TooLarge);
        }
        let mut piece = vec![0; size];
        self.read(offset, &mut piece)?;
        self.kept_bytes.set(total);
        Some(self.kept.insert((offset, size), piece))
    }

    /// Passes a part of the file to `each`, piece by piece, without keeping it: the offset of the piece, its
    /// bytes followed by up to `ahead` more, and how many are its own. Whatever begins among these is seen
    /// exactly once.
    pub fn scan(
        &self,
        part: Range<u64>,
        ahead: usize,
        mut each: impl FnMut(u64, &[u8], usize) -> ControlFlow<()>,
    ) {
        let end = part.end.min(self.size);
        let mut at = part.start;
        let length = |bytes: u64, most: usize| usize::try_from(bytes).map_or(most, |bytes| bytes.min(most));
        let mut buffer = vec![0; length(end.saturating_sub(at), self.stride + ahead)];
        while at < end {
            let own = length(end - at, self.stride);
            let piece = &mut buffer[..length(end - at, self.stride + ahead)];
            if self.read(at, piece).is_none() || each(at, piece, own).is_break() {
                return;
            }
            at += own as u64;
        }
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Option<()> {
        if self.failure.get().is_some() {
            return None;
        }
        let total = self.read_bytes.get().saturating_add(buffer.len() as u64);
        self.read_bytes.set(total);
        if total > MAX_READ {
            return self.fail(InspectError::TooLarge);
        }
        let mut done = 0;
        while done < buffer.len() {
            if Instant::now() > self.deadline {
                return self.fail(InspectError::Timeout);
            }
            match self.content.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => return self.fail(InspectError::Changed),
                Ok(length) => done += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.fail(InspectError::Unreadable),
            }
        }
        Some(())
    }

    fn fail<T>(&self, failure: InspectError) -> Option<T> {
        self.failure.set(self.failure.get().or(Some(failure)));
        None
    }
}

impl Content<'_> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match self {
            Self::File(file) => file.read_at(buffer, offset),
            Self::Bytes(bytes) => {
                let rest = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)).unwrap_or(&[]);
                let length = rest.len().min(buffer.len());
                buffer[..length].copy_from_slice(&rest[..length]);
                Ok(length)
            }
        }
    }
}

impl<'a> ReadRef<'a> for &'a Image<'_> {
    fn len(self) -> Result<u64, ()> {
        Ok(self.size)
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'a [u8], ()> {
        usize::try_from(size).ok().and_then(|size| self.bytes(offset, size)).ok_or(())
    }

    /// For strings no longer than the overlap, as section names are.
    fn read_bytes_at_until(self, range: Range<u64>, delimiter: u8) -> Result<&'a [u8], ()> {
        let longest = range.end.min(self.size).saturating_sub(range.start).min(OVERLAP);
        let bytes = self.read_bytes_at(range.start, longest)?;
        memchr::memchr(delimiter, bytes).map(|end| &bytes[..end]).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    fn sample() -> Vec<u8> {
        (0..3 * STRIDE + 100).map(|at| u8::try_from(at % 251).unwrap()).collect()
    }

    #[test]
    fn reads_return_the_bytes_of_the_file_at_any_offset() {
        let (bytes, folder) = (sample(), tempfile::tempfile().unwrap());
        folder.write_all_at(&bytes, 0).unwrap();
        let file = Image::open(&folder, bytes.len() as u64).unwrap();
        let memory = Image::new(&bytes);
        let block = usize::try_from(BLOCK).unwrap();
        for (at, size) in
            [(0, 1), (block - 1, 2), (block + 5, 8 << 10), (block - 1, 2 * block), (bytes.len() - 3, 3)]
        {
            let expected = Some(&bytes[at..at + size]);
            assert_eq!(file.bytes(at as u64, size), expected, "{at} {size}");
            assert_eq!(memory.bytes(at as u64, size), expected, "{at} {size}");
        }
        assert_eq!(file.bytes(bytes.len() as u64 - 1, 2), None);
        assert_eq!(file.bytes(u64::MAX, 2), None);
        assert_eq!(file.failure(), None);
    }

    #[test]
    fn scan_passes_each_byte_once_with_its_lookahead() {
        let bytes = sample();
        let image = Image::new(&bytes);
        let mut passed = Vec::new();
        image.scan(7..u64::MAX, 10, |at, piece, own| {
            assert_eq!(at, 7 + passed.len() as u64);
            assert!(piece.len() == own + 10 || at + piece.len() as u64 == bytes.len() as u64);
            passed.extend_from_slice(&piece[..own]);
            ControlFlow::Continue(())
        });
        assert_eq!(passed, bytes[7..]);
    }

    #[test]
    fn limits_are_enforced_and_reported() {
        let sparse = tempfile::tempfile().unwrap();
        sparse.set_len(8 << 40).unwrap();
        assert_eq!(Image::open(&sparse, 8 << 40).err(), Some(InspectError::TooLarge));
        let image = Image::open(&sparse, MAX_FILE).unwrap();
        assert_eq!(image.bytes(0, MAX_PIECE + 1), None);
        assert_eq!(image.failure(), Some(InspectError::TooLarge));
        let image = Image::open(&sparse, MAX_FILE).unwrap();
        let blocks = (0..MAX_FILE).step_by(BLOCK.try_into().unwrap());
        let kept = blocks.take_while(|at| image.bytes(*at, 1).is_some()).count();
        assert!((500..700).contains(&kept), "{kept}");
        assert_eq!(image.failure(), Some(InspectError::TooLarge));
    }

    #[test]
    fn truncated_file_yields_an_error() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(10 * BLOCK).unwrap();
        let image = Image::open(&file, 10 * BLOCK).unwrap();
        assert!(image.bytes(0, 4).is_some());
        file.set_len(4096).unwrap();
        assert_eq!(image.bytes(5 * BLOCK, 4), None);
        assert_eq!(image.failure(), Some(InspectError::Changed));
        assert_eq!(image.bytes(5 * BLOCK, 4), None, "nothing more is read");
    }
}
