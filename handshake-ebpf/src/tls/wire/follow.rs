//! From the ClientHello to the end of the handshake, packet by packet.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_RB_NO_WAKEUP, bpf_sock},
    helpers::generated::{bpf_get_socket_cookie, bpf_ktime_get_ns, bpf_tcp_sock},
    programs::SkBuffContext,
};
use handshake_common::{
    Connection, Kind, Phase, WirePhase,
    tcp::{Sock as _, states},
    tls::wire::{self, Direction, Next, PacketAction, Segment, WireHandshake, begins_hello, proxy_header},
    totals::{self, DropReason},
};

use super::{
    copy::copy,
    maps::{self as wires, FlowState, Step},
    packet::{Headers, Packet},
};
use crate::{
    emit,
    kernel::{Access, Filtered, KernelSock, constant},
    maps::{self, Endpoints, RECORDS},
    tcp::adopt::adopt_unlocked,
    word_copy,
};

/// After this many bytes in one direction no handshake begins on a connection any more, STARTTLS included.
const QUIET: u64 = 1 << 14;

/// The ports whose handshakes are followed; all zero: every port. Filled in by user space before the load.
#[unsafe(no_mangle)]
static WIRE_PORTS: [u16; wire::raw::MAX_PORTS] = [0; wire::raw::MAX_PORTS];

/// The longest packet that begins a handshake: a ClientHello, perhaps followed by early data, of which
/// servers accept 16 KiB. Longer ones, made by segmentation offload, belong to a transfer.
const MAX_OPENING: u32 = 24 << 10;

/// Filters a packet. The cost is the number of cache lines touched and of helpers called (whose return is
/// what costs on CPUs that need safe ones), so the cheapest test comes first. These offsets are immediates,
/// unlike those of [`crate::kernel::LAYOUT`].
#[expect(clippy::cast_possible_truncation, reason = "the context has the port in 32 bits")]
#[inline(always)]
pub(crate) fn look(ctx: &SkBuffContext) {
    let skb = ctx.skb.skb;
    // SAFETY: the program's own context, and what it leads to. Volatile: the verifier wants the loads as they
    // are.
    let (sk, heat, length) = unsafe {
        let sk = (&raw const (*skb).__bindgen_anon_2.sk).read_volatile();
        if sk.is_null() {
            return;
        }
        let remote_port = u16::from_be((&raw const (*sk).dst_port).cast::<u16>().read_volatile());
        let heat = wires::heat((&raw const (*sk).src_port).read_volatile() as u16, remote_port);
        (sk, heat, (&raw const (*skb).len).read_volatile())
    };
    if heat.is_none() && length > MAX_OPENING {
        return;
    }
    let Some(headers) = Headers::find(skb) else { return };
    let is_wanted =
        if heat.is_none() { may_begin(skb, sk, &headers) } else { headers.length != 0 || heat.wants_all() };
    if is_wanted {
        follow(skb, sk as *const c_void, direction(skb), &headers);
    }
}

/// Which way the packet goes. The stack notes the interface that a packet came in by
/// (`__netif_receive_skb_core`, loopback included); a packet that this host made came in by none.
#[inline(always)]
fn direction(skb: *mut __sk_buff) -> Direction {
    // SAFETY: the program's own context. Volatile: the verifier wants the loads as they are.
    match unsafe { (&raw const (*skb).ingress_ifindex).read_volatile() } {
        0 => Direction::Sent,
        _ => Direction::Received,
    }
}

/// Whether the payload may begin with a handshake record, on a connection that has moved few enough bytes.
#[inline(always)]
fn may_begin(skb: *mut __sk_buff, sk: *mut bpf_sock, headers: &Headers) -> bool {
    let begins = headers.begins_handshake();
    if headers.length == 0 || begins == Some(false) {
        return false;
    }
    // SAFETY: the context's own socket. Volatile: the verifier wants the loads as they are.
    let is_quiet = unsafe {
        let tcp = bpf_tcp_sock(sk);
        if tcp.is_null() {
            return false;
        }
        (&raw const (*tcp).bytes_received).read_volatile() <= QUIET
            && (&raw const (*tcp).bytes_acked).read_volatile() <= QUIET
    };
    is_quiet && begins.unwrap_or_else(|| headers.loads_handshake(skb))
}

#[inline(always)]
fn follow(skb: *mut __sk_buff, sk: *const c_void, direction: Direction, headers: &Headers) -> Option<()> {
    let mut packet = Packet::read(headers)?;
    let sock = &KernelSock::<Filtered>::of_packet(sk)?;
    let mut ends = sock.ends();
    let state = sock.state();
    if state == states::LISTEN {
        packet.ends(skb, &mut ends);
    }
    let watched = match wires::find(&ends) {
        Some(found) => found,
        None if packet.length != 0 && is_wanted(&ends) && {
            packet = packet.behind(proxy_header(&packet.payload(skb)));
            begins_hello(&packet.payload(skb))
        } =>
        {
            begin(skb, sock, state, &ends)?
        }
        None => {
            wires::cool(&ends);
            return None;
        }
    };
    if !wires::enter(watched) {
        return None;
    }
    if watched.reported == 0 {
        step(skb, sock, direction, packet, watched, &ends);
    } else {
        settle(skb, sock, direction, packet, watched, &ends);
    }
    wires::leave(watched);
    Some(())
}

