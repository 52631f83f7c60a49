//! Cases that are not in the corpus: its handshakes with one thing changed.

mod handshakes;

use handshake::tls::wire::{Verdict, group};
use handshake_common::{
    Role, TlsClass, TlsOutcome, TlsVersion,
    tls::wire::{Direction, Ending, Segment, is_refused, may_be_refused, proxy_header},
};
use handshakes::{Packet, Watched, load, merged, watch};

/// Only the packets with payload.
fn flights(name: &str) -> Vec<Packet> {
    let mut packets = merged(&load(name));
    packets.retain(|packet| !packet.payload.is_empty());
    packets
}

fn record(content: u8, length: u16) -> Vec<u8> {
    let [high, low] = length.to_be_bytes();
    let mut bytes = vec![content, 3, 3, high, low];
    bytes.resize(5 + usize::from(length), 0xa5);
    bytes
}

/// A packet after everything that its sender has sent so far.
fn next(packets: &[Packet], from: Role, ack: u32, at_us: u64, payload: Vec<u8>) -> Packet {
    let end = |packet: &Packet| packet.seq + u32::try_from(packet.payload.len()).unwrap();
    let seq = packets.iter().filter(|packet| packet.from == from).map(end).max().unwrap_or(0);
    Packet { from, at_us, seq, ack, payload }
}

fn end_of(packets: &[Packet], from: Role) -> u32 {
    next(packets, from, 0, 0, Vec::new()).seq
}

fn seen(packets: &[Packet], local: Role) -> Watched {
    watch(packets, local, 1000, 2000).expect("a handshake began")
}

fn us_since_hello(verdict: &Verdict<'_>, moment: Option<u64>) -> Option<u64> {
    // Times are kept in units of 1024 ns.
    moment.map(|ns| (ns - verdict.hello_ns).div_ceil(1000))
}

/// The TLS records of a packet.
fn records(packet: &Packet) -> Vec<&[u8]> {
    let mut rest = packet.payload.as_slice();
    let mut records = Vec::new();
    while let Some(&[_, _, _, high, low]) = rest.first_chunk() {
        let (record, behind) = rest.split_at(5 + usize::from(u16::from_be_bytes([high, low])));
        records.push(record);
        rest = behind;
    }
    records
}

#[test]
fn hello_in_the_syn() {
    let mut packets = load("tls13_full");
    // The SYN has the hello and no acknowledgement; the SYN-ACK, which is not merged with the answer, comes
    // next.
    packets.retain(|packet| packet.from == Role::Server || !packet.payload.is_empty());
    assert_eq!(packets[0].ack, 0);
    packets.insert(
        1,
        Packet { from: Role::Server, at_us: packets[0].at_us + 1, seq: 0, ack: 0, payload: Vec::new() },
    );
    for &local in Role::ALL {
        let watched = watch(&packets, local, u32::MAX - 20, 0).unwrap();
        watched.judge(|verdict, _| {
            assert_eq!((verdict.outcome, verdict.class), (Some(TlsOutcome::Completed), Some(TlsClass::Full)));
            assert_eq!(verdict.hello_again_ns, None);
        });
    }
}

#[test]
fn hello_in_the_syn_that_the_server_ignores() {
    let mut packets = flights("tls13_full");
    let again = Packet { at_us: packets[0].at_us + 50_000, ..packets[0].clone() };
    packets.insert(1, again);
    for packet in &mut packets[2..] {
        packet.at_us += 50_000;
    }
    seen(&packets, Role::Server).judge(|verdict, _| {
        assert_eq!(verdict.class, Some(TlsClass::Full));
        assert_eq!(us_since_hello(verdict, verdict.hello_again_ns), Some(50_000));
    });
}

#[test]
fn hello_larger_than_the_syn_is_complete_a_round_trip_later() {
    let mut packets = flights("post_quantum");
    let (first, second) = (packets[0].part(0, 1400), packets[0].part(1400, packets[0].payload.len()));
    let later = Packet { at_us: first.at_us + 40_000, ..second };
    packets.splice(0..1, [first, later]);
    seen(&packets[..2], Role::Server).judge(|verdict, hellos| {
        assert_eq!(us_since_hello(verdict, verdict.hello_whole_ns), Some(40_000));
        let hello = hellos.client[0].expect("the hello is reassembled");
        assert!(hello.shares().any(group::is_post_quantum));
        assert!(hello.offers(0x0304) && hello.groups.contains(4588));
    });
}

