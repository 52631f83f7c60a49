//! The real handshakes of `tests/corpus`, run through the tracker and the parsers.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::{fs, path::PathBuf};

use handshake::tls::wire::certificate::{Certificate, PublicKey};
use handshake::tls::wire::{Buffers, Hellos, Piece, Verdict, cipher, group, signature, verdict};
use handshake_common::{
    IntoBytes as _, Role,
    tls::wire::{self, Direction, Next, Segment, Wire},
};

/// A captured packet.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub from: Role,
    pub at_us: u64,
    pub seq: u32,
    pub ack: u32,
    pub payload: Vec<u8>,
}

impl Packet {
    /// A packet with this part of its payload.
    pub(crate) fn part(&self, from: usize, to: usize) -> Self {
        let seq = self.seq.wrapping_add(u32::try_from(from).unwrap());
        Self { seq, payload: self.payload[from..to].to_vec(), ..self.clone() }
    }

    fn end(&self) -> u32 {
        self.seq.wrapping_add(u32::try_from(self.payload.len()).unwrap())
    }
}

pub(crate) fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

/// The names of all handshakes.
pub(crate) fn names() -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder())
        .unwrap()
        .filter_map(|entry| Some(entry.unwrap().file_name().to_str()?.strip_suffix(".txt")?.to_owned()))
        .collect();
    names.sort();
    assert!(names.len() > 30, "the corpus is incomplete");
    names
}

pub(crate) fn load(name: &str) -> Vec<Packet> {
    let text = fs::read_to_string(folder().join(format!("{name}.txt"))).unwrap();
    text.lines().filter(|line| !line.starts_with('#')).map(packet).collect()
}

fn packet(line: &str) -> Packet {
    let [direction, at, seq, ack, payload]: [&str; 5] =
        line.split(' ').collect::<Vec<_>>().try_into().expect("five columns");
    let bytes = payload.trim_matches('-').as_bytes().chunks(2);
    Packet {
        from: if direction == ">" { Role::Client } else { Role::Server },
        at_us: at.parse().unwrap(),
        seq: seq.parse().unwrap(),
        ack: ack.parse().unwrap(),
        payload: bytes
            .map(|byte| u8::from_str_radix(std::str::from_utf8(byte).unwrap(), 16).unwrap())
            .collect(),
    }
}

/// Merges successive packets of one direction that have the same acknowledgment number.
pub(crate) fn merged(packets: &[Packet]) -> Vec<Packet> {
    let mut all: Vec<Packet> = Vec::new();
    for packet in packets {
        match all.last_mut() {
            Some(last) if last.from == packet.from && last.ack == packet.ack && last.end() == packet.seq => {
                last.payload.extend(&packet.payload);
            }
            _ => all.push(packet.clone()),
        }
    }
    all
}

/// Cuts every packet at these places of its payload, modulo its length.
pub(crate) fn cut(packets: &[Packet], places: &[usize]) -> Vec<Packet> {
    let pieces = |packet: &Packet| {
        let length = packet.payload.len();
        let mut ends: Vec<usize> = places.iter().map(|place| place % length.max(1)).collect();
        ends.push(length);
        ends.sort_unstable();
        ends.dedup();
        let mut from = 0;
        ends.retain(|&end| end > 0 || length == 0);
        let parts: Vec<Packet> = ends
            .into_iter()
            .map(|to| {
                let part = packet.part(from, to);
                from = to;
                part
            })
            .collect();
        parts
    };
    packets.iter().flat_map(pieces).collect()
}

/// Cuts every packet into single bytes.
pub(crate) fn bytewise(packets: &[Packet]) -> Vec<Packet> {
    let pieces = |packet: &Packet| {
        let packet = packet.clone();
        let count = packet.payload.len();
        let bare = (count == 0).then(|| packet.clone());
        bare.into_iter().chain((0..count).map(move |index| packet.part(index, index + 1))).collect::<Vec<_>>()
    };
    packets.iter().flat_map(pieces).collect()
}

type Pieces = Vec<(u32, Vec<u8>)>;

/// What the kernel side would send to user space.
#[derive(Default)]
pub(crate) struct Watched {
    pub wire: Wire,
    pub client: Pieces,
    pub server: Pieces,
    /// The handshake was over before the connection was.
    pub published: bool,
}

/// Tracks the packets as the kernel side of this end does. `client` and `server` are the initial sequence
/// numbers of the streams. Returns `None` if nothing would be published.
pub(crate) fn watch(packets: &[Packet], local: Role, client: u32, server: u32) -> Option<Watched> {
    let mut watched = Watched::default();
    let mut next = Next::Watch;
    for packet in packets {
        let (own, other) = if packet.from == Role::Client { (client, server) } else { (server, client) };
        let direction = if packet.from == local { Direction::Sent } else { Direction::Received };
        let segment = Segment {
            direction,
            seq: packet.seq.wrapping_add(own),
            ack: packet.ack.wrapping_add(other),
            now_ns: 1_000_000_000 + packet.at_us * 1000,
        };
        if next == Next::Follow && packet.payload.is_empty() {
            assert_changes_nothing(&watched.wire, &segment);
            continue;
        }
        wire::pass(&mut watched.wire, &segment, u32::try_from(packet.payload.len()).unwrap(), false);
        let due = wire::track(&mut watched.wire, &segment, &packet.payload.as_slice());
        next = due.next;
        if due.copy_length > 0 {
            let (from, length) = (due.copy_offset as usize, due.copy_length as usize);
            let bytes = packet.payload[from..from + length].to_vec();
            let pieces = if due.sender == Role::Client { &mut watched.client } else { &mut watched.server };
            pieces.push((segment.seq.wrapping_add(due.copy_offset), bytes));
        }
        if due.next == Next::Publish {
            watched.published = true;
            return Some(watched);
        }
    }
    (wire::closed(&mut watched.wire) == Next::Publish).then_some(watched)
}

