//! The record tracker: from one TLS record header to the next, in both directions, until the handshake is
//! over.
//!
//! It runs in the kernel for each packet of a connection whose handshake is in progress. It never skips a
//! byte that it needs: if one is missing (lost, reordered), that direction is stalled until the byte arrives
//! again, so that what is not known stays unknown. Cause and effect are derived from acknowledgements, not
//! from times: data that a client sends before it has the server's decisive message is early.

use core::hint::black_box;

pub use super::opening::begins_hello;
use super::{
    opening::{OPENING, may_open},
    packet::{Direction, Next, PacketAction, Payload, Segment},
    pass,
    record::{HEAD, HEADER, Head, MESSAGE_HEADER, RecordFlags, content, handshake},
    state::{Ending, Stream, StreamFlags, Wire, is_before},
};
use crate::vocabulary::Role;

/// The most records examined in one packet: the loop's bound for the verifier. A server's whole flight has
/// seven.
pub const MAX_PER_PACKET: u32 = 12;
/// The most packets of a handshake.
const MAX_PACKETS: u16 = 1 << 14;
/// The most records of a client's second flight: EndOfEarlyData or certificate and its proof, Finished, and
/// the further records of a long certificate.
const MAX_FLIGHT: u8 = 6;
/// The least length of a hello: its fixed fields (RFC 8446 §4.1.2, §4.1.3).
const LEAST_HELLO: u32 = 38;
/// The greatest plausible length of a hello, bytes.
const MAX_HELLO: u32 = 1 << 16;
/// The bytes of a server's flight of TLS 1.2 or before that go to user space behind its hello: the beginning
/// of its certificate, which has the dates and the key in its first half. With the hello they are no more
/// than a client's.
pub const FLIGHT: u32 = 512;

/// Follows one packet. All of a connection's packets with payload go through here until the handshake is
/// over; during [`Next::FollowAll`], so do those without.
///
/// The kernel side calls the three steps itself, the one in the middle as a function of its own.
#[inline(always)]
pub fn track(wire: &mut Wire, segment: &Segment, payload: &impl Payload) -> PacketAction {
    if !arrive(wire, segment, payload) {
        return PacketAction::WATCH;
    }
    for _ in 0..MAX_PER_PACKET {
        if !next_record(wire, segment, payload) {
            break;
        }
    }
    depart(wire, segment, payload.len())
}

/// The first step: what the packet itself says. False if no handshake has begun, and none begins here: then
/// there are no further steps, but [`PacketAction::WATCH`].
#[inline(always)]
pub fn arrive(wire: &mut Wire, segment: &Segment, payload: &impl Payload) -> bool {
    let length = payload.len();
    // A few bytes may only look like the beginning of a hello: then a complete one starts over.
    let begins =
        wire.client.hello_count == 0 && (wire.role == 0 || length >= OPENING) && begins_hello(payload);
    if begins {
        begin(wire, segment, length);
    } else if wire.role == 0 {
        return false;
    }
    let side = side(wire, segment);
    let at = wire.ticks(segment.now_ns);
    wire.packets = wire.packets.saturating_add(1);
    if matches!(side, Role::Client) {
        acknowledged(wire, segment.seq, segment.ack, at);
        repeated(wire, segment.seq, length, at);
    }
    let stream = wire.stream(side);
    if !stream.seen.contains(StreamFlags::SYNCED) {
        stream.next = segment.seq;
        stream.seen.insert(StreamFlags::SYNCED);
    }
    true
}