#[test]
fn negotiated_group_and_what_the_client_offered_are_told() {
    let facts = |name: &str| {
        seen(&flights(name), Role::Server).judge(|verdict, hellos| {
            let offered: Vec<_> = verdict.alpn_offered.unwrap().iter().map(<[u8]>::to_vec).collect();
            assert_eq!(verdict.encrypted_hello_offered, Some(false), "{name}");
            assert_eq!(hellos.client[0].unwrap().protocols.is_none(), offered.is_empty(), "{name}");
            verdict.group.and_then(group::name)
        })
    };
    assert_eq!(facts("post_quantum"), Some("X25519MLKEM768"));
    assert_eq!(facts("tls13_full"), Some("x25519"));
    assert_eq!(facts("tls12_full"), Some("x25519"), "of the ServerKeyExchange");
    assert_eq!(facts("tls12_ticket"), None, "there is none");
    assert_eq!(facts("tls12_rsa"), None, "nor here");
}

/// The messages of the first packet of a side, in records of these lengths and one of the rest.
fn in_records(packets: &[Packet], from: Role, lengths: &[usize]) -> Vec<Packet> {
    let mut all = Vec::new();
    let mut added = 0;
    let mut is_done = false;
    for packet in packets {
        let mut packet = packet.clone();
        if packet.from == from {
            packet.seq += added;
        } else {
            packet.ack += if is_done { added } else { 0 };
        }
        if packet.from == from && !is_done {
            let records = records(&packet);
            let (header, mut message) = records[0].split_at(5);
            let mut bytes = Vec::new();
            for &length in lengths.iter().chain(&[usize::MAX]) {
                let (part, rest) = message.split_at(length.min(message.len()));
                bytes.extend(&header[..3]);
                bytes.extend(u16::try_from(part.len()).unwrap().to_be_bytes());
                bytes.extend(part);
                message = rest;
            }
            added = u32::try_from(bytes.len() - records[0].len()).unwrap();
            bytes.extend(records[1..].concat());
            packet.payload = bytes;
            is_done = true;
        }
        all.push(packet);
    }
    all
}

/// The plaintext messages of a server's first flight in records of so many bytes, the last one shorter.
fn recut(packets: &[Packet], length: usize) -> Vec<Packet> {
    let at = packets.iter().position(|packet| packet.from == Role::Server).unwrap();
    let messages = records(&packets[at]).iter().map(|record| &record[5..]).collect::<Vec<_>>().concat();
    let record = |part: &[u8]| {
        let [high, low] = u16::try_from(part.len()).unwrap().to_be_bytes();
        [&[22, 3, 3, high, low], part].concat()
    };
    let payload: Vec<u8> = messages.chunks(length).flat_map(record).collect();
    let place = |before: u32| {
        (before + u32::try_from(payload.len()).unwrap())
            .strict_sub(u32::try_from(packets[at].payload.len()).unwrap())
    };
    let mut all = packets.to_vec();
    for packet in &mut all[at + 1..] {
        match packet.from {
            Role::Client => packet.ack = place(packet.ack),
            Role::Server => packet.seq = place(packet.seq),
        }
    }
    all[at].payload = payload;
    all
}

fn in_one_record(packets: &[Packet]) -> Vec<Packet> {
    recut(packets, usize::from(u16::MAX))
}

#[test]
fn certificate_is_told_in_a_record_of_its_own_and_in_one_with_the_hello() {
    let certificate = |packets: &[Packet]| {
        let facts = Role::ALL.iter().map(|&local| {
            seen(packets, local).judge(|verdict, _| {
                let key = verdict.certificate.and_then(|certificate| certificate.key);
                (verdict.class, key.map(|key| (key.kind, key.bits)))
            })
        });
        let facts: Vec<_> = facts.collect();
        assert_eq!(facts[0], facts[1], "both ends");
        facts[0]
    };
    let full = Some(TlsClass::Full);
    let rsa = Some(("rsa", Some(2048)));
    let packets = flights("tls12_full");
    assert_eq!(certificate(&packets), (full, rsa));
    let merged = in_one_record(&packets);
    assert_eq!(certificate(&merged), (full, rsa));
    assert_eq!(certificate(&handshakes::bytewise(&merged)), (full, rsa));
    assert_eq!(certificate(&flights("tls12_ticket")).1, None, "a resumed session has none");
    assert_eq!(certificate(&flights("tls13_full")), (full, None), "encrypted");
}

