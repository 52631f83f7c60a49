//! Which process listens for a server's connection, kept up to date by user space
//! ([`super::listener_iterators`]).
//!
//! CLOSE → LISTEN runs in the task that calls `listen()`. At LISTEN → SYN_RECV the new socket is still a copy
//! of the listening one, byte for byte (`inet_csk_clone_lock`): the head of an empty list in it points at the
//! head in the original. So the very socket is known that the connection came to, also one of a group
//! (`SO_REUSEPORT`), and no rule of addresses and wildcards has to be followed.

use core::{ffi::c_void, hint::black_box};

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray},
    helpers::generated::bpf_ktime_get_ns,
    macros::btf_map,
};
use handshake_common::{
    Connection, ConnectionFlags, Family,
    layout::ABSENT,
    tcp::{
        listener::{Listener, MAX},
        states,
    },
};

use crate::{
    kernel::{Access, KernelSock, Memory, Probed, Untyped, layout, read_endpoints},
    maps::Endpoints,
};

/// The listening sockets, by [`KernelSock::list_head`]. What is not in it names no process.
#[btf_map]
pub(super) static LISTENERS: HashMap<u64, Listener, MAX> = HashMap::new();

/// A socket that is about to be established.
#[derive(Clone, Copy)]
#[repr(C)]
struct Nascent {
    /// Its address; 0: none.
    sk: u64,
    /// The key of its listener.
    listener: u64,
}

/// The newest of this CPU. Nearly always it is established by the same segment, and nothing comes between.
#[btf_map]
static NASCENT: PerCpuArray<Nascent, 1> = PerCpuArray::new();

/// The listeners of those that take longer, by the address of the socket: a Fast Open child takes a round
/// trip.
#[btf_map]
static NASCENT_ELSEWHERE: LruHashMap<u64, u64, 2048> = LruHashMap::new();

/// A change to or from LISTEN.
#[inline(always)]
pub(super) fn changed<A: Access>(sk: *const c_void, old: u32, new: u32) {
    listener_changed(A::address(sk), old, new);
}

/// A function of its own, with numbers alone for arguments: the verifier looks at it once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn listener_changed(sk: u64, old: u32, new: u32) -> u32 {
    let Some(sock) = KernelSock::<Untyped>::new(sk as *const c_void) else { return 0 };
    if layout!(tsorted_sent_queue) == ABSENT {
        return 0;
    }
    if new == states::SYN_RECV {
        begins(&sock);
    } else if new == states::LISTEN {
        let process = Untyped::process();
        let mut listener = describe::<Probed>(sock.pointer(), sock.local_port());
        process.name(&mut listener.pid, &mut listener.comm, &mut listener.cgroup);
        // When the table is full, its connections name no process.
        let _ = LISTENERS.insert(sock.list_head(), listener, u64::from(BPF_ANY));
    } else if old == states::LISTEN {
        let _ = LISTENERS.remove(sock.list_head());
    }
    // Kernels before 6.8 take no function of its own without a result.
    0
}

/// A listening socket, without its process.
#[inline(always)]
pub(super) fn describe<M: Memory>(sk: *const c_void, port: u16) -> Listener {
    let mut ends = Endpoints::default();
    let family = read_endpoints::<M>(sk, &mut ends);
    Listener {
        // SAFETY: no arguments.
        since_ns: unsafe { bpf_ktime_get_ns() },
        local: ends.local,
        netns: ends.netns,
        port,
        // SAFETY: as above.
        drops: if layout!(sk_drops) == ABSENT { 0 } else { unsafe { M::read(sk, layout!(sk_drops)) } },
        family: Family::code_of(family),
        ..Listener::default()
    }
}

/// Stores a listening socket that was there before the program, unless it is known.
#[inline(always)]
pub(super) fn add(key: u64, listener: &Listener) {
    let _ = LISTENERS.insert(key, listener, u64::from(BPF_NOEXIST));
}

/// LISTEN → SYN_RECV of a new socket.
#[inline(always)]
fn begins(sock: &KernelSock<Untyped>) {
    let this = Nascent { sk: sock.pointer() as u64, listener: sock.list_first() };
    let Some(newest) = NASCENT.get_ptr_mut(0) else { return };
    // SAFETY: the map's own value of this CPU. A new socket is made with soft interrupts disabled, so this
    // code never interrupts itself; it may interrupt `take`.
    unsafe {
        let before = newest.read();
        if before.sk != 0 {
            elsewhere(before);
        }
        newest.write(this);
    }
}

