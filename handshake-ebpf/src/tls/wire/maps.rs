//! The state of handshakes on the wire.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    btf_maps::{Array, LruHashMap},
    helpers::generated::{bpf_ktime_get_ns, bpf_map_update_elem},
    macros::btf_map,
};
use handshake_common::tls::wire::{Next, PacketAction, Wire};

use super::packet::Packet;
use crate::{emit, kernel::number_at, maps::Endpoints};

/// A handshake in progress.
#[repr(C)]
pub(crate) struct FlowState {
    pub(crate) wire: Wire,
    /// Unique among all handshakes.
    pub(crate) number: u64,
    /// How many programs are inside: only one that is alone continues.
    inside: u64,
    /// 1: the whole ClientHello was in the SYN.
    pub(crate) hello_in_syn: u64,
    /// 1: its record was published.
    pub(crate) reported: u64,
    /// 1: packets without payload are needed too.
    all: u32,
    /// The epoch in which it is counted in [`HOT`].
    epoch: u32,
    /// The current packet and the action due after it. The verifier knows nothing of a value read back from
    /// here, so the many paths into and out of the tracker become one; otherwise they multiply.
    packet: Packet,
    due: Step,
    /// When the current packet passed.
    pub(crate) now_ns: u64,
}

/// What is due after a packet: [`PacketAction`] in numbers.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Step {
    pub(crate) next: u32,
    /// Code of the role.
    pub(crate) sender: u32,
    pub(crate) copy_offset: u32,
    pub(crate) copy_length: u32,
}

impl Step {
    #[inline(always)]
    pub(crate) fn of(due: &PacketAction) -> Self {
        let PacketAction { next, sender, copy_offset, copy_length } = *due;
        Self { next: next as u32, sender: u32::from(sender.code()), copy_offset, copy_length }
    }

    #[inline(always)]
    pub(crate) fn is(&self, next: Next) -> bool {
        self.next == next as u32
    }
}

impl FlowState {
    /// Stores the packet while inside.
    #[inline(always)]
    pub(crate) fn packet(&mut self, packet: Packet) -> Packet {
        // SAFETY: the map's own value. Volatile: it must really be written and read.
        unsafe {
            (&raw mut self.packet).write_volatile(packet);
        }
        self.stored()
    }

    /// Stores the action while inside.
    #[inline(always)]
    pub(crate) fn set_due(&mut self, due: Step) {
        // SAFETY: the map's own value. Volatile: it must really be written.
        unsafe { (&raw mut self.due).write_volatile(due) };
    }

    /// The packet that was stored last.
    #[inline(always)]
    pub(crate) fn stored(&self) -> Packet {
        // SAFETY: the map's own value. Volatile: it must really be read.
        unsafe { (&raw const self.packet).read_volatile() }
    }

    /// The action due after the packet.
    #[inline(always)]
    pub(crate) fn due(&self) -> Step {
        // SAFETY: the map's own value. Volatile: it must really be read.
        unsafe { (&raw const self.due).read_volatile() }
    }
}

/// Handshakes in progress, by the ends of their connection: a ClientHello in the final ACK or in a SYN is
/// filtered on the listening socket, before the connection has a socket of its own. One that never ends is
/// evicted.
#[btf_map]
static WIRES: LruHashMap<Endpoints, FlowState, 16384> = LruHashMap::new();

/// How many counters [`HOT`] has: few enough to stay in the caches.
const BUCKETS: usize = 4096;

/// How many handshakes are in progress, by a hash of their ports: nearly all packets of the host find a zero
/// here, and skip the lookup in [`WIRES`]. Four counts of 16 bits: those in progress and those that need all
/// packets ([`ALL`]), in even epochs and in odd ones. Handshakes not seen for two epochs are no longer
/// counted, so evicted and stalled ones leave nothing behind.
#[btf_map]
static HOT: Array<[u64; BUCKETS], 1> = Array::new();

/// The last epoch of each counter of [`HOT`].
#[btf_map]
static EPOCHS: Array<[u32; BUCKETS], 1> = Array::new();

/// The length of an epoch, as a power of two of nanoseconds: 137 s. A handshake that stalls for longer may be
/// dropped; servers wait for a minute.
const EPOCH_BITS: u32 = 37;

/// Nothing seen yet. A static, because the helper takes its address.
// SAFETY: integers only.
static NEW: FlowState = unsafe { core::mem::zeroed() };

#[inline(always)]
fn bucket(local_port: u16, remote_port: u16) -> usize {
    usize::from(local_port ^ remote_port.rotate_left(7)) & (BUCKETS - 1)
}

#[inline(always)]
fn bucket_of(ends: &Endpoints) -> usize {
    bucket(ends.local_port, ends.remote_port)
}

#[inline(always)]
fn counts(bucket: usize) -> Option<*mut u64> {
    // SAFETY: inside the map's value.
    HOT.get_ptr_mut(0).map(|counts| unsafe { counts.cast::<u64>().add(bucket) })
}

/// What a handshake that also needs packets without payload adds to [`HOT`] in an even epoch.
const ALL: u64 = 1 << 16;
/// From the counts of even epochs to those of odd ones, bits.
const ODD: u32 = 32;
/// The counts of an even epoch.
const EVEN_COUNTS: u64 = (1 << ODD) - 1;
/// The counts of handshakes that need all packets.
const ALL_COUNTS: u64 = 0xffff_0000_ffff_0000;

/// How many handshakes may be in progress between some ports.
#[derive(Clone, Copy)]
pub(crate) struct Heat(u64);

impl Heat {
    /// No handshake is in progress.
    #[inline(always)]
    pub(crate) fn is_none(self) -> bool {
        self.0 == 0
    }

