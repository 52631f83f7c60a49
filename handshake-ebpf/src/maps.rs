//! The maps, and where a connection's state is kept.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
    helpers::generated::bpf_map_update_elem,
    macros::btf_map,
};
use handshake_common::{
    Connection,
    histograms::{self, Histogram},
    totals,
};

/// Records on their way to user space. The loader sets the size.
#[btf_map]
pub(crate) static RECORDS: RingBuf<Connection, 4096> = RingBuf::new();

/// State by socket address. Measured to be cheaper than socket storage (docs/overhead.md). The entry is
/// removed when the socket is destroyed or, if that was missed, when another socket reuses the address. The
/// loader sets the size.
#[btf_map]
static CONNECTIONS: HashMap<u64, Connection, 1> = HashMap::new();

/// Counters, in the slots of `handshake_common::totals`.
#[btf_map]
pub(crate) static TOTALS: PerCpuArray<[u64; totals::SLOTS], 1> = PerCpuArray::new();

/// Histograms by the series of `handshake_common::histograms`. The loader makes it small where none are asked
/// for.
#[btf_map]
pub(crate) static HISTOGRAMS: PerCpuArray<Histogram, { histograms::SERIES }> = PerCpuArray::new();

/// The last change of state that `inet_sock_set_state` has handled on this CPU: the socket, and from which
/// state to which.
#[btf_map]
pub(crate) static HANDLED: PerCpuArray<[u64; 2], 1> = PerCpuArray::new();

/// A change of state that no entry shows to have been handled, by its socket's address, until
/// `inet_sock_set_state_nested` has seen the same change. The oldest entries are evicted.
#[btf_map]
static UNSHOWN: LruHashMap<u64, u64, 1024> = LruHashMap::new();

/// Notes that this change, [socket, states], was handled, and that no entry shows it.
#[inline(always)]
pub(crate) fn note_unshown([sk, states]: [u64; 2]) {
    // If that fails, the change may be handled twice.
    let _ = UNSHOWN.insert(sk, states, u64::from(BPF_ANY));
}

/// Whether this change was noted. Forgets it: the socket's next connection may begin with the same one.
#[inline(always)]
pub(crate) fn is_noted([sk, states]: [u64; 2]) -> bool {
    // SAFETY: copied at once; what is evicted meanwhile is of another socket.
    let Some(noted) = (unsafe { UNSHOWN.get(sk) }).copied() else { return false };
    // It may have been evicted.
    let _ = UNSHOWN.remove(sk);
    noted == states
}

/// Whether a connection has ever not fitted in the table.
#[btf_map]
static FULL: Array<u32, 1> = Array::new();

/// A connection does not fit in the table.
#[inline(always)]
pub(crate) fn mark_full() {
    if let Some(full) = FULL.get_ptr_mut(0) {
        // SAFETY: the map's own value; everybody writes the same.
        unsafe { full.write_volatile(1) };
    }
}

/// Whether a connection has ever not fitted in the table.
#[inline(always)]
pub(crate) fn has_been_full() -> bool {
    FULL.get(0).is_some_and(|&full| full != 0)
}

/// Whether everything is attached, as user space says. Until then the end of a socket is not seen, and the
/// next one at its address would be taken for it.
#[btf_map]
static ATTACHED: Array<u32, 1> = Array::new();

/// Whether connections are followed from their beginning to their end by now.
#[inline(always)]
pub(crate) fn everything_is_attached() -> bool {
    ATTACHED.get(0).is_some_and(|&attached| attached != 0)
}

/// The two ends of a connection.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Endpoints {
    pub(crate) local: [u8; 16],
    pub(crate) remote: [u8; 16],
    pub(crate) netns: u32,
    pub(crate) local_port: u16,
    pub(crate) remote_port: u16,
}

impl Endpoints {
    /// The key of a connection whose ends are known.
    #[inline(always)]
    pub(crate) fn of(connection: &Connection) -> Self {
        Self {
            local: connection.local,
            remote: connection.remote,
            netns: connection.netns,
            local_port: connection.local_port,
            remote_port: connection.remote_port,
        }
    }
}

/// When the first SYN-ACK left (nanoseconds), kept only if it was retransmitted. The oldest entries are
/// evicted.
#[btf_map]
pub(crate) static SYNACKS: LruHashMap<Endpoints, u64, 8192> = LruHashMap::new();

/// Returns `None` if this socket's connection is not followed.
#[inline(always)]
pub(crate) fn find<'a>(sk: *const c_void) -> Option<&'a mut Connection> {
    // SAFETY: the map's own value, whose memory the kernel keeps while the program runs. Most events of a
    // socket are serialised by its lock; packets and library calls are not, but they change fields of their
    // own. A field that changes meanwhile is an integer for which any value is valid, and nothing that the
    // verifier has to trust is read twice.
    CONNECTIONS.get_ptr_mut(sk as u64).map(|state| unsafe { &mut *state })
}

/// Stores the state of this socket's connection, replacing any previous one; false if the table is full.
#[inline(always)]
pub(crate) fn keep(sk: *const c_void, connection: &Connection) -> bool {
    update(sk, connection, BPF_ANY)
}

/// Stores the state of this socket's connection unless another CPU has just done so. Afterwards [`find`]
/// returns it, unless the table is full.
#[inline(always)]
pub(crate) fn keep_new(sk: *const c_void, connection: &Connection) {
    update(sk, connection, BPF_NOEXIST);
}

#[inline(always)]
fn update(sk: *const c_void, connection: &Connection, flags: u32) -> bool {
    let key = sk as u64;
    // SAFETY: key and value have the sizes of the map's definition. The plain helper spares a second copy of
    // the value on the stack.
    let error = unsafe {
        bpf_map_update_elem(
            (&raw const CONNECTIONS).cast_mut().cast(),
            (&raw const key).cast_mut().cast(),
            core::ptr::from_ref(connection).cast_mut().cast(),
            u64::from(flags),
        )
    };
    error == 0
}

/// Removes the entry of a destroyed socket.
#[inline(always)]
pub(crate) fn forget(sk: *const c_void) {
    // Most destroyed sockets were never followed (listeners, for example), so a missing entry is no error.
    let _ = CONNECTIONS.remove(sk as u64);
}
