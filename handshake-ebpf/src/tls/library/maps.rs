//! What is kept of TLS handshakes.

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

/// Handshakes under way, by their session object. Objects that are never freed give way to new ones.
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
    /// The stack pointer at its entry, by which it is known again when it returns. 0 for Go, whose stacks
    /// move.
    pub(crate) sp: u64,
}

/// By thread, or by goroutine.
#[btf_map]
pub(crate) static CALLS: LruHashMap<Key, Call, 8192> = LruHashMap::new();

/// Calls that were under way when their thread entered another one: above them on the same stack (TLS inside
/// TLS), or on a stack of its own (coroutines). By the stack pointer at their entry, see [`super::call`].
#[btf_map]
pub(crate) static SUSPENDED: LruHashMap<Key, Call, 1024> = LruHashMap::new();

/// How many threads can be inside of calls at once.
pub(crate) const SEATS: usize = 1 << 15;

/// The threads that are inside of calls, each at the lower bits of its id: nearly all sends and receives of
/// the host find another id here than their own, and spare the search in [`CALLS`]. Nothing is counted, so
/// nothing can be left over: the id of a thread that died inside is no other's, and when it is used again its
/// next holder clears it. Who finds its place taken by another thread knows that it was not seen meanwhile.
#[btf_map]
pub(crate) static SEATED: Array<[u32; SEATS], 1> = Array::new();