/// The second step, at most [`MAX_PER_PACKET`] times: the next record that begins in this packet. False if it
/// was the last.
#[inline(always)]
pub fn next_record(wire: &mut Wire, segment: &Segment, payload: &impl Payload) -> bool {
    let side = side(wire, segment);
    let (seq, length) = (segment.seq, payload.len());
    let is_going = wire.is(Ending::Going);
    let stream = wire.stream(side);
    let offset = stream.next.wrapping_sub(seq);
    if !is_going || is_before(stream.next, seq) || offset >= length {
        return false;
    }
    let begin = stream.next.wrapping_sub(u32::from(stream.have));
    if !head(stream, payload, offset) {
        stream.next = seq.wrapping_add(length);
        half_a_header(wire, side, begin);
        return false;
    }
    let Some(head) = Head::parse(&stream.head) else {
        wire.ending = Ending::Malformed as u8;
        return false;
    };
    stream.have = 0;
    stream.next = begin.wrapping_add(HEADER + u32::from(head.length));
    let at = wire.ticks(segment.now_ns);
    record(wire, side, segment, payload, head, begin, at);
    wire.is(Ending::Going)
}

/// The last step: what is due after a packet with so many bytes of payload.
#[inline(always)]
pub fn depart(wire: &mut Wire, segment: &Segment, length: u32) -> PacketAction {
    let side = side(wire, segment);
    let end = segment.seq.wrapping_add(length);
    if wire.is(Ending::Going) {
        let stream = wire.stream(side);
        if is_before(stream.next, end) {
            passed(stream, end, length);
        }
        if wire.packets > MAX_PACKETS {
            wire.ending = Ending::Exhausted as u8;
        }
    }
    if wire.client.hello_count == 0 && !wire.is(Ending::Going) {
        wire.role = 0;
        return PacketAction::WATCH;
    }
    if matches!(side, Role::Client) {
        hello_whole(wire, end, wire.ticks(segment.now_ns));
    }
    let next = if !wire.is(Ending::Going) {
        Next::Publish
    } else if awaits_bare(wire) {
        Next::FollowAll
    } else {
        Next::Follow
    };
    let behind = flight_bytes(wire, side);
    hello_bytes(wire.stream(side), segment.seq, length, side, behind, next)
}

/// Who has sent it.
#[inline(always)]
const fn side(wire: &Wire, segment: &Segment) -> Role {
    let local_client = wire.role == Role::Client.code();
    let sent = matches!(segment.direction, Direction::Sent);
    if local_client == sent { Role::Client } else { Role::Server }
}

/// How many bytes behind its hello are wanted of this side, too: of a server the header of the next message,
/// and more if that is in plaintext. Without a branch.
#[inline(always)]
fn flight_bytes(wire: &mut Wire, side: Role) -> u32 {
    let bits = u32::from(wire.stream(side).seen.bits() & StreamFlags::EXCHANGED.bits());
    let is_plain = black_box(bits) >> StreamFlags::EXCHANGED.bits().trailing_zeros();
    let is_other = black_box(u32::from(side.code() ^ Role::Server.code()));
    (HEADER + MESSAGE_HEADER + FLIGHT * is_plain) * (is_other.wrapping_sub(1) >> 31)
}

/// Whether a packet without payload may be informative: it may show where the server's stream begins, that
/// the ClientHello has passed by, that the client has the server's Finished, or what a flight waited for. The
/// longest wait, for the server's answer, needs none.
#[inline(always)]
const fn awaits_bare(wire: &Wire) -> bool {
    wire.whole_at == 0 || !wire.server.seen.contains(StreamFlags::SYNCED) || wire.server.hello_count > 0
}

/// The connection ended: what is known of its handshake is due now.
#[inline(always)]
pub const fn closed(wire: &mut Wire) -> Next {
    if wire.client.hello_count == 0 {
        return Next::Watch;
    }
    if wire.is(Ending::Going) {
        wire.ending = Ending::Closed as u8;
    }
    Next::Publish
}

#[inline(always)]
fn begin(wire: &mut Wire, segment: &Segment, length: u32) {
    let role = if matches!(segment.direction, Direction::Sent) { Role::Client } else { Role::Server };
    wire.client = Stream::default();
    wire.server = Stream::default();
    pass::begin(wire, segment, length);
    wire.packets = 0;
    (wire.curve, wire.signature) = (0, 0);
    wire.ending = Ending::Going as u8;
    wire.role = role.code();
    wire.hello_ns = segment.now_ns;
    wire.client.next = segment.seq;
    wire.client.seen.insert(StreamFlags::SYNCED);
    if segment.ack != 0 {
        // So far the client has received what preceded TLS (STARTTLS), or nothing.
        wire.server.next = segment.ack;
        wire.server.seen.insert(StreamFlags::SYNCED);
    }
}

