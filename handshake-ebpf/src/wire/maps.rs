//! What is kept of handshakes on the wire.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::{
    bindings::BPF_ANY,
    btf_maps::{Array, LruHashMap},
    helpers::generated::{bpf_get_smp_processor_id, bpf_ktime_get_ns, bpf_map_update_elem},
    macros::btf_map,
};
use handshake_common::tls::wire::{Due, Next, Wire};

use super::packet::Packet;
use crate::{emit, maps::Endpoints};

/// A handshake under way.
#[repr(C)]
pub struct Watched {
    pub wire: Wire,
    /// Tells it from all other handshakes.
    pub number: u64,
    /// How many programs are at it: only the one that finds itself alone goes on.
    inside: u64,
    /// 1: the whole ClientHello was in the SYN.
    pub hello_in_syn: u64,
    /// 1: its record is out.
    pub told: u64,
    /// 1: packets without payload are wanted, too.
    all: u64,
    /// The packet that is looked at, and what is due after it. What the verifier reads back from here it knows nothing
    /// of, so that the many ways that lead to the walker, and out of it, are one: else they multiply.
    packet: Packet,
    due: Step,
}

/// What is due after a packet: [`Due`] in numbers.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Step {
    pub next: u32,
    /// Code of the role.
    pub sender: u32,
    pub copy_offset: u32,
    pub copy_length: u32,
}

impl Step {
    #[inline(always)]
    pub fn of(due: &Due) -> Self {
        let Due { next, sender, copy_offset, copy_length } = *due;
        Self { next: next as u32, sender: u32::from(sender.code()), copy_offset, copy_length }
    }

    #[inline(always)]
    pub fn is(&self, next: Next) -> bool {
        self.next == next as u32
    }
}

impl Watched {
    /// Keeps the packet for the time inside.
    #[inline(always)]
    pub fn packet(&mut self, packet: Packet) -> Packet {
        // SAFETY: the map's own value. Volatile: it is to be written, and read.
        unsafe {
            (&raw mut self.packet).write_volatile(packet);
            (&raw const self.packet).read_volatile()
        }
    }

    /// Keeps what is due for the time inside.
    #[inline(always)]
    pub fn set_due(&mut self, due: Step) {
        // SAFETY: the map's own value. Volatile: it is to be written.
        unsafe { (&raw mut self.due).write_volatile(due) };
    }

    /// What is due after the packet.
    #[inline(always)]
    pub fn due(&self) -> Step {
        // SAFETY: the map's own value. Volatile: it is to be read.
        unsafe { (&raw const self.due).read_volatile() }
    }
}

/// Handshakes under way, by the ends of their connection: a ClientHello that comes with the final ACK or in a SYN is
/// filtered on the listening socket, before the connection has one of its own. What never ends gives way.
#[btf_map]
static WIRES: LruHashMap<Endpoints, Watched, 16384> = LruHashMap::new();

/// How many counters [`HOT`] has: few enough to stay in the caches.
const BUCKETS: usize = 4096;

/// How many handshakes are under way, by a hash of their ports: nearly all packets of the host find a zero here, and
/// spare the search in [`WIRES`]. The upper half counts those that want [`ALL`] packets. A handshake that gave way stays
/// counted, which costs a search and nothing else.
#[btf_map]
static HOT: Array<[u32; BUCKETS], 1> = Array::new();

/// Nothing seen yet.
// SAFETY: integers only.
static NEW: Watched = unsafe { core::mem::zeroed() };

#[inline(always)]
fn bucket(local_port: u16, remote_port: u16) -> Option<*mut u32> {
    let hash = usize::from(local_port ^ remote_port.rotate_left(7)) & (BUCKETS - 1);
    // SAFETY: inside the map's value.
    HOT.get_ptr_mut(0).map(|counts| unsafe { counts.cast::<u32>().add(hash) })
}

/// What a handshake that wants packets without payload, too, adds to [`HOT`].
pub const ALL: u32 = 1 << 16;

/// 0 if no handshake is under way between these ports; at least [`ALL`] if one may be that wants all packets.
#[inline(always)]
pub fn heat(local_port: u16, remote_port: u16) -> u32 {
    // SAFETY: the map's own value. Volatile: others count meanwhile.
    bucket(local_port, remote_port).map_or(0, |count| unsafe { count.read_volatile() })
}

#[inline(always)]
fn count(ends: &Endpoints, change: u32) {
    if let Some(count) = bucket(ends.local_port, ends.remote_port) {
        // SAFETY: the map's own value, counted by all CPUs.
        unsafe { atomic_xadd::<u32, u32, { AtomicOrdering::Relaxed }>(count, change) };
    }
}

/// The handshake under way between these ends.
#[inline(always)]
pub fn find<'a>(ends: &Endpoints) -> Option<&'a mut Watched> {
    // SAFETY: the map's own value, which the kernel keeps while the program runs; `enter` keeps others out.
    WIRES.get_ptr_mut(ends).map(|watched| unsafe { &mut *watched })
}

/// A handshake may begin between these ends.
#[inline(always)]
pub fn begin<'a>(ends: &Endpoints) -> Option<&'a mut Watched> {
    // SAFETY: key and value have the sizes of the map's definition. The plain helper spares a copy of the value on
    // the stack.
    unsafe {
        bpf_map_update_elem(
            (&raw const WIRES).cast_mut().cast(),
            core::ptr::from_ref(ends).cast_mut().cast(),
            (&raw const NEW).cast_mut().cast(),
            u64::from(BPF_ANY),
        );
    }
    let watched = find(ends)?;
    // SAFETY: no arguments. No CPU begins two in the same nanosecond.
    watched.number = unsafe { bpf_ktime_get_ns() ^ (u64::from(bpf_get_smp_processor_id()) << 52) };
    count(ends, 1);
    Some(watched)
}

/// From now on packets without payload are wanted, or not.
#[inline(always)]
pub fn want(ends: &Endpoints, watched: &mut Watched, all: bool) {
    let before = core::mem::replace(&mut watched.all, u64::from(all));
    if before != u64::from(all) {
        count(ends, if all { ALL } else { ALL.wrapping_neg() });
    }
}

/// There is no more to see between these ends.
#[inline(always)]
pub fn end(ends: &Endpoints, watched: &Watched) {
    let counted = if watched.all == 0 { 1 } else { 1 + ALL };
    if WIRES.remove(ends).is_ok() {
        count(ends, counted.wrapping_neg());
    }
}

/// How often a program looks whether the other one is through. That takes about a microsecond; who broke into the other
/// one on the same CPU waits in vain, and its packet is missing as one that was lost.
const PATIENCE: u32 = 1;

/// Goes in alone; false if another program is at it and stays. Both directions of a connection are filtered without
/// the socket's lock. Counting is all that every kernel's atomic instructions can do.
#[inline(always)]
pub fn enter(watched: &mut Watched) -> bool {
    for _ in 0..PATIENCE {
        // SAFETY: the map's own value. Volatile: others count meanwhile.
        unsafe {
            emit::add(&raw mut watched.inside, 1);
            if (&raw const watched.inside).read_volatile() == 1 {
                return true;
            }
            emit::add(&raw mut watched.inside, u64::MAX);
        }
    }
    false
}

/// Lets others in.
#[inline(always)]
pub fn leave(watched: &mut Watched) {
    // SAFETY: the map's own value.
    unsafe { emit::add(&raw mut watched.inside, u64::MAX) };
}
