//! Captured handshakes (handshake-user/tests/corpus) as packets, as streams, as the records that the kernel
//! side sends, and as the records that result.

use std::{fs, path::Path, time::SystemTime};

use handshake::{
    host::Context,
    join::Joiner,
    kernel::{probe::WireCoverage, raw_record::RawRecord},
    untrusted::Untrusted,
};
use handshake_common::{
    Connection, ConnectionFlags, Family, Initiator, IntoBytes as _, Kind, Library, Role, Stage, TlsOutcome,
    WirePhase,
    tls::{
        library::session::{LibraryHandshake, Session, SessionFlags},
        wire::{Direction, Next, Segment, Wire, WireHandshake, closed, pass, track},
    },
};

use crate::Seed;

struct Packet {
    from: Role,
    seq: u32,
    ack: u32,
    payload: Vec<u8>,
}

pub fn all() -> Vec<Seed> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../handshake-user/tests/corpus");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "txt"));
    files.sort();
    let mut seeds = Vec::new();
    for (index, file) in files.iter().enumerate() {
        let name = file.file_stem().unwrap().to_str().unwrap();
        let packets: Vec<_> = fs::read_to_string(file)
            .unwrap()
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(packet)
            .collect();
        for role in [Role::Client, Role::Server] {
            seeds.push(("walk", format!("{name}-{role}"), packets_of(&packets, role)));
            let stream: Vec<_> = packets
                .iter()
                .filter(|packet| packet.from == role)
                .flat_map(|packet| packet.payload.clone())
                .collect();
            seeds.push(("hello", format!("{name}-{role}"), [&[32], &stream[..]].concat()));
        }
        if index == 0 {
            let mut hostile = steps(&packets, Role::Client, *b"\x1b[2J\x1b]0;x\x07\n\xff\"\\\0\0");
            // Including the text of the metrics.
            hostile[0] |= 0xf0;
            seeds.push(("explain", "hostile".to_owned(), lines(&hostile)));
            seeds.push(("ring", "hostile".to_owned(), hostile));
        }
        // A few are enough: the records differ little.
        if index % 4 == 0 {
            for role in [Role::Client, Role::Server] {
                let steps = steps(&packets, role, *b"curl\0\0\0\0\0\0\0\0\0\0\0\0");
                seeds.push(("explain", format!("{name}-{role}"), lines(&steps)));
                seeds.push(("ring", format!("{name}-{role}"), steps));
            }
        }
    }
    seeds
}

fn packet(line: &str) -> Packet {
    let [way, _at, seq, ack, payload]: [&str; 5] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
    let digits = payload.trim_matches('-').as_bytes().chunks(2);
    Packet {
        from: if way == ">" { Role::Client } else { Role::Server },
        seq: seq.parse().unwrap(),
        ack: ack.parse().unwrap(),
        payload: digits.map(|byte| u8::from_str_radix(str::from_utf8(byte).unwrap(), 16).unwrap()).collect(),
    }
}

/// In the input format of the target `walk`.
fn packets_of(packets: &[Packet], local: Role) -> Vec<u8> {
    let mut data = Vec::new();
    let mut acked = [u32::MAX; 2];
    for packet in packets {
        let acked = &mut acked[usize::from(packet.from == Role::Server)];
        let mut flags = u8::from(packet.from == Role::Client);
        flags |= if *acked == packet.ack { 0 } else { 2 };
        flags |= if local == Role::Server { 4 } else { 0 };
        *acked = packet.ack;
        data.extend([flags, 0]);
        data.extend(u16::try_from(packet.payload.len()).unwrap().to_be_bytes());
        data.extend(&packet.payload);
    }
    data
}