/// The client acknowledges: if the server's Finished is covered, the client may send from now on.
#[inline(always)]
fn acknowledged(wire: &mut Wire, seq: u32, ack: u32, at: u32) {
    let finished =
        wire.client.seen.contains(StreamFlags::FINISHED) && wire.server.seen.contains(StreamFlags::FINISHED);
    if finished && wire.acked_at == 0 && !is_before(ack, wire.finished_to) {
        wire.acked_at = at + 1;
        if is_before(wire.client.next, seq) {
            // What it sent before was lost, so whether that was a false start is not known yet.
            wire.note(at, 0, content::APPLICATION_DATA, early_flags(true), 0);
        }
        complete(wire);
    }
}

/// The ClientHello is sent again: it was lost, or was data in a SYN that the server did not accept.
#[inline(always)]
const fn repeated(wire: &mut Wire, seq: u32, length: u32, at: u32) {
    if length != 0 && wire.client.hello_count != 0 && seq == wire.client.hellos[0] {
        wire.again_at = at + 1;
    }
}

#[inline(always)]
const fn hello_whole(wire: &mut Wire, end: u32, at: u32) {
    let client = &wire.client;
    let known = client.hello_count != 0 && client.hello_left == 0;
    if known && wire.whole_at == 0 && !is_before(end, client.hello_to) {
        wire.whole_at = at + 1;
    }
}

/// Which bytes of the packet belong to the newest hello of its direction, or to so many bytes behind it.
#[inline(always)]
const fn hello_bytes(
    stream: &Stream,
    seq: u32,
    length: u32,
    sender: Role,
    behind: u32,
    next: Next,
) -> PacketAction {
    let end = seq.wrapping_add(length);
    let wanted = stream.hello_to.wrapping_add(behind);
    let from = if is_before(seq, stream.hello_from) { stream.hello_from } else { seq };
    let to = if is_before(end, wanted) { end } else { wanted };
    let there = stream.hello_from != stream.hello_to && is_before(from, to);
    let copy_offset = from.wrapping_sub(seq);
    let copy_length = to.wrapping_sub(from);
    if there && copy_offset < length && copy_length <= length - copy_offset {
        PacketAction { next, sender, copy_offset, copy_length }
    } else {
        PacketAction { next, sender, copy_offset: 0, copy_length: 0 }
    }
}

/// The curve of a server's key exchange (TLS 1.2 and before) that begins a record, `begin` bytes into this
/// packet, and what it is signed with, if the packet has those bytes. Without branches: each would multiply
/// what the verifier follows.
#[expect(clippy::cast_possible_truncation, reason = "all bits are equal")]
#[inline(always)]
fn key_exchange(wire: &mut Wire, side: Role, payload: &impl Payload, head: Head, begin: u32) {
    /// `ECCurveType` (RFC 8422 §5.4).
    const NAMED_CURVE: u8 = 3;
    let at = begin.wrapping_add(HEADER + MESSAGE_HEADER);
    // The type of curve, the curve, and the length of the public key behind it.
    let (mut parameters, mut signature) = ([0; 4], [0; 2]);
    payload.load(at, &mut parameters);
    payload.load(at.wrapping_add(4 + u32::from(black_box(parameters[3]))), &mut signature);
    // What goes on in another record has a header inside.
    let is_cut = u32::from(head.length).wrapping_sub(MESSAGE_HEADER + head.message) >> 31;
    let difference = u32::from(head.first ^ handshake::SERVER_KEY_EXCHANGE)
        | u32::from(parameters[0] ^ NAMED_CURVE)
        | u32::from(side.code() ^ Role::Server.code())
        | is_cut;
    // All ones if there is none; the compiler would make branches of a comparison.
    let is_it = (black_box(difference).wrapping_sub(1) >> 8) as u16;
    let is_it = black_box(is_it);
    wire.curve = (wire.curve & !is_it) | (u16::from_be_bytes([parameters[1], parameters[2]]) & is_it);
    wire.signature = (wire.signature & !is_it) | (u16::from_be_bytes(signature) & is_it);
}

