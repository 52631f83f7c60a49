//! Reads records from the ring buffer at user space's own pace: the kernel side never wakes it.

use std::{
    io,
    ops::ControlFlow,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use aya::maps::{MapData, RingBuf};
use memmap2::{MmapOptions, MmapRaw};

use super::raw_record::RawRecord;

/// How often `trace` reads the ring.
pub const LIVE: Duration = Duration::from_millis(50);
/// How often the daemon reads the ring, which holds many times what a busy host writes in this time.
pub const CALM: Duration = Duration::from_millis(200);

/// Records per turn: some milliseconds of work, so that signals and scrapes do not wait, however fast records
/// come.
const BATCH: usize = 10_000;

/// What one turn read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// There may be more: read again at once.
    pub more: bool,
    /// Records of an unknown kind or size.
    pub malformed: u64,
}

/// Passes the records in the ring to `each`, at most a batch of them, until it breaks.
pub fn drain(
    ring: &mut RingBuf<MapData>,
    mut each: impl FnMut(&RawRecord<'_>) -> ControlFlow<()>,
) -> Drained {
    let mut malformed = 0;
    for _ in 0..BATCH {
        let Some(bytes) = ring.next() else { return Drained { more: false, malformed } };
        match RawRecord::from_bytes(&bytes) {
            Some(raw) => {
                if each(&raw).is_break() {
                    return Drained { more: false, malformed };
                }
            }
            None => malformed += 1,
        }
    }
    Drained { more: true, malformed }
}

/// How much of a ring is in use, by the positions that the kernel shares with its reader.
#[derive(Debug)]
pub struct Fill {
    consumer: MmapRaw,
    producer: MmapRaw,
}

impl Fill {
    /// Of this ring.
    ///
    /// # Errors
    /// When the positions cannot be mapped.
    pub fn of(ring: &RingBuf<MapData>) -> io::Result<Self> {
        // The first page has the reader's position, the second the kernel's, for reading only.
        let page = rustix::param::page_size();
        let map = |offset: usize| MmapOptions::new().offset(offset as u64).len(page).map_raw_read_only(ring);
        Ok(Self { consumer: map(0)?, producer: map(page)? })
    }

    /// Bytes that wait to be read, with the headers of their records.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        // The reader's first: it is never ahead of the kernel's, which only grows.
        let consumer = position(&self.consumer);
        position(&self.producer).wrapping_sub(consumer) as u64
    }
}

fn position(page: &MmapRaw) -> usize {
    // SAFETY: a mapped page begins at its start, is aligned, and stays mapped as long as `page` lives. The
    // kernel and the reader write an `unsigned long` there, atomically.
    unsafe { AtomicUsize::from_ptr(page.as_mut_ptr().cast()) }.load(Ordering::Acquire)
}
