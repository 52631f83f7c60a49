//! Damaged handshakes: never a panic, and what was lost is unknown, never a wrong class.

mod handshakes;

use handshake::tls::wire::{Buffers, ClientHello, Hellos, Piece, ServerHello, verdict};
use handshake_common::{
    Role, TlsClass, TlsOutcome,
    tls::wire::{self, Direction, Segment, Wire},
};
use handshakes::{Packet, cut, load, merged, names, watch};
use proptest::prelude::*;

type Judged = (Option<TlsOutcome>, Option<TlsClass>);

fn judge(packets: &[Packet], local: Role) -> Option<Judged> {
    watch(packets, local, 7, 7).map(|watched| watched.judge(|verdict, _| (verdict.outcome, verdict.class)))
}

/// The packet in which the ClientHello begins.
fn beginning(packets: &[Packet]) -> usize {
    let begins = |packet: &Packet| packet.from == Role::Client && packet.payload.starts_with(&[22, 3]);
    packets.iter().position(begins).unwrap_or(0)
}

/// What a network may do to the packets after the first of the ClientHello.
#[derive(Clone, Debug)]
enum Fate {
    Lost(prop::sample::Index),
    Late(prop::sample::Index, usize),
    Twice(prop::sample::Index, usize),
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        any::<prop::sample::Index>().prop_map(Fate::Lost),
        (any::<prop::sample::Index>(), 1_usize..4).prop_map(|(index, by)| Fate::Late(index, by)),
        (any::<prop::sample::Index>(), 0_usize..6).prop_map(|(index, by)| Fate::Twice(index, by)),
    ]
}

/// Applies the fate to a packet from the other end: only those can be lost before this end sees them.
fn apply(packets: &mut Vec<Packet>, local: Role, fate: &Fate) {
    let first = beginning(packets) + 1;
    let received: Vec<usize> = (first..packets.len()).filter(|&index| packets[index].from != local).collect();
    if received.is_empty() {
        return;
    }
    match fate {
        Fate::Lost(index) => {
            packets.remove(*index.get(&received));
        }
        Fate::Late(index, by) => {
            let at = *index.get(&received);
            let packet = packets.remove(at);
            packets.insert((at + by).min(packets.len()), packet);
        }
        Fate::Twice(index, by) => {
            let at = *index.get(&received);
            packets.insert((at + by).min(packets.len()), packets[at].clone());
        }
    }
}

/// Removes the packets that would never have been sent: those that acknowledge or answer what did not arrive.
fn possible(mut packets: Vec<Packet>) -> Vec<Packet> {
    let mut come: [Vec<(u32, u32)>; 2] = [Vec::new(), Vec::new()];
    let reaches = |come: &[(u32, u32)]| {
        let mut end = 0;
        while let Some(&(_, to)) = come.iter().find(|(from, to)| *from <= end && *to > end) {
            end = to;
        }
        end
    };
    let mut fits = |packet: &Packet| {
        let (own, other) = if packet.from == Role::Client { (0, 1) } else { (1, 0) };
        let length = u32::try_from(packet.payload.len()).unwrap();
        // A FIN takes a sequence number, too.
        let sent = packet.ack <= reaches(&come[other]) + 1;
        if sent {
            come[own].push((packet.seq, packet.seq + length));
        }
        sent
    };
    packets.retain(&mut fits);
    packets
}

/// Whether a byte is in a hello: those may have any content.
fn in_hello(packet: &Packet, offset: usize) -> bool {
    let mut at = 0;
    while let Some([kind, _, _, high, low, message]) =
        packet.payload.get(at..).and_then(|rest| rest.first_chunk())
    {
        let end = at + 5 + usize::from(u16::from_be_bytes([*high, *low]));
        if *kind == 22 && [1, 2].contains(message) && (at + 5..end).contains(&offset) {
            return true;
        }
        at = end;
    }
    false
}

/// A Finished with too great a length covers the data that shows the false start.
#[test]
fn finished_longer_than_its_suite_allows_has_no_class() {
    let mut packets = load("tls12_false_start");
    let truth = Some((Some(TlsOutcome::Completed), Some(TlsClass::FalseStart)));
    assert_eq!(judge(&packets, Role::Client), truth);
    // The upper byte of its length.
    packets[5].payload[84] = 1;
    assert_eq!(judge(&packets, Role::Client).and_then(|(_, class)| class), None);
}