/// A packet behind the end of a handshake, which the server may have refused.
#[inline(always)]
fn settle(
    skb: *mut __sk_buff,
    sock: &KernelSock<Filtered>,
    direction: Direction,
    packet: Packet,
    watched: &mut FlowState,
    ends: &Endpoints,
) {
    let packet = watched.packet(packet);
    if packet.length == 0 {
        return;
    }
    let segment = Segment { direction, seq: packet.seq, ack: packet.ack, now_ns: 0 };
    let Some(is_refused) = wire::is_refused(&watched.wire, &segment, &packet.payload(skb)) else { return };
    if let Some(connection) = maps::find(sock.pointer())
        && connection.wire_is(WirePhase::Settling)
    {
        connection.wire = WirePhase::Reported as u8;
        if is_refused {
            watched.wire.doubted = 1;
            report(connection, watched);
        }
    }
    wires::end(ends, watched);
}

#[inline(always)]
fn is_wanted(ends: &Endpoints) -> bool {
    let ports = constant(&WIRE_PORTS);
    ports[0] == 0
        || ports.iter().any(|&port| port != 0 && (port == ends.local_port || port == ends.remote_port))
}

/// A ClientHello on a connection without one so far.
#[inline(always)]
fn begin<'a>(
    skb: *mut __sk_buff,
    sock: &KernelSock<Filtered>,
    state: u32,
    ends: &Endpoints,
) -> Option<&'a mut FlowState> {
    if state != states::LISTEN {
        let connection = connection(skb, sock)?;
        if !connection.wire_is(WirePhase::Idle) && !connection.wire_is(WirePhase::Unsure) {
            // Its handshake has been reported: this ClientHello is a duplicate.
            return None;
        }
        connection.wire = WirePhase::Handshaking as u8;
    }
    wires::begin(ends)
}

/// The connection of this socket, which may have existed before the program.
#[inline(always)]
fn connection<'a>(skb: *mut __sk_buff, sock: &KernelSock<Filtered>) -> Option<&'a mut Connection> {
    if let Some(found) = maps::find(sock.pointer()) {
        return Some(found);
    }
    // SAFETY: the program's own context.
    adopt_unlocked(sock, unsafe { bpf_get_socket_cookie(skb.cast()) })
}

/// One packet of a handshake.
#[inline(always)]
fn step(
    skb: *mut __sk_buff,
    sock: &KernelSock<Filtered>,
    direction: Direction,
    packet: Packet,
    flow: *mut FlowState,
    ends: &Endpoints,
) {
    // SAFETY: the map's own value, which the kernel keeps while the program runs; the flow is entered.
    let watched = unsafe { &mut *flow };
    let packet = watched.packet(packet);
    // SAFETY: no arguments.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let unsent = packet.length == 0
        && matches!(direction, Direction::Received)
        && sock.state() == states::ESTABLISHED
        && sock.has_unsent();
    let segment = Segment { direction, seq: packet.seq, ack: packet.ack, now_ns };
    wire::pass(&mut watched.wire, &segment, packet.length, unsent);
    let packet = watched.packet(packet);
    let payload = packet.payload(skb);
    let segment = Segment { direction, seq: packet.seq, ack: packet.ack, now_ns };
    watched.now_ns = now_ns;
    let has_begun = wire::arrive(&mut watched.wire, &segment, &payload);
    if has_begun {
        records(skb, ends);
    }
    // SAFETY: as above. Anew, because the records were followed by another pointer to it.
    let watched = unsafe { &mut *flow };
    let due = if has_begun {
        wire::depart(&mut watched.wire, &segment, packet.length)
    } else {
        PacketAction::WATCH
    };
    watched.set_due(Step::of(&due));
    if packet.syn == 1 && watched.wire.whole_at != 0 {
        watched.hello_in_syn = 1;
    }
    copy(&payload, packet.seq, watched);
    let due = watched.due();
    if due.is(Next::Watch) {
        watched.reported = 1;
        if let Some(connection) = maps::find(sock.pointer()) {
            connection.wire = WirePhase::Unsure as u8;
        }
        wires::end(ends, watched);
        return;
    }
    // On a listening socket, and on one that is not established yet (Fast Open), the next packet will do.
    if due.is(Next::Publish)
        && !matches!(sock.state(), states::LISTEN | states::SYN_RECV)
        && let Some(connection) = connection(skb, sock)
        && !connection.is(Phase::Opening)
    {
        report(connection, watched);
        if wire::may_be_refused(&watched.wire) {
            connection.wire = WirePhase::Settling as u8;
            wires::want(ends, watched, false, now_ns);
        } else {
            wires::end(ends, watched);
        }
    } else {
        wires::want(ends, watched, !due.is(Next::Follow), now_ns);
    }
}

