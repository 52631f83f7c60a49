//! What is kept of handshakes on the wire.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    btf_maps::{Array, LruHashMap},
    helpers::generated::{bpf_ktime_get_ns, bpf_map_update_elem},
    macros::btf_map,
};
use handshake_common::tls::wire::{Next, PacketAction, Wire};

use super::packet::Packet;
use crate::{emit, kernel::number_at, maps::Endpoints};

/// A handshake under way.
#[repr(C)]
pub(crate) struct FlowState {
    pub(crate) wire: Wire,
    /// Tells it from all other handshakes.
    pub(crate) number: u64,
    /// How many programs are at it: only the one that finds itself alone goes on.
    inside: u64,
    /// 1: the whole ClientHello was in the SYN.
    pub(crate) hello_in_syn: u64,
    /// 1: its record is out.
    pub(crate) reported: u64,
    /// 1: packets without payload are wanted, too.
    all: u32,
    /// The epoch in which it is counted in [`HOT`].
    epoch: u32,
    /// The packet that is looked at, and what is due after it. What the verifier reads back from here it
    /// knows nothing of, so that the many ways that lead to the tracker, and out of it, are one: else they
    /// multiply.
    packet: Packet,
    due: Step,
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
    /// Keeps the packet for the time inside.
    #[inline(always)]
    pub(crate) fn packet(&mut self, packet: Packet) -> Packet {
        // SAFETY: the map's own value. Volatile: it is to be written, and read.
        unsafe {
            (&raw mut self.packet).write_volatile(packet);
            (&raw const self.packet).read_volatile()
        }
    }

    /// Keeps what is due for the time inside.
    #[inline(always)]
    pub(crate) fn set_due(&mut self, due: Step) {
        // SAFETY: the map's own value. Volatile: it is to be written.
        unsafe { (&raw mut self.due).write_volatile(due) };
    }

    /// What is due after the packet.
    #[inline(always)]
    pub(crate) fn due(&self) -> Step {
        // SAFETY: the map's own value. Volatile: it is to be read.
        unsafe { (&raw const self.due).read_volatile() }
    }
}

/// Handshakes under way, by the ends of their connection: a ClientHello that comes with the final ACK or in a
/// SYN is filtered on the listening socket, before the connection has one of its own. What never ends gives
/// way.
#[btf_map]
static WIRES: LruHashMap<Endpoints, FlowState, 16384> = LruHashMap::new();

/// How many counters [`HOT`] has: few enough to stay in the caches.
const BUCKETS: usize = 4096;

/// How many handshakes are under way, by a hash of their ports: nearly all packets of the host find a zero
/// here, and spare the search in [`WIRES`]. Four counts of 16 bits: those under way and those that want all
/// packets ([`ALL`]), in even epochs and in odd ones. What was seen last in the epoch before the last one is
/// counted no more: of a handshake that gave way, or that nobody goes on with, nothing stays behind.
#[btf_map]
static HOT: Array<[u64; BUCKETS], 1> = Array::new();

/// The last epoch of each counter of [`HOT`].
#[btf_map]
static EPOCHS: Array<[u32; BUCKETS], 1> = Array::new();

/// An epoch is so many bits of nanoseconds long: 137 s. A handshake that stands still for longer than that
/// may be followed no further; servers wait for a minute.
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

/// What a handshake that wants packets without payload, too, adds to [`HOT`] in an even epoch.
const ALL: u64 = 1 << 16;
/// From the counts of even epochs to those of odd ones, bits.
const ODD: u32 = 32;
/// The counts of an even epoch.
const EVEN_COUNTS: u64 = (1 << ODD) - 1;
/// The counts of what wants all packets.
const ALL_COUNTS: u64 = 0xffff_0000_ffff_0000;

/// How many handshakes may be under way between some ports.
#[derive(Clone, Copy)]
pub(crate) struct Heat(u64);

impl Heat {
    /// No handshake is under way.
    #[inline(always)]
    pub(crate) fn is_none(self) -> bool {
        self.0 == 0
    }

    /// One may be that wants all packets.
    #[inline(always)]
    pub(crate) fn wants_all(self) -> bool {
        self.0 & ALL_COUNTS != 0
    }
}

/// What is under way between these ports.
#[inline(always)]
pub(crate) fn heat(local_port: u16, remote_port: u16) -> Heat {
    // SAFETY: the map's own value. Volatile: others count meanwhile.
    Heat(counts(bucket(local_port, remote_port)).map_or(0, |counts| unsafe { counts.read_volatile() }))
}

/// The current epoch, in which these ports are counted from now on. Two CPUs may do that at once, and count
/// one too many or too few: too many lasts for two epochs, too few costs a handshake packets, which are
/// missing as those that are lost.
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

/// Takes a handshake out of the counts, unless time has.
#[inline(always)]
fn discount(ends: &Endpoints, (all, counted): (u32, u32), epoch: u32) {
    if epoch.wrapping_sub(counted) <= 1 {
        add(ends, counted, weight(all).wrapping_neg());
    }
}

/// The handshake under way between these ends.
#[inline(always)]
pub(crate) fn find<'a>(ends: &Endpoints) -> Option<&'a mut FlowState> {
    // SAFETY: the map's own value, which the kernel keeps while the program runs; `enter` keeps others out.
    WIRES.get_ptr_mut(ends).map(|watched| unsafe { &mut *watched })
}

/// No handshake is under way between these ends although it looked like that: between others of the same
/// ports, or not any more.
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
    // Else another CPU has just begun it.
    if error == 0 {
        // SAFETY: no arguments.
        let now_ns = unsafe { bpf_ktime_get_ns() };
        watched.number = number_at(now_ns);
        watched.epoch = turn(ends, now_ns);
        add(ends, watched.epoch, 1);
    }
    Some(watched)
}

/// From now on packets without payload are wanted, or not.
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

/// There is no more to see between these ends.
#[inline(always)]
pub(crate) fn end(ends: &Endpoints, watched: &FlowState) {
    let counted = (watched.all, watched.epoch);
    if WIRES.remove(ends).is_ok() {
        // SAFETY: no arguments.
        let epoch = turn(ends, unsafe { bpf_ktime_get_ns() });
        discount(ends, counted, epoch);
    }
}

/// Enters alone; false if another program is inside. Both directions of a connection are filtered without the
/// socket's lock. Nobody waits: that would take about a microsecond, and a program that interrupts the other
/// one on the same CPU would wait in vain. The packet counts as missed, like a lost one. A counter, because
/// every kernel's atomic instructions can add.
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

/// Lets others in.
#[inline(always)]
pub(crate) fn leave(watched: &mut FlowState) {
    // SAFETY: the map's own value.
    unsafe { emit::add(&raw mut watched.inside, u64::MAX) };
}
