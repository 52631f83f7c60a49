//! What is kept of TLS handshakes.

use aya_ebpf::{
    btf_maps::{Array, LruHashMap},
    macros::btf_map,
};
use handshake_common::tls::{
    session::Session,
    target::{MOST_TARGETS, Target},
};

/// The library files that are probed, by the cookie of their probes.
#[btf_map]
pub static TARGETS: Array<Target, { MOST_TARGETS as usize }> = Array::new();

/// Handshakes under way, by the key of their session. Objects that are never freed give way to new ones.
#[btf_map]
pub static SESSIONS: LruHashMap<u64, Session, 16384> = LruHashMap::new();

/// The call that a thread (or goroutine) is in.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct Call {
    /// Key of the session; 0: in no call.
    pub session: u64,
    /// The uprobe's cookie.
    pub cookie: u64,
    /// The stack pointer at its entry, by which it is known again when it returns. 0 for Go, whose stacks move.
    pub sp: u64,
}

/// By thread id, or by goroutine.
#[btf_map]
pub static CALLS: LruHashMap<u64, Call, 8192> = LruHashMap::new();

/// Calls that were under way when their thread entered another one: above them on the same stack (TLS inside TLS), or on a
/// stack of its own (coroutines). By the stack pointer at their entry, see [`super::call`].
#[btf_map]
pub static SUSPENDED: LruHashMap<u64, Call, 1024> = LruHashMap::new();

/// How many counters [`CALLS_UNDER_WAY`] has: a page full, which stays at hand.
pub const BUCKETS: u32 = 512;

/// How many calls are under way, by the lower bits of their caller: nearly all sends and receives of the host find a zero
/// here, and spare the search in [`CALLS`].
#[btf_map]
pub static CALLS_UNDER_WAY: Array<u64, { BUCKETS as usize }> = Array::new();
