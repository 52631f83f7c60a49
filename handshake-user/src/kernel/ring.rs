//! Reads raw records from the ring buffer, at user space's own pace: the kernel side never wakes it.

use std::{ops::ControlFlow, time::Duration};

use aya::maps::{MapData, RingBuf};

use crate::join::RawRecord;

/// How often a live session looks.
pub const LIVE: Duration = Duration::from_millis(50);
/// How often the daemon looks. The ring holds what a busy host does in this time many times over.
pub const CALM: Duration = Duration::from_millis(200);

/// Records per turn: some milliseconds, so that signals and scrapes do not wait, however fast records come.
const BATCH: usize = 10_000;

/// What one turn found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// There may be more: come again at once.
    pub more: bool,
    /// Records of a shape that this program does not know.
    pub malformed: u64,
}

/// Hands the records that are there to `each`, a batch at the most, until it says stop.
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
