//! File descriptors. Each probe takes one, so a host with many libraries needs more than the usual soft limit
//! of 1024; some are kept for serving, however much is probed.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Kept for connections, and for files that are open only for a moment.
const RESERVE: usize = 128;

/// Raises the soft limit to the hard one: only `select` needs a low one, and nothing here uses it.
pub fn raise_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "cannot raise the limit of open files to the hard one");
    }
}

/// How many may be open at the same time.
#[must_use]
pub fn limit() -> usize {
    let limit = getrlimit(Resource::Nofile).current.and_then(|limit| usize::try_from(limit).ok());
    limit.unwrap_or(usize::MAX)
}

/// How many more may be opened for probes.
#[must_use]
pub fn spare() -> usize {
    let limit = limit();
    // Without /proc the number is unknown, and opening fails where there are too few.
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.take(limit).count());
    limit.saturating_sub(open).saturating_sub(RESERVE.min(limit / 4))
}
