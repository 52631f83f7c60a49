//! Reads records from the ring buffer at user space's own pace: the kernel side never wakes it.

use std::{ops::ControlFlow, time::Duration};

use aya::maps::{MapData, RingBuf};

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
