//! Reads raw records from the ring buffer, at user space's own pace: the kernel side never wakes it.

use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use handshake_common::Connection;

/// How often a live session looks.
pub const LIVE: Duration = Duration::from_millis(50);
/// How often the daemon looks. The ring holds what a busy host does in this time many times over.
pub const CALM: Duration = Duration::from_millis(200);

/// Hands every record that is there to `each`, until the ring is empty or `each` says stop.
/// Returns how many had a shape that this program does not know.
pub fn drain(ring: &mut RingBuf<MapData>, mut each: impl FnMut(&Connection) -> std::ops::ControlFlow<()>) -> u64 {
    let mut malformed = 0;
    while let Some(bytes) = ring.next() {
        match Connection::from_bytes(&bytes) {
            Some(connection) => {
                if each(&connection).is_break() {
                    break;
                }
            }
            None => malformed += 1,
        }
    }
    malformed
}