#[test]
fn messages_in_many_records_give_the_same_key_exchange_or_none() {
    for name in ["tls12_full", "tls12_false_start", "tls12_client_cert"] {
        let packets = flights(name);
        let of = |packets: &[Packet]| {
            seen(packets, Role::Client).judge(|verdict, _| (verdict.class, verdict.group, verdict.signature))
        };
        let (class, group, scheme) = of(&packets);
        for length in 1..1500 {
            let recut = recut(&packets, length);
            let one_each: Vec<Packet> = recut
                .iter()
                .flat_map(|packet| {
                    let mut from = 0;
                    let parts = records(packet).into_iter().map(|record| {
                        from += record.len();
                        packet.part(from - record.len(), from)
                    });
                    parts.collect::<Vec<_>>()
                })
                .collect();
            for packets in [recut, one_each] {
                let (seen_class, seen_group, seen_scheme) = of(&packets);
                let is_same = |seen: Option<u16>, truth| seen.is_none_or(|_| seen == truth);
                assert!(is_same(seen_group, group) && is_same(seen_scheme, scheme), "{name} {length}");
                assert!(seen_class.is_none() || seen_class == class, "{name} {length}");
            }
        }
    }
}

#[test]
fn certificate_that_was_not_seen_in_order_is_unknown_unless_it_comes_again() {
    let packets = flights("tls12_full");
    let flight = &packets[1];
    let hello = records(flight)[0].len();
    let is_told = |between: &[Packet]| {
        let mut changed = packets.clone();
        changed.splice(1..2, between.iter().cloned());
        seen(&changed, Role::Client).judge(|verdict, _| verdict.certificate.is_some())
    };
    let parts = [(0, hello + 40), (hello + 40, hello + 80), (hello + 80, flight.payload.len())]
        .map(|(from, to)| flight.part(from, to));
    let [first, second, third] = parts.clone();
    assert!(is_told(&parts));
    assert!(!is_told(&[first.clone(), third.clone()]), "a segment that was never seen");
    assert!(is_told(&[first.clone(), third.clone(), second, third]), "and one that came later");
}

#[test]
fn hellos_in_records_of_any_length_are_put_together() {
    for from in [Role::Client, Role::Server] {
        for lengths in
            [&[1][..], &[1, 1], &[1, 1, 1, 1, 1], &[2], &[2, 1, 6], &[3], &[1, 3], &[4], &[5], &[9, 1]]
        {
            for name in ["tls13_full", "tls12_full", "post_quantum"] {
                let plain = seen(&flights(name), Role::Client).summary();
                let packets = in_records(&flights(name), from, lengths);
                for packets in [handshakes::bytewise(&packets), packets] {
                    let cut = seen(&packets, Role::Client);
                    let found = cut.summary();
                    let expected = handshakes::with_cuts(&plain, &found);
                    assert_eq!(found, expected, "{name}, the {from}'s hello in records of {lengths:?}");
                }
            }
        }
    }
}

#[test]
fn proxy_header_is_measured_only_where_something_follows() {
    let line = b"PROXY TCP6 2001:db8::1 2001:db8::2 56324 443\r\n";
    let binary = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x02ab";
    let longest = [b"PROXY ".to_vec(), vec![b'x'; 99], b"\r\n".to_vec()].concat();
    for header in [&line[..], b"PROXY UNKNOWN\r\n", binary, &longest] {
        let behind = [header, b"\x16"].concat();
        assert_eq!(usize::try_from(proxy_header(&behind.as_slice())).unwrap(), header.len());
        assert_eq!(proxy_header(&header), 0, "nothing follows");
        assert_eq!(proxy_header(&&header[..header.len() - 1]), 0, "cut short");
    }
    let endless = [b"PROXY ".to_vec(), vec![b'x'; 200], b"\r\n\x16".to_vec()].concat();
    let other_version = b"\r\n\r\n\0\r\nQUIT\n\x30\x00\x00\x00abc";
    for other in [&b"PROXYING is no header\n\x16"[..], b"POST / HTTP/1.1\r\n", b"", &endless, other_version] {
        assert_eq!(proxy_header(&other), 0, "{other:?}");
    }
}