    /// One that needs all packets may be in progress.
    #[inline(always)]
    pub(crate) fn wants_all(self) -> bool {
        self.0 & ALL_COUNTS != 0
    }
}

/// Returns what may be in progress between these ports.
#[inline(always)]
pub(crate) fn heat(local_port: u16, remote_port: u16) -> Heat {
    // SAFETY: the map's own value. Volatile: others count meanwhile.
    Heat(counts(bucket(local_port, remote_port)).map_or(0, |counts| unsafe { counts.read_volatile() }))
}

/// Starts counting these ports in the current epoch. Two CPUs may do that at once, and count one too many or
/// too few: too many lasts for two epochs, too few costs a handshake some packets, which count as lost.
#[inline(always)]
fn turn(ends: &Endpoints, now_ns: u64) -> u32 {
    let epoch = (now_ns >> EPOCH_BITS) as u32;
    let at = bucket_of(ends);
    // SAFETY: inside the map's value.
    let last = EPOCHS.get_ptr_mut(0).map(|epochs| unsafe { epochs.cast::<u32>().add(at) });
    if let (Some(last), Some(counts)) = (last, counts(at)) {
        // SAFETY: the map's own values. Volatile: others count meanwhile.
        unsafe {
            let before = last.read_volatile();
            if before != epoch {
                last.write_volatile(epoch);
                let kept = if before.wrapping_add(1) == epoch { EVEN_COUNTS << lane(before) } else { 0 };
                let kept = counts.read_volatile() & kept;
                counts.write_volatile(kept);
            }
        }
    }
    epoch
}

#[inline(always)]
const fn lane(epoch: u32) -> u32 {
    (epoch & 1) * ODD
}

#[inline(always)]
fn add(ends: &Endpoints, epoch: u32, change: u64) {
    if let Some(counts) = counts(bucket_of(ends)) {
        // SAFETY: the map's own value, counted by all CPUs.
        unsafe { emit::add(counts, change << lane(epoch)) };
    }
}

/// What a handshake is counted as.
#[inline(always)]
fn weight(all: u32) -> u64 {
    if all == 0 { 1 } else { 1 + ALL }
}

/// Removes a handshake from the counts, unless an epoch change has.
#[inline(always)]
fn discount(ends: &Endpoints, (all, counted): (u32, u32), epoch: u32) {
    if epoch.wrapping_sub(counted) <= 1 {
        add(ends, counted, weight(all).wrapping_neg());
    }
}

/// Returns the handshake in progress between these ends.
#[inline(always)]
pub(crate) fn find<'a>(ends: &Endpoints) -> Option<&'a mut FlowState> {
    // SAFETY: the map's own value, which the kernel keeps while the program runs; `enter` keeps others out.
    WIRES.get_ptr_mut(ends).map(|watched| unsafe { &mut *watched })
}

/// No handshake is in progress between these ends after all: it is between others with the same ports, or
/// over.
#[inline(always)]
pub(crate) fn cool(ends: &Endpoints) {
    // SAFETY: no arguments.
    turn(ends, unsafe { bpf_ktime_get_ns() });
}

/// A handshake may begin between these ends.
#[inline(always)]
pub(crate) fn begin<'a>(ends: &Endpoints) -> Option<&'a mut FlowState> {
    // SAFETY: key and value have the sizes of the map's definition. The plain helper spares a copy of the
    // value on the stack.
    let error = unsafe {
        bpf_map_update_elem(
            (&raw const WIRES).cast_mut().cast(),
            core::ptr::from_ref(ends).cast_mut().cast(),
            (&raw const NEW).cast_mut().cast(),
            u64::from(BPF_NOEXIST),
        )
    };
    let watched = find(ends)?;
    // Otherwise another CPU has just added it.
    if error == 0 {
        // SAFETY: no arguments.
        let now_ns = unsafe { bpf_ktime_get_ns() };
        watched.number = number_at(now_ns);
        watched.epoch = turn(ends, now_ns);
        add(ends, watched.epoch, 1);
    }
    Some(watched)
}

/// Sets whether packets without payload are needed from now on.
#[inline(always)]
pub(crate) fn want(ends: &Endpoints, watched: &mut FlowState, all: bool, now_ns: u64) {
    let all = u32::from(all);
    let epoch = turn(ends, now_ns);
    if watched.all != all || watched.epoch != epoch {
        discount(ends, (watched.all, watched.epoch), epoch);
        (watched.all, watched.epoch) = (all, epoch);
        add(ends, epoch, weight(all));
    }
}

/// The handshake between these ends is over.
#[inline(always)]
pub(crate) fn end(ends: &Endpoints, watched: &FlowState) {
    let counted = (watched.all, watched.epoch);
    if WIRES.remove(ends).is_ok() {
        // SAFETY: no arguments.
        let epoch = turn(ends, unsafe { bpf_ktime_get_ns() });
        discount(ends, counted, epoch);
    }
}

/// Enters exclusively. Returns false if another program is inside. Both directions of a connection are
/// filtered without the socket's lock. There is no waiting: it would take about a microsecond, and a program
/// that interrupts the other on the same CPU would wait in vain. The packet counts as lost. A counter,
/// because every kernel's atomic instructions can add.
#[inline(always)]
pub(crate) fn enter(watched: &mut FlowState) -> bool {
    // SAFETY: the map's own value. Volatile: others count meanwhile.
    unsafe {
        emit::add(&raw mut watched.inside, 1);
        if (&raw const watched.inside).read_volatile() == 1 {
            return true;
        }
        emit::add(&raw mut watched.inside, u64::MAX);
    }
    false
}

/// Leaves, so that others may enter.
#[inline(always)]
pub(crate) fn leave(watched: &mut FlowState) {
    // SAFETY: the map's own value.
    unsafe { emit::add(&raw mut watched.inside, u64::MAX) };
}