/// The kernel side skips packets without payload while it follows a handshake.
fn assert_changes_nothing(wire: &Wire, segment: &Segment) {
    let mut after = *wire;
    let due = wire::track(&mut after, segment, &[].as_slice());
    assert_eq!((due.next, due.copy_length), (Next::Follow, 0));
    after.packets = wire.packets;
    assert_eq!(after, *wire, "a packet without payload has an effect: {segment:?}");
}

impl Watched {
    /// Calls `then` with the verdict and the hellos.
    pub(crate) fn judge<T>(&self, then: impl FnOnce(&Verdict<'_>, &Hellos<'_>) -> T) -> T {
        fn pieces(all: &Pieces) -> Vec<Piece<'_>> {
            all.iter().map(|(seq, bytes)| Piece { seq: *seq, bytes }).collect()
        }
        let mut buffers = Buffers::default();
        let wire = Wire::from_bytes(self.wire.as_bytes()).unwrap();
        let hellos = Hellos::read(&wire, &pieces(&self.client), &pieces(&self.server), &mut buffers);
        then(&verdict(&wire, &hellos), &hellos)
    }

    /// The verdict in one line.
    pub(crate) fn summary(&self) -> String {
        self.judge(|verdict, _| summary(verdict))
    }
}

/// What is expected of cut packets: the curve of a ServerKeyExchange and what it is signed with are unknown
/// where their bytes are in two, and are never others.
pub(crate) fn with_cuts(whole: &str, found: &str) -> String {
    let is_old = whole.contains(" 1.2 ");
    let is_left_out = |word: &str| {
        is_old
            && ["group=", "signature="]
                .iter()
                .any(|fact| word.starts_with(fact) && !found.contains(&format!(" {fact}")))
    };
    whole.split(' ').filter(|word| !is_left_out(word)).collect::<Vec<_>>().join(" ")
}

fn certificate(certificate: &Certificate) -> String {
    let Certificate { not_after, key, signature } = *certificate;
    let PublicKey { kind, bits, curve } = key.expect("its key is behind its dates");
    let size = bits.map_or_else(|| curve.unwrap_or_default().to_owned(), |bits| bits.to_string());
    let not_after = humantime::format_rfc3339_seconds(not_after);
    format!("{kind}:{size}:{not_after}:{}", signature.unwrap_or("?"))
}

/// A verdict in one line, with the times at its end.
pub(crate) fn summary(verdict: &Verdict<'_>) -> String {
    let mut words = vec![
        verdict.outcome.map_or("?", |outcome| outcome.as_str()).to_owned(),
        verdict.version.map_or("?", |version| version.as_str()).to_owned(),
        verdict.class.map_or("?", |class| class.as_str()).to_owned(),
    ];
    let mut add = |name: &str, value: Option<String>| {
        words.extend(value.map(|value| format!("{name}{value}")));
    };
    add("cipher=", verdict.cipher.map(|suite| cipher::name(suite).unwrap_or("?").to_owned()));
    add("group=", verdict.group.map(|group| group::name(group).unwrap_or("?").to_owned()));
    add("signature=", verdict.signature.map(|scheme| signature::name(scheme).unwrap_or("?").to_owned()));
    add("certificate=", verdict.certificate.map(|it| certificate(&it)));
    add("sni=", verdict.sni.map(str::to_owned));
    add("alpn=", verdict.alpn.map(|name| String::from_utf8_lossy(name).into_owned()));
    add(
        "alert=",
        verdict.alert.map(|alert| {
            let name = handshake::tls::wire::alert::name(alert.description).unwrap_or("?");
            format!("{}:{name}{}", alert.from, if alert.fatal { "!" } else { "" })
        }),
    );
    add("trips=", verdict.round_trips().map(|trips| trips.to_string()));
    add("setup=", verdict.setup_round_trips().map(|trips| trips.to_string()));
    for (name, fact) in [
        ("hello_retry", verdict.hello_retry),
        ("resumed", verdict.resumed),
        ("resumption_offered", verdict.resumption_offered),
        ("early_data_offered", verdict.early_data_offered),
        ("group_mismatch", verdict.group_mismatch),
        ("early_data_inferred", Some(verdict.early_data_inferred)),
        ("gaps", Some(verdict.gaps)),
    ] {
        add(name, fact.filter(|&fact| fact).map(|_| String::new()));
    }
    // In units of 1024 ns, as they are kept.
    let since = |moment: Option<u64>| moment.map(|ns| ((ns - verdict.hello_ns) >> 10).to_string());
    add("ended@", since(verdict.ended_ns));
    add("may_send@", since(verdict.may_send_ns));
    words.join(" ")
}