/// Early data may have the lengths of EndOfEarlyData and Finished. It is told apart by its acknowledgment
/// number: the client had not received the ServerHello when it sent it.
#[test]
fn early_data_in_flight_is_not_the_second_flight() {
    let packets = flights("early_data_accepted");
    let (hello, rest) = (records(&packets[0])[0], records(&packets[0])[1..].to_vec());
    let answer = packets.iter().find(|packet| packet.from == Role::Server).unwrap();
    let finish = packets.iter().filter(|packet| packet.from == Role::Client).nth(1).unwrap();
    let ending = records(finish);
    assert_eq!(ending[0].len(), 5 + 21, "EndOfEarlyData");
    for (end, class) in [
        (ending[..2].concat(), TlsClass::EarlyDataAccepted),
        (ending[1].to_vec(), TlsClass::EarlyDataRejected),
    ] {
        let mut sent = vec![Packet { payload: hello.to_vec(), ..packets[0].clone() }, answer.clone()];
        sent.push(next(&sent, Role::Client, 0, answer.at_us + 10, rest.concat()));
        for length in [21, 53, 69] {
            sent.push(next(&sent, Role::Client, 0, answer.at_us + 20, record(23, length)));
        }
        let has_all = end_of(&sent, Role::Server);
        sent.push(next(&sent, Role::Client, has_all, answer.at_us + 50_000, end));
        for &local in Role::ALL {
            seen(&sent, local).judge(|verdict, _| {
                assert_eq!(verdict.outcome, Some(TlsOutcome::Completed));
                assert_eq!(verdict.class, Some(class), "{local}");
                assert!(verdict.early_data_inferred);
                let ended = us_since_hello(verdict, verdict.ended_ns).unwrap();
                assert_eq!(ended, answer.at_us + 50_000 - packets[0].at_us);
            });
        }
    }
}

/// On a server the data of a false start arrives after its own Finished was sent, but does not acknowledge
/// it.
#[test]
fn false_start_on_the_server() {
    let all = flights("tls12_full");
    let sent = &all[..4];
    let client_finished = sent[2].at_us;
    let before = sent[2].ack;
    for (ack, class) in [(before, TlsClass::FalseStart), (end_of(sent, Role::Server), TlsClass::Full)] {
        let mut packets = sent.to_vec();
        packets.push(next(sent, Role::Client, ack, sent[3].at_us + 50_000, record(23, 60)));
        seen(&packets, Role::Server).judge(|verdict, _| {
            assert_eq!(verdict.class, Some(class));
            let may_send = verdict.may_send_ns.map(|ns| ns - verdict.hello_ns).unwrap();
            let expected = if class == TlsClass::Full { sent[3].at_us + 50_000 } else { client_finished };
            assert!(may_send.abs_diff((expected - sent[0].at_us) * 1000) < 1024, "{may_send}");
        });
    }
}

#[test]
fn encrypted_alert_is_a_failure_without_a_name() {
    let mut packets = flights("tls13_full");
    packets.truncate(2);
    let has_all = end_of(&packets, Role::Server);
    packets.push(next(&packets, Role::Client, has_all, 90_000, record(23, 19)));
    for &local in Role::ALL {
        seen(&packets, local).judge(|verdict, _| {
            assert_eq!(verdict.outcome, Some(TlsOutcome::Failed));
            assert_eq!((verdict.alert, verdict.class), (None, Some(TlsClass::Full)));
        });
    }
}

/// The server refuses the client's Finished: its alert is the first record that acknowledges it.
#[test]
fn answer_of_the_length_of_an_alert_may_refuse_the_finished() {
    let all = flights("tls13_full");
    let published = |length| watch(&all[..length], Role::Client, 0, 0).filter(|watched| watched.published);
    let watched = (1..=all.len()).find_map(published).unwrap();
    assert!(may_be_refused(&watched.wire));
    let answer = |seq: u32, ack: u32, payload: &[u8], direction| {
        let segment = Segment { direction, seq, ack, now_ns: 0 };
        is_refused(&watched.wire, &segment, &payload)
    };
    let (seq, has_all) = (watched.wire.server.next, watched.wire.client.next);
    let received = Direction::Received;
    for (length, refused) in [(19, true), (11, true), (35, true), (20, false), (250, false)] {
        assert_eq!(answer(seq, has_all, &record(23, length), received), Some(refused), "{length}");
    }
    assert_eq!(answer(seq, has_all - 1, &record(23, 19), received), Some(false), "it left before");
    assert_eq!(answer(seq + 1, has_all, &record(23, 19), received), Some(false), "something is missing");
    assert_eq!(answer(seq - 24, has_all, &record(23, 19), received), None, "sent again");
    assert_eq!(answer(has_all, seq, &record(23, 19), Direction::Sent), None, "the client's own data");
}