/// The whole life of a connection in the input format of the target `ring`.
fn steps(packets: &[Packet], local: Role, comm: [u8; 16]) -> Vec<u8> {
    const START: u64 = 1_000_000_000;
    const NUMBER: u64 = 7;
    let client = local == Role::Client;
    let mut connection = Connection {
        stage: Stage::Open.code(),
        role: local.code(),
        family: Family::Ipv4.code(),
        id: 0x1007,
        syn_ns: START,
        open_ns: START + 50_000_000,
        srtt_us: 50_000,
        flags: ConnectionFlags::ESTABLISHED,
        pid: 1234,
        comm,
        cgroup: 7,
        netns: 9,
        local_port: if client { 51000 } else { 443 },
        remote_port: if client { 443 } else { 51000 },
        ..Connection::default()
    };
    let mut steps = vec![2 | 4];
    step(&mut steps, Kind::Open.code(), connection.as_bytes());
    let mut wire = Wire::default();
    let mut now_ns = connection.open_ns;
    for packet in packets {
        now_ns += 10_000_000;
        let direction = if packet.from == local { Direction::Sent } else { Direction::Received };
        let segment = Segment { direction, seq: packet.seq, ack: packet.ack, now_ns };
        pass(&mut wire, &segment, u32::try_from(packet.payload.len()).unwrap(), false);
        let due = track(&mut wire, &segment, &packet.payload.as_slice());
        if due.copy_length > 0 {
            let (from, length) = (due.copy_offset as usize, due.copy_length as usize);
            let mut fragment = vec![Kind::Hello.code(), due.sender.code()];
            fragment.extend(u16::try_from(length).unwrap().to_ne_bytes());
            fragment.extend((packet.seq + due.copy_offset).to_ne_bytes());
            fragment.extend(NUMBER.to_ne_bytes());
            fragment.extend_from_slice(&packet.payload[from..from + length]);
            step(&mut steps, Kind::Hello.code(), &fragment);
        }
        if due.next == Next::Publish {
            break;
        }
    }
    let _ = closed(&mut wire);
    connection.wire = WirePhase::Handshaking as u8;
    let session = Session {
        begun_ns: connection.open_ns,
        hello_ns: connection.open_ns + 1_000_000,
        ended_ns: now_ns,
        compute_ns: 2_000_000,
        object: 0x5500_1000,
        pid: 1234,
        comm: connection.comm,
        flags: SessionFlags::STATE_READ | SessionFlags::FLIGHTS_SEEN | SessionFlags::VERSION_READ,
        calls: 2,
        version: 0x0304,
        cipher: 0x1302,
        library: Library::OpenSsl.code(),
        role: local.code(),
        outcome: TlsOutcome::Completed.code(),
        progress: 1,
        last_flow: 2,
        turns_to_receive: 1,
        ..Session::default()
    };
    let mut handshake = LibraryHandshake { connection, session };
    handshake.connection.stage = Stage::Tls.code();
    step(&mut steps, Kind::Library.code(), handshake.as_bytes());
    let mut wire_handshake = WireHandshake { connection, number: NUMBER, hello_in_syn: 0, wire };
    wire_handshake.connection.stage = Kind::Wire.code();
    step(&mut steps, Kind::Wire.code(), wire_handshake.as_bytes());
    step(&mut steps, 0, &[5]);
    connection.stage = Stage::Close.code();
    connection.wire = WirePhase::Reported as u8;
    connection.initiator = Initiator::Local.code();
    connection.flags.insert(ConnectionFlags::ACK_WITHOUT_FIN);
    (connection.our_close_ns, connection.our_fin_ns) = (now_ns + 1_000_000, now_ns + 1_005_000);
    (connection.fin_acked_ns, connection.peer_fin_ns) = (now_ns + 50_000_000, now_ns + 51_000_000);
    connection.closed_ns = now_ns + 52_000_000;
    step(&mut steps, Kind::Close.code(), connection.as_bytes());
    step(&mut steps, 0, &[200]);
    steps
}

/// Without trailing zeros, which the target restores.
fn step(steps: &mut Vec<u8>, what: u8, bytes: &[u8]) {
    let length = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    steps.push(what);
    steps.extend(u16::try_from(length).unwrap().to_le_bytes());
    steps.extend_from_slice(&bytes[..length]);
}

/// The records that result from these steps.
fn lines(steps: &[u8]) -> Vec<u8> {
    struct Epoch;
    impl Context for Epoch {
        fn wall_time(&self, _: u64) -> SystemTime {
            SystemTime::UNIX_EPOCH
        }

        fn cgroup(&mut self, _: u64) -> Option<Untrusted> {
            Some("/system.slice/web.service".into())
        }
    }
    let mut lines = Vec::new();
    let mut joiner = Joiner::new(WireCoverage::All);
    let mut report = |event| {
        serde_json::to_writer(&mut lines, &event).unwrap();
        lines.push(b'\n');
    };
    let mut input = handshake_fuzz::Input(&steps[1..]);
    while let (Some(kind), Some(bytes)) = (input.byte(), input.block()) {
        let size = match Kind::from_code(kind) {
            Some(Kind::Open | Kind::Close) => handshake_common::connection::SIZE,
            Some(Kind::Library) => handshake_common::tls::library::session::SIZE,
            Some(Kind::Wire) => handshake_common::tls::wire::raw::SIZE,
            _ => bytes.len(),
        };
        let mut bytes = bytes.to_vec();
        bytes.resize(size, 0);
        if let Some(raw) = RawRecord::from_bytes(&bytes) {
            joiner.take(&raw, 0, &mut Epoch, &mut report);
        }
    }
    joiner.finish(&mut Epoch, &mut report);
    lines
}