proptest! {
    #![proptest_config(
        ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() }
    )]
    #[test]
    fn lost_late_and_duplicated_packets_give_no_wrong_class(
        which in any::<prop::sample::Index>(),
        server in any::<bool>(),
        places in prop::collection::vec(any::<usize>(), 0..4),
        fates in prop::collection::vec(fate(), 1..6),
    ) {
        let name = which.get(&names()).clone();
        let local = if server { Role::Server } else { Role::Client };
        let mut packets = load(&name);
        let expected = judge(&packets, local);
        packets = cut(&packets, &places);
        for fate in &fates {
            apply(&mut packets, local, fate);
        }
        packets = possible(packets);
        let (outcome, class) = judge(&packets, local).unwrap_or_default();
        let (true_outcome, true_class) = expected.unwrap_or_default();
        prop_assert!(class.is_none() || class == true_class, "{name}: {class:?}, not {true_class:?}");
        // A completed handshake may look abandoned if its end was lost, but never failed.
        let gone = outcome == Some(TlsOutcome::Abandoned);
        prop_assert!(outcome.is_none() || gone || outcome == true_outcome, "{name}: {outcome:?}");
    }

    #[test]
    fn damage_outside_the_hellos_gives_no_wrong_class(
        which in any::<prop::sample::Index>(),
        server in any::<bool>(),
        packet in any::<prop::sample::Index>(),
        offset in any::<prop::sample::Index>(),
        header in any::<bool>(),
        value in any::<u8>(),
    ) {
        let name = which.get(&names()).clone();
        let local = if server { Role::Server } else { Role::Client };
        let mut packets = load(&name);
        let expected = judge(&packets, local).unwrap_or_default();
        // If the first ClientHello is damaged, a second one is taken for it.
        let first = beginning(&packets) + 1;
        let damaged = (first + packet.index(packets.len())).min(packets.len() - 1);
        let packet = &mut packets[damaged];
        if packet.payload.is_empty() {
            return Ok(());
        }
        let length = packet.payload.len();
        let offset = offset.index(if header { length.min(80) } else { length });
        if in_hello(packet, offset) {
            return Ok(());
        }
        packet.payload[offset] = value;
        let (_, class) = judge(&packets, local).unwrap_or_default();
        prop_assert!(
            class.is_none() || class == expected.1,
            "{name} packet {damaged} byte {offset} = {value}: {class:?}"
        );
    }

    #[test]
    fn any_damage_does_not_panic(
        which in any::<prop::sample::Index>(),
        damage in prop::collection::vec(
            (any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>()),
            0..20,
        ),
        places in prop::collection::vec(any::<usize>(), 0..6),
        merge in any::<bool>(),
    ) {
        let names = names();
        let mut packets = load(which.get::<String>(&names));
        if merge {
            packets = merged(&packets);
        }
        for (packet, offset, value) in damage {
            let count = packets.len();
            let payload = &mut packets[packet.index(count)].payload;
            if !payload.is_empty() {
                let length = payload.len();
                payload[offset.index(length)] = value;
            }
        }
        for &local in Role::ALL {
            judge(&cut(&packets, &places), local);
        }
    }

    #[test]
    fn any_packet_in_any_state_does_not_panic(
        state in prop::collection::vec(any::<u8>(), wire::state::SIZE),
        payload in prop::collection::vec(any::<u8>(), 0..200),
        (sent, seq, ack, now_ns) in (any::<bool>(), any::<u32>(), any::<u32>(), any::<u64>()),
        near in any::<bool>(),
    ) {
        let Some(mut wire) = Wire::from_bytes(&state) else { return Ok(()) };
        let direction = if sent { Direction::Sent } else { Direction::Received };
        let seq = if near { wire.client.next.wrapping_sub(seq % 64) } else { seq };
        let due = wire::track(&mut wire, &Segment { direction, seq, ack, now_ns }, &payload.as_slice());
        wire::pass(&mut wire, &Segment { direction, seq, ack, now_ns }, 1, sent);
        prop_assert!(due.copy_offset as usize + due.copy_length as usize <= payload.len());
        wire::closed(&mut wire);
        let pieces = [Piece { seq, bytes: &payload }];
        let mut buffers = Buffers::default();
        let hellos = Hellos::read(&wire, &pieces, &pieces, &mut buffers);
        let verdict = verdict(&wire, &hellos);
        let _ = (verdict.round_trips(), verdict.setup_round_trips());
    }

    #[test]
    fn any_bytes_parse_as_hello_or_not(
        mut message in prop::collection::vec(any::<u8>(), 0..300),
        client in any::<bool>(),
    ) {
        // A valid header, so that the rest is parsed.
        if let [kind, a, b, c, ..] = message.as_mut_slice() {
            (*kind, *a, *b) = (if client { 1 } else { 2 }, 0, 0);
            *c = (*c).min(200);
        }
        if let Some(hello) = ClientHello::parse(&message) {
            let _ = (hello.shares().count(), hello.groups.iter().count(), hello.offers(0x0304));
        }
        let _ = ServerHello::parse(&message);
    }
}