#[test]
fn handshake_without_an_end_is_abandoned() {
    for (name, packets, version) in [
        ("tls13_full", 1, None),
        ("tls13_full", 2, Some(TlsVersion::Tls13)),
        ("tls12_full", 2, Some(TlsVersion::Tls12)),
    ] {
        let packets = &flights(name)[..packets];
        seen(packets, Role::Client).judge(|verdict, _| {
            assert_eq!(verdict.outcome, Some(TlsOutcome::Abandoned), "{name}");
            assert_eq!(verdict.version, version);
            assert_eq!(verdict.ended_ns, None);
        });
    }
}

#[test]
fn close_notify_during_the_handshake_abandons_it() {
    let mut packets = flights("tls12_full");
    packets.truncate(2);
    let has_all = end_of(&packets, Role::Server);
    packets.push(next(&packets, Role::Client, has_all, 90_000, vec![21, 3, 3, 0, 2, 1, 0]));
    let watched = seen(&packets, Role::Server);
    assert!(watched.published);
    watched.judge(|verdict, _| assert_eq!(verdict.outcome, Some(TlsOutcome::Abandoned)));
}

/// The first packet is lost and retransmitted. The record headers in the others were missed, but are not
/// needed.
#[test]
fn retransmitted_packet_of_the_servers_flight() {
    let packets = flights("tls13_curl");
    let flight = &packets[1];
    let length = flight.payload.len();
    let parts = [(length / 2, length), (0, length / 2)].map(|(from, to)| flight.part(from, to));
    let mut late = packets.clone();
    late.splice(1..2, parts);
    seen(&late, Role::Client).judge(|verdict, _| {
        assert_eq!((verdict.outcome, verdict.class), (Some(TlsOutcome::Completed), Some(TlsClass::Full)));
        assert!(verdict.gaps);
    });
}

/// With TLS 1.2 the end of the handshake itself may be in what was missed: then the outcome and its times are
/// unknown.
#[test]
fn finished_in_a_missed_segment_leaves_the_end_unknown() {
    let packets = flights("tls12_full");
    let last = &packets[3];
    let cut = records(last)[0].len() + 3;
    let mut late = packets.clone();
    late.splice(3..4, [last.part(cut, last.payload.len()), last.part(0, cut)]);
    seen(&late, Role::Client).judge(|verdict, _| {
        assert_eq!(verdict.outcome, None);
        assert_eq!((verdict.ended_ns, verdict.may_send_ns), (None, None));
    });
}

#[test]
fn plain_text_is_not_tracked() {
    let mut packets = load("http_to_tls");
    packets.push(next(&packets, Role::Client, 1, 1000, b"\x16\x03 is not a handshake".to_vec()));
    packets.push(next(&packets, Role::Server, 1, 2000, record(23, 100)));
    assert!(watch(&packets, Role::Client, 0, 0).is_none());
    assert!(watch(&packets, Role::Server, 0, 0).is_none());
}

#[test]
fn answer_that_is_not_tls_ends_tracking() {
    let watched = seen(&load("tls_to_http"), Role::Client);
    assert!(watched.published && watched.wire.is(Ending::Malformed));
    watched.judge(|verdict, _| assert_eq!((verdict.outcome, verdict.class), (None, None)));
}

#[test]
fn completed_handshake_is_published_before_the_close() {
    for name in ["tls12_full", "tls12_ticket", "tls13_full", "tls13_client_cert", "early_data_accepted"] {
        for &local in Role::ALL {
            assert!(seen(&load(name), local).published, "{name} {local}");
        }
    }
}

#[test]
fn cipher_suites_and_alerts_have_names() {
    assert_eq!(handshake::tls::wire::cipher::name(0x1301), Some("TLS_AES_128_GCM_SHA256"));
    assert_eq!(handshake::tls::wire::cipher::name(0xc02f), Some("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"));
    assert_eq!(handshake::tls::wire::cipher::name(0x0a0a), None, "GREASE");
    assert_eq!(handshake::tls::wire::alert::name(48), Some("unknown_ca"));
}