/// A record header continues in the next packet. It may be that of a hello, so its bytes must not be lost.
#[inline(always)]
const fn half_a_header(wire: &mut Wire, side: Role, begin: u32) {
    let due = hello_is_due(wire, side);
    let stream = wire.stream(side);
    if stream.hello_left > 0 {
        stream.hello_to = begin.wrapping_add(HEADER + MESSAGE_HEADER);
    } else if due {
        stream.hello_from = begin;
        stream.hello_to = begin.wrapping_add(HEADER + MESSAGE_HEADER);
    }
    let first = matches!(side, Role::Client) && stream.hello_count == 0;
    if first && !may_open(&stream.head, stream.have as u32) {
        wire.ending = Ending::Malformed as u8;
    }
}

/// A packet passed by, up to `end`, before the bytes that the tracker waits for.
#[inline(always)]
fn passed(stream: &mut Stream, end: u32, length: u32) {
    if length != 0 && (!stream.seen.contains(StreamFlags::AHEAD) || is_before(stream.ahead, end)) {
        stream.ahead = end;
        stream.seen.insert(StreamFlags::AHEAD);
    }
}

/// Reads the beginning of a record into [`Stream::head`], which keeps it until the next packet; false while
/// it is incomplete.
#[inline(always)]
fn head(stream: &mut Stream, payload: &impl Payload, offset: u32) -> bool {
    if stream.have == 0 && payload.len() - offset >= HEADER + MESSAGE_HEADER {
        return payload.load(offset, &mut stream.head);
    }
    let mut from = offset;
    for index in 0..HEAD {
        if index < usize::from(stream.have) {
            continue;
        }
        if index >= HEADER as usize && index >= Head::needed(&stream.head) {
            break;
        }
        let mut byte = [0];
        if from >= payload.len() || !payload.load(from, &mut byte) {
            return false;
        }
        stream.head[index] = byte[0];
        stream.have += 1;
        from += 1;
    }
    true
}

#[inline(always)]
fn record(
    wire: &mut Wire,
    side: Role,
    segment: &Segment,
    payload: &impl Payload,
    head: Head,
    begin: u32,
    at: u32,
) {
    let from = sent_by(side);
    let legal = match head.content {
        content::HANDSHAKE => handshake_record(wire, side, segment, payload, head, begin, at),
        _ if wire.client.hello_count == 0 => false,
        content::CHANGE_CIPHER_SPEC => {
            wire.stream(side).seen.insert(StreamFlags::CHANGE_CIPHER_SPEC);
            wire.note(at, head.length, head.content, from, 0);
            head.length == 1
        }
        content::ALERT => alert(wire, side, from, head, at),
        content::APPLICATION_DATA if matches!(side, Role::Client) => client_data(wire, head, segment.ack, at),
        content::APPLICATION_DATA => server_data(wire, head, at),
        // Heartbeats, too, must wait for the end of the handshake (RFC 6520 §3).
        _ => false,
    };
    if !legal {
        wire.ending = Ending::Malformed as u8;
    }
}

#[inline(always)]
const fn sent_by(side: Role) -> RecordFlags {
    match side {
        Role::Client => RecordFlags::empty(),
        Role::Server => RecordFlags::FROM_SERVER,
    }
}

/// Whether the next handshake message of this side may be a hello.
#[inline(always)]
const fn hello_is_due(wire: &Wire, side: Role) -> bool {
    let (client, server) = (&wire.client, &wire.server);
    match side {
        Role::Server => server.hello_count < client.hello_count,
        // The second one follows a HelloRetryRequest, with nothing but ChangeCipherSpec in between.
        Role::Client => {
            client.hello_count == 0
                || (client.hello_count == 1
                    && server.hello_count == 1
                    && !client.seen.contains(StreamFlags::EXCHANGED)
                    && !server.seen.contains(StreamFlags::FINISHED))
        }
    }
}