#[inline(always)]
fn elsewhere(nascent: Nascent) {
    // This cannot fail for lack of space: the oldest entry is evicted.
    let _ = NASCENT_ELSEWHERE.insert(nascent.sk, nascent.listener, u64::from(BPF_ANY));
}

/// What is known of a socket that is not in the table: nothing. A map, because the verifier takes what is
/// read of either for one and the same unknown value, and follows one path from there.
#[btf_map]
static NOBODY: Array<Listener, 1> = Array::new();

/// 1 where `tcp_get_cookie_sock` is hooked, which user space says: only there is what it did not make no
/// cookie's.
#[btf_map]
static TELLS_COOKIES: Array<u32, 1> = Array::new();

/// Set in the key of the listener of a socket that a SYN cookie made. Keys are addresses of list heads.
const COOKIE: u64 = 1;

/// This socket was made from a SYN cookie, just now and on this CPU: it is still in SYN_RECV.
#[inline(always)]
pub(crate) fn made_by_cookie(sk: *const c_void) {
    let Some(newest) = NASCENT.get_ptr_mut(0) else { return };
    // SAFETY: the map's own value of this CPU, which nothing interrupts between `begins` and here but a hard
    // interrupt, which makes no socket.
    unsafe {
        if (*newest).sk == sk as u64 {
            (*newest).listener |= COOKIE;
        }
    }
}

/// A connection that leaves SYN_RECV: names the process that listens. It is not certain that it is the one
/// that serves. And whether a SYN cookie made it, where that is told.
#[inline(always)]
pub(super) fn name<A: Access>(connection: &mut Connection, sock: &KernelSock<A>) {
    let Some(nobody) = NOBODY.get_ptr(0) else { return };
    let key = take_listener(A::address(sock.pointer()));
    note_cookie(connection, key);
    let key = key & !COOKIE;
    let listener = LISTENERS.get_ptr(key).unwrap_or(nobody);
    // SAFETY: the map's own value, whose memory the kernel keeps while the program runs. One that changes
    // meanwhile belongs to a socket that is closed at this very moment.
    unsafe {
        // All ones if the port is the same, else zero, without a branch that the verifier would follow.
        let distance = black_box(u64::from((*listener).port ^ sock.local_port()));
        let mask = (distance.wrapping_sub(1).cast_signed() >> 63).cast_unsigned();
        let comm: [u64; 2] = zerocopy::transmute!((*listener).comm);
        #[expect(clippy::cast_possible_truncation, reason = "zeros or ones")]
        let narrow = mask as u32;
        connection.pid = (*listener).pid & narrow;
        connection.comm = zerocopy::transmute!([comm[0] & mask, comm[1] & mask]);
        connection.cgroup = (*listener).cgroup & mask;
    }
    connection.flags.insert(ConnectionFlags::OWNER_LISTENS);
}

#[inline(always)]
fn note_cookie(connection: &mut Connection, key: u64) {
    let told = TELLS_COOKIES.get(0).map_or(0, |told| black_box(*told));
    let is_known = u64::from(told) & (key | key.wrapping_neg()) >> 63;
    let is_cookie = is_known & key;
    let bit = |flag: ConnectionFlags, value: u64| flag.bits() * (value & 1) as u32;
    let bits = bit(ConnectionFlags::SYN_COOKIE, is_cookie)
        | bit(ConnectionFlags::NO_SYN_COOKIE, is_known & !is_cookie);
    connection.flags.insert(ConnectionFlags::from_bits_retain(bits));
}

/// The key of the listener of this socket, and whether a cookie made it ([`COOKIE`]); 0: unknown. A function
/// of its own as well.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn take_listener(sk: u64) -> u64 {
    let Some(newest) = NASCENT.get_ptr_mut(0) else { return 0 };
    // SAFETY: the map's own value of this CPU. Volatile, and the listener first: if `begins` interrupts this,
    // it has moved the socket that is asked for elsewhere, and the entry is another's.
    unsafe {
        let listener = (&raw const (*newest).listener).read_volatile();
        if (&raw const (*newest).sk).read_volatile() == sk {
            (&raw mut (*newest).sk).write_volatile(0);
            return listener;
        }
    }
    // SAFETY: the value is copied at once.
    let key = unsafe { NASCENT_ELSEWHERE.get(sk) }.copied();
    let _ = NASCENT_ELSEWHERE.remove(sk);
    key.unwrap_or(0)
}
