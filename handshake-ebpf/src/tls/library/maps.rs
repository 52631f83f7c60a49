//! The state of TLS handshakes.

use aya_ebpf::{
    btf_maps::{Array, LruHashMap},
    macros::btf_map,
};
use handshake_common::tls::library::{
    key::Key,
    session::Session,
    target::{MAX_TARGETS, Target},
};

/// The library files that are probed, by the cookie of their probes.
#[btf_map]
pub(crate) static TARGETS: Array<Target, { MAX_TARGETS as usize }> = Array::new();

/// Handshakes in progress, by their session object. Objects that are never freed are evicted.
#[btf_map]
pub(crate) static SESSIONS: LruHashMap<Key, Session, 16384> = LruHashMap::new();

/// The call that a thread (or goroutine) is in.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Call {
    /// Key of the session; none: in no call.
    pub(crate) session: Key,
    /// The uprobe's cookie.
    pub(crate) cookie: u64,
    /// The stack pointer at its entry, which identifies it when it returns. 0 for Go, whose stacks move.
    pub(crate) sp: u64,
}

/// By thread, or by goroutine.
#[btf_map]
pub(crate) static CALLS: LruHashMap<Key, Call, 8192> = LruHashMap::new();

/// Calls that were in progress when their thread entered another one: above them on the same stack (TLS
/// inside TLS), or on a stack of its own (coroutines). By the stack pointer at their entry, see
/// [`super::call`].
#[btf_map]
pub(crate) static SUSPENDED: LruHashMap<Key, Call, 1024> = LruHashMap::new();

/// How many threads can be inside calls at once.
pub(crate) const SEATS: usize = 1 << 15;

/// The threads that are inside a call, each at the lower bits of its id: nearly all sends and receives of the
/// host find an id other than their own here, and skip the lookup in [`CALLS`]. Nothing is counted, so
/// nothing can leak: the id of a thread that died inside matches no other, and when it is reused its next
/// holder clears it. A thread that finds its slot taken knows that something was missed.
#[btf_map]
pub(crate) static SEATED: Array<[u32; SEATS], 1> = Array::new();