/// In [`Stream::hello_left`]: only some bytes of the message's header have come, in records of one to three
/// bytes. How many is in the two bits at [`KNOWN`], and what they are in the lower 24.
const PARTIAL: u32 = 1 << 31;
const KNOWN: u32 = 24;

/// A record that begins a hello, or goes on with its header; false if that cannot be.
#[inline(always)]
const fn hello_header(stream: &mut Stream, head: Head, begin: u32) -> bool {
    let length = head.length as u32;
    let known = (stream.hello_left >> KNOWN) & 3;
    let missing = MESSAGE_HEADER - known;
    let here = if length < missing { length } else { missing };
    // The first four bytes of the record, as far as they are the header's.
    let bytes = (((head.first as u32) << 24) | head.message) >> ((8 * (MESSAGE_HEADER - here)) & 31);
    let before = stream.hello_left & ((1 << KNOWN) - 1);
    let header = if here == MESSAGE_HEADER { bytes } else { (before << ((8 * here) & 31)) | bytes };
    if here < missing {
        stream.hello_left = PARTIAL | ((known + here) << KNOWN) | header;
        stream.hello_to = begin.wrapping_add(HEADER + length);
        return true;
    }
    let message = header & 0x00ff_ffff;
    let there = length - here;
    let part = if there < message { there } else { message };
    stream.hello_left = message - part;
    stream.hello_to = begin.wrapping_add(HEADER + here + part);
    message >= LEAST_HELLO && message < MAX_HELLO
}

/// [`StreamFlags::EXCHANGED`] if the record with a server's hello has more behind it. Without a branch.
#[inline(always)]
fn is_longer(stream: &Stream, side: Role) -> StreamFlags {
    let is_other = black_box(u32::from(side.code() ^ Role::Server.code()));
    let is_more = black_box(stream.hello_to.wrapping_sub(stream.next)) & is_other.wrapping_sub(1);
    StreamFlags::from_bits_retain((is_more >> 31) as u8 * StreamFlags::EXCHANGED.bits())
}

/// A record of handshake messages; false if it cannot be.
#[inline(always)]
fn handshake_record(
    wire: &mut Wire,
    side: Role,
    segment: &Segment,
    payload: &impl Payload,
    head: Head,
    begin: u32,
    at: u32,
) -> bool {
    let from = sent_by(side);
    let due = hello_is_due(wire, side);
    let server = matches!(side, Role::Server);
    let stalled = wire.server.is_stalled();
    let length = u32::from(head.length);
    let stream = wire.stream(side);
    if stream.hello_left & PARTIAL != 0 {
        return hello_header(stream, head, begin);
    }
    if stream.hello_left > 0 {
        let part = if length < stream.hello_left { length } else { stream.hello_left };
        stream.hello_to = begin.wrapping_add(HEADER + part);
        stream.hello_left -= part;
        return true;
    }
    let kind = if server { handshake::SERVER_HELLO } else { handshake::CLIENT_HELLO };
    let changed = stream.seen.contains(StreamFlags::CHANGE_CIPHER_SPEC);
    if due && head.first == kind {
        // After ChangeCipherSpec, and with part of the server's side unseen, this may also be a Finished.
        let ambiguous = !server && changed && stalled;
        if ambiguous {
            return false;
        }
        stream.hello_from = begin;
        stream.hellos[usize::from(stream.hello_count & 1)] = begin;
        if !hello_header(stream, head, begin) {
            return false;
        }
        stream.hello_count += 1;
        let has_more = is_longer(stream, side);
        stream.seen.insert(has_more);
        wire.note(at, head.length, content::HANDSHAKE, from, head.first);
        return true;
    }
    if stream.hello_count == 0 || (server && due) {
        return false;
    }
    if !changed {
        stream.seen.insert(StreamFlags::EXCHANGED);
        wire.note(at, head.length, content::HANDSHAKE, from, head.first);
        key_exchange(wire, side, payload, head, begin.wrapping_sub(segment.seq));
        return true;
    }
    if !stream.seen.contains(StreamFlags::FINISHED) {
        stream.seen.insert(StreamFlags::FINISHED);
        let end = stream.next;
        if server {
            wire.finished_to = end;
        }
        wire.note(at, head.length, content::HANDSHAKE, from.union(RecordFlags::ENCRYPTED), 0);
        complete(wire);
    }
    true
}