/// Goes through the TLS records of a packet whose flow is entered.
#[inline(always)]
fn records(skb: *mut __sk_buff, ends: &Endpoints) {
    // SAFETY: arrays of 16 bytes are two numbers.
    let [local, remote]: [[u64; 2]; 2] = unsafe { core::mem::transmute([ends.local, ends.remote]) };
    let ports = u32::from(ends.local_port) | u32::from(ends.remote_port) << 16;
    // SAFETY: the program's own context, which has room for twenty bytes of the program's. A function takes
    // five arguments, and these are more.
    unsafe {
        (&raw mut (*skb).cb[0]).write_volatile(ends.netns);
        (&raw mut (*skb).cb[1]).write_volatile(ports);
    }
    for _ in 0..wire::MAX_PER_PACKET {
        if tls_record(skb, local[0], local[1], remote[0], remote[1]) == 0 {
            return;
        }
    }
}

/// The next TLS record of a packet; 0 if it was the last. A function of its own, with the context and numbers
/// for arguments: the verifier looks at it once, and not once for each record of a packet. Pointers to maps'
/// values it may have from 5.12 on alone, so that it looks the flow up again.
#[expect(clippy::cast_possible_truncation, reason = "two ports in a number")]
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tls_record(skb: *mut __sk_buff, local: u64, local_2: u64, remote: u64, remote_2: u64) -> u32 {
    // SAFETY: the program's own context; see `records`. Volatile: the verifier wants the loads as they are.
    let (netns, ports) =
        unsafe { ((&raw const (*skb).cb[0]).read_volatile(), (&raw const (*skb).cb[1]).read_volatile()) };
    // SAFETY: two numbers are arrays of 16 bytes.
    let [local, remote] = unsafe {
        core::mem::transmute::<[[u64; 2]; 2], [[u8; 16]; 2]>([[local, local_2], [remote, remote_2]])
    };
    let (local_port, remote_port) = (ports as u16, (ports >> 16) as u16);
    let Some(watched) = wires::find(&Endpoints { local, remote, netns, local_port, remote_port }) else {
        return 0;
    };
    let packet = watched.stored();
    let segment =
        Segment { direction: direction(skb), seq: packet.seq, ack: packet.ack, now_ns: watched.now_ns };
    u32::from(wire::next_record(&mut watched.wire, &segment, &packet.payload(skb)))
}

/// Sends the record of the handshake.
#[inline(always)]
fn report(connection: &mut Connection, watched: &mut FlowState) {
    watched.reported = 1;
    connection.wire = WirePhase::Reported as u8;
    let Some(mut record) = RECORDS.reserve_untyped::<WireHandshake>(0) else {
        return emit::count(totals::lost(DropReason::RingFull));
    };
    // SAFETY: the record is written in whole before it is submitted; it is repr(C) and plain.
    unsafe {
        let raw = record.as_mut_ptr();
        word_copy::copy(connection, &raw mut (*raw).connection);
        (*raw).connection.stage = Kind::Wire.code();
        (*raw).number = watched.number;
        (*raw).hello_in_syn = watched.hello_in_syn;
        word_copy::copy(&raw const watched.wire, &raw mut (*raw).wire);
    }
    record.submit(u64::from(BPF_RB_NO_WAKEUP));
}

/// A server's connection is established by a segment with data. If a ClientHello began in it, it was filtered
/// on the listening socket.
#[inline(always)]
pub(crate) fn established(connection: &mut Connection) {
    if wires::find(&Endpoints::of(connection)).is_some() {
        connection.wire = WirePhase::Handshaking as u8;
    }
}

/// The socket of a handshake in progress, or of one that the server may yet refuse, is closed.
#[inline(always)]
pub(crate) fn socket_closed<A: Access>(connection: &mut Connection, sock: &KernelSock<A>) {
    if connection.family == 0 {
        sock.identify(connection);
    }
    let ends = Endpoints::of(connection);
    let is_settling = connection.wire_is(WirePhase::Settling);
    connection.wire = if is_settling { WirePhase::Reported as u8 } else { WirePhase::Unsure as u8 };
    let Some(watched) = wires::find(&ends) else { return };
    // Another program may be inside: its packet comes too late. The entry is removed anyway, or the next
    // connection between these ends would find it.
    if wires::enter(watched) {
        if watched.reported == 0 && wire::closed(&mut watched.wire) == Next::Publish {
            report(connection, watched);
        }
        wires::leave(watched);
    }
    wires::end(&ends, watched);
}
