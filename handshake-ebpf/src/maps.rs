//! The maps, and the two ways of keeping a connection's state.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_SK_STORAGE_GET_F_CREATE},
    btf_maps::{HashMap, LruHashMap, PerCpuArray, RingBuf, SkStorage},
    helpers::generated::{bpf_map_update_elem, bpf_sk_storage_get},
    macros::btf_map,
};
use handshake_common::{Connection, totals};

/// Records on their way to user space. The loader sets the size.
#[btf_map]
pub static RECORDS: RingBuf<Connection, 4096> = RingBuf::new();

/// State kept on the socket itself: it dies with the socket, whatever happens.
#[btf_map]
static SOCKETS: SkStorage<Connection> = SkStorage::new();

/// State by socket address, for programs whose socket pointer the verifier does not know. The loader sets the size.
#[btf_map]
static CONNECTIONS: HashMap<u64, Connection, 1> = HashMap::new();

/// Counters by `handshake_common::totals`.
#[btf_map]
pub static TOTALS: PerCpuArray<[u64; totals::SLOTS], 1> = PerCpuArray::new();

/// The two ends of a half-open connection, as the request socket has them.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Endpoints {
    pub local: [u8; 16],
    pub remote: [u8; 16],
    pub netns: u32,
    pub local_port: u16,
    pub remote_port: u16,
}

/// When the first SYN-ACK left (nanoseconds), kept only where it had to be sent again. Old entries give way.
#[btf_map]
pub static SYNACKS: LruHashMap<Endpoints, u64, 8192> = LruHashMap::new();

/// Where the state of a connection is kept.
pub trait Store {
    /// The state of this socket's connection, if it is followed.
    fn find(sk: *const c_void) -> Option<*mut Connection>;
    /// The same, made (all zero) if it is not there; `None` when there is no room.
    fn find_or_make(sk: *const c_void) -> Option<*mut Connection>;
    /// The socket goes away.
    fn forget(sk: *const c_void);
}

/// State on the socket: for BTF-typed socket pointers.
pub struct OnSocket;

/// State in a table by address: for all others.
pub struct InTable;

impl OnSocket {
    #[inline(always)]
    fn get(sk: *const c_void, flags: u64) -> Option<*mut Connection> {
        // SAFETY: the verifier checks that sk is a socket; the helper itself refuses all but full sockets.
        let state = unsafe {
            bpf_sk_storage_get(
                (&raw const SOCKETS).cast_mut().cast(),
                sk.cast_mut(),
                core::ptr::null_mut(),
                flags,
            )
        };
        if state.is_null() { None } else { Some(state.cast()) }
    }
}

impl Store for OnSocket {
    #[inline(always)]
    fn find(sk: *const c_void) -> Option<*mut Connection> {
        Self::get(sk, 0)
    }

    #[inline(always)]
    fn find_or_make(sk: *const c_void) -> Option<*mut Connection> {
        Self::get(sk, u64::from(BPF_SK_STORAGE_GET_F_CREATE))
    }

    #[inline(always)]
    fn forget(_sk: *const c_void) {}
}

impl Store for InTable {
    #[inline(always)]
    fn find(sk: *const c_void) -> Option<*mut Connection> {
        CONNECTIONS.get_ptr_mut(sk as u64)
    }

    #[inline(always)]
    fn find_or_make(sk: *const c_void) -> Option<*mut Connection> {
        if let Some(state) = Self::find(sk) {
            return Some(state);
        }
        let (key, fresh) = (sk as u64, Connection::default());
        // SAFETY: key and value have the sizes of the map's definition. The plain helper spares a second copy
        // of the value on the stack.
        unsafe {
            bpf_map_update_elem(
                (&raw const CONNECTIONS).cast_mut().cast(),
                (&raw const key).cast_mut().cast(),
                (&raw const fresh).cast_mut().cast(),
                u64::from(BPF_ANY),
            )
        };
        Self::find(sk)
    }

    #[inline(always)]
    fn forget(sk: *const c_void) {
        // Most sockets that end were never followed (listeners, and those of other protocols): no error.
        let _ = CONNECTIONS.remove(sk as u64);
    }
}