/// Both Finished messages of TLS 1.2 or before were seen. On a server, the tracker waits until the client has
/// the last one: only then is it known whether the client waited for it.
#[inline(always)]
const fn complete(wire: &mut Wire) {
    let (client, server) = (wire.client.seen, wire.server.seen);
    let local_client = wire.role == Role::Client.code();
    let resumed = !client.contains(StreamFlags::EXCHANGED);
    let settled = local_client || resumed || client.contains(StreamFlags::SPOKE) || wire.acked_at != 0;
    if client.contains(StreamFlags::FINISHED) && server.contains(StreamFlags::FINISHED) && settled {
        wire.ending = Ending::Over as u8;
    }
}

/// An alert; false if it cannot be.
#[inline(always)]
fn alert(wire: &mut Wire, side: Role, from: RecordFlags, head: Head, at: u32) -> bool {
    const CLOSE_NOTIFY: u8 = 0;
    if head.length != 2 {
        // Protected, which only TLS 1.2 and before show: its content cannot be known.
        wire.note(at, head.length, content::ALERT, from.union(RecordFlags::ENCRYPTED), 0);
        wire.ending = Ending::Over as u8;
        return wire.stream(side).seen.contains(StreamFlags::CHANGE_CIPHER_SPEC);
    }
    let (level, description) = (head.first, head.second);
    let fatal = level == 2;
    let flags = if fatal { from.union(RecordFlags::FATAL) } else { from };
    wire.note(at, head.length, content::ALERT, flags, description);
    if fatal || description == CLOSE_NOTIFY {
        wire.ending = Ending::Over as u8;
    }
    level == 1 || fatal
}

/// The flags of data that the client sent early.
#[inline(always)]
const fn early_flags(unsure: bool) -> RecordFlags {
    if unsure { RecordFlags::EARLY.union(RecordFlags::UNSURE) } else { RecordFlags::EARLY }
}

/// The client's protected records: early data, its second flight (TLS 1.3), or a false start (TLS 1.2).
#[inline(always)]
fn client_data(wire: &mut Wire, head: Head, ack: u32, at: u32) -> bool {
    let server = &wire.server;
    // The client has received more from the server than the tracker has seen.
    let missed = server.seen.contains(StreamFlags::SYNCED) && is_before(server.next, ack);
    let unsure = missed || server.is_stalled();
    if wire.client.seen.contains(StreamFlags::FINISHED) {
        let early = !server.seen.contains(StreamFlags::FINISHED) || is_before(ack, wire.finished_to);
        if early && !wire.client.seen.contains(StreamFlags::SPOKE) {
            wire.client.seen.insert(StreamFlags::SPOKE);
            let flags = early_flags(unsure);
            wire.note(at, head.length, content::APPLICATION_DATA, flags, 0);
        }
        complete(wire);
        if unsure {
            // The server's Finished may have passed by unseen.
            wire.ending = Ending::Over as u8;
        }
        return true;
    }
    let answered = server.hello_count >= wire.client.hello_count && server.hello_left == 0;
    if !answered || is_before(ack, server.hello_to) {
        let flags = early_flags(unsure);
        wire.note(at, head.length, content::APPLICATION_DATA, flags, 0);
        if missed && !answered {
            // The ServerHello passed by unseen.
            wire.ending = Ending::Exhausted as u8;
        }
        return true;
    }
    wire.flight += 1;
    wire.note(at, head.length, content::APPLICATION_DATA, RecordFlags::empty(), 0);
    if is_finished(head.length) || wire.flight >= MAX_FLIGHT {
        wire.ending = Ending::Over as u8;
    }
    true
}

/// Bytes of a protected record besides its content: the inner content type, and a tag of 16 bytes or
/// (AES-CCM-8) of 8.
const PROTECTION: u16 = 1 + 16;
const PROTECTION_CCM8: u16 = 1 + 8;
const FINISHED_SHA256: u16 = 4 + 32 + PROTECTION;
const FINISHED_SHA384: u16 = 4 + 48 + PROTECTION;
const FINISHED_CCM8: u16 = 4 + 32 + PROTECTION_CCM8;
const FINISHED_PADDED: u16 = FINISHED_SHA384 + 16;
const ALERT: u16 = 2 + PROTECTION;
const ALERT_CCM8: u16 = 2 + PROTECTION_CCM8;
const ALERT_PADDED: u16 = ALERT + 16;

/// Whether a protected record of TLS 1.3 has the length of a Finished message: its header, a hash of 32 or 48
/// bytes, the inner content type, and a tag of 16 bytes or (AES-CCM-8) of 8 (RFC 8446 §4.4.4, §5.2). Java
/// pads by 16 bytes.
#[must_use]
#[inline(always)]
pub const fn is_finished(length: u16) -> bool {
    matches!(length, FINISHED_SHA256 | FINISHED_SHA384 | FINISHED_CCM8 | FINISHED_PADDED)
}

/// Whether a protected record of TLS 1.3 is too short for any handshake message but long enough for an alert.
#[must_use]
#[inline(always)]
pub const fn is_alert(length: u16) -> bool {
    matches!(length, ALERT | ALERT_CCM8)
}

/// Whether the server may still refuse the handshake that was published: the client's Finished of TLS 1.3 was
/// seen, and all of the server's side before it.
#[must_use]
#[inline(always)]
pub const fn may_be_refused(wire: &Wire) -> bool {
    wire.is(Ending::Over)
        && wire.flight > 0
        && wire.server.seen.contains(StreamFlags::SYNCED)
        && !wire.server.is_stalled()
        && wire.server.have == 0
}

/// The server's answer to the client's Finished: `None` if this packet is not it, or true if it is a record
/// of the length of an alert. A fatal alert has it and a `close_notify`, too, or two bytes of data; tickets
/// have not.
#[inline(always)]
pub fn is_refused(wire: &Wire, segment: &Segment, payload: &impl Payload) -> Option<bool> {
    let local_server = wire.role == Role::Server.code();
    let sent = matches!(segment.direction, Direction::Sent);
    let offset = wire.server.next.wrapping_sub(segment.seq);
    if sent != local_server
        || (offset != 0 && is_before(segment.seq, wire.server.next) && offset >= payload.len())
    {
        return None;
    }
    let mut header = [0; HEADER as usize];
    // What was on its way before the Finished came answers nothing.
    let answers = !is_before(segment.ack, wire.client.next);
    if !answers || offset >= payload.len() || !payload.load(offset, &mut header) {
        return Some(false);
    }
    let [kind, _, _, high, low] = header;
    let length = u16::from_be_bytes([high, low]);
    Some(kind == content::APPLICATION_DATA && (is_alert(length) || length == ALERT_PADDED))
}

/// The server's protected records: the rest of its flight (TLS 1.3), or application data behind its Finished.
#[inline(always)]
fn server_data(wire: &mut Wire, head: Head, at: u32) -> bool {
    if wire.server.hello_count < wire.client.hello_count {
        return false;
    }
    if !wire.server.seen.contains(StreamFlags::FINISHED) {
        if is_alert(head.length) {
            wire.server.seen.insert(StreamFlags::SPOKE);
        }
        wire.note(at, head.length, content::APPLICATION_DATA, RecordFlags::FROM_SERVER, 0);
    }
    true
}
