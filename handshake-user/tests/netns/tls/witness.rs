//! The second measurement of a TLS handshake: its kind and its true times, by what the link carried.

use std::time::{Duration, Instant};

use super::{
    hello::{self, CERTIFICATE, Hello, SERVER_HELLO},
    row::Row,
    wire::{self, Kind, Record},
};
use crate::testbed::{
    capture::Capture,
    packet::{Packet, Side},
};

/// The length of the record of `EndOfEarlyData`: an empty message, the content type, the tag (RFC 8446 §4.5,
/// §5.2).
const END_OF_EARLY_DATA: usize = 4 + 1 + 16;

pub(crate) struct Witness {
    pub(crate) row: Row,
    pub(crate) client: Handshake,
    pub(crate) server: Handshake,
    /// From the SYN until the client may send application data.
    pub(crate) setup: Duration,
    pub(crate) hello_in_syn: bool,
    /// What each end saw of both: who sent, and from when to when since the start of its opening.
    flights: [Vec<Flight>; 2],
    /// Of the handshake, bare acknowledgments included.
    pub(crate) packets: usize,
    /// In which the keys were exchanged. Before TLS 1.3, if that message begins a record.
    pub(crate) group: Option<&'static str>,
    /// What the server signed that with, before TLS 1.3; likewise.
    pub(crate) signature: Option<&'static str>,
}

/// Who sent it; when its first and its last record passed, since the start of the opening.
pub(crate) type Flight = (Side, Duration, Duration);

/// A handshake as one end sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Handshake {
    pub(crate) duration: Duration,
    pub(crate) round_trips: u32,
}

impl Witness {
    pub(crate) fn handshake(&self, side: Side) -> Handshake {
        match side {
            Side::Client => self.client,
            Side::Server => self.server,
        }
    }

    /// The flights as this end saw them; `None` where early data crosses the server's answer.
    pub(crate) fn flights(&self, side: Side) -> Option<&[Flight]> {
        let flights = match side {
            Side::Client => &self.flights[0],
            Side::Server => &self.flights[1],
        };
        (!self.row.offers_early_data()).then_some(flights)
    }

    /// Measures a completed handshake.
    #[track_caller]
    pub(crate) fn of(flow: &Capture) -> Self {
        let client = wire::records(flow, Side::Client);
        let server = wire::records(flow, Side::Server);
        let hello = client.first().expect("no ClientHello on the link");
        let answers: Vec<Hello> =
            server.iter().filter(|record| record.kind == Kind::Handshake).filter_map(hello_of).collect();
        let offered_early =
            hello_of(hello).expect("the client does not begin with a ClientHello").has_early_data();
        let is_tls13 = answers.iter().any(Hello::is_tls13);
        let ending = if is_tls13 {
            Ending::of_tls13(&client, &server, &answers, offered_early)
        } else {
            Ending::of_tls12(&client, &server)
        };
        let seen_by = |side: Side| {
            let at = |record: &Record| if record.from == side { record.begun } else { record.got };
            let (start, end) = match side {
                Side::Client => (hello.begun, ending.client),
                Side::Server => (hello.got, ending.server),
            };
            let mut order: Vec<&Record> = client
                .iter()
                .chain(&server)
                .filter(|record| record.kind != Kind::ChangeCipherSpec && !ending.is_early(record))
                .filter(|record| at(record) <= end)
                .collect();
            order.sort_by_key(|record| at(record));
            let answers =
                order.windows(2).filter(|pair| pair[0].from == side && pair[1].from != side).count();
            Handshake { duration: end - start, round_trips: u32::try_from(answers).unwrap() }
        };
        let (group, signature) =
            if is_tls13 { (answers.last().and_then(Hello::group), None) } else { exchanged(&server).unzip() };
        let syn = flow.from(Side::Client, Packet::is_syn)[0];
        let flights = |side: Side, zero: Instant, end: Instant| {
            let at = |record: &Record| if record.from == side { record.sent } else { record.got };
            let mut order: Vec<&Record> =
                client.iter().chain(&server).filter(|record| at(record) <= end).collect();
            order.sort_by_key(|record| at(record));
            let mut flights: Vec<Flight> = Vec::new();
            for record in order {
                match flights.last_mut() {
                    Some((from, _, last)) if *from == record.from => *last = at(record) - zero,
                    _ => flights.push((record.from, at(record) - zero, at(record) - zero)),
                }
            }
            flights
        };
        let syn_ack = flow.from(Side::Server, Packet::is_syn_ack)[0];
        let period = hello.begun..=ending.client.max(ending.server);
        let packets = [Side::Client, Side::Server].into_iter().flat_map(|side| flow.from(side, |_| true));
        Self {
            packets: packets.filter(|seen| period.contains(&seen.arrived)).count(),
            flights: [
                flights(Side::Client, syn.arrived, ending.client),
                flights(Side::Server, syn_ack.arrived, ending.server),
            ],
            row: ending.row,
            group,
            signature,
            client: seen_by(Side::Client),
            server: seen_by(Side::Server),
            setup: ending.may_send.unwrap_or(hello.sent) - syn.arrived,
            hello_in_syn: syn.packet.has_data(),
        }
    }
}

struct Ending {
    row: Row,
    client: Instant,
    server: Instant,
    /// When the client may send application data; `None` is with the `ClientHello`.
    may_send: Option<Instant>,
    /// When the client received the `ServerHello` of TLS 1.3: data that it sent before is early data.
    answered: Option<Instant>,
}

impl Ending {
    /// Early data is not part of the handshake, and crosses the server's answer on the link.
    fn is_early(&self, record: &Record) -> bool {
        let unanswered = self.answered.is_some_and(|answered| record.begun < answered);
        record.from == Side::Client && record.kind == Kind::Data && unanswered
    }

    #[track_caller]
    fn of_tls13(client: &[Record], server: &[Record], answers: &[Hello], offered_early: bool) -> Self {
        let retried = answers.iter().any(Hello::is_retry);
        let resumed = answers.iter().any(|hello| !hello.is_retry() && hello.has_pre_shared_key());
        let answered = server
            .iter()
            .find(|record| hello_of(record).is_some_and(|hello| !hello.is_retry()))
            .expect("no ServerHello on the link")
            .got;
        let sealed: Vec<_> =
            client.iter().filter(|record| record.kind == Kind::Data && record.begun >= answered).collect();
        let accepted = offered_early && !retried && sealed[0].body.len() == END_OF_EARLY_DATA;
        let finished = sealed[usize::from(accepted)];
        let row = match (offered_early, accepted, retried, resumed) {
            (true, true, _, _) => Row::EarlyDataAccepted,
            (true, false, true, _) => Row::EarlyDataRejectedByRetry,
            (true, false, false, _) => Row::EarlyDataRejected,
            (false, _, true, _) => Row::Tls13Retry,
            (false, _, false, true) => Row::Tls13Resumed,
            (false, _, false, false) => Row::Tls13Full,
        };
        let may_send = (!accepted).then_some(finished.sent);
        Self { row, client: finished.sent, server: finished.got, may_send, answered: Some(answered) }
    }

    #[track_caller]
    fn of_tls12(client: &[Record], server: &[Record]) -> Self {
        let finished = |records: &[Record]| {
            let mut behind = records.iter().skip_while(|record| record.kind != Kind::ChangeCipherSpec);
            behind.find(|record| record.kind == Kind::Handshake).expect("no Finished on the link").clone()
        };
        let (ours, theirs) = (finished(client), finished(server));
        // RFC 5246 §7.3: a resumed session has no Certificate.
        let open: Vec<u8> = server
            .iter()
            .take_while(|record| record.kind == Kind::Handshake)
            .flat_map(|record| record.body.clone())
            .collect();
        let resumed = !messages(&open).contains(&CERTIFICATE);
        let early = client.iter().any(|record| record.kind == Kind::Data && record.begun < theirs.got);
        let row = match (resumed, early) {
            (true, _) => Row::Tls12Resumed,
            (false, true) => Row::Tls12FalseStart,
            (false, false) => Row::Tls12Full,
        };
        let complete = ours.sent.max(theirs.got);
        let may_send = Some(if early { ours.sent } else { complete });
        Self { row, client: complete, server: theirs.sent.max(ours.got), may_send, answered: None }
    }
}

/// The group of a handshake before TLS 1.3, and what the server signed it with.
fn exchanged(server: &[Record]) -> Option<(&'static str, &'static str)> {
    let open = server.iter().take_while(|record| record.kind == Kind::Handshake);
    open.map(|record| &record.body).find_map(|body| hello::exchanged(body))
}

fn hello_of(record: &Record) -> Option<Hello> {
    Hello::parse(&record.body)
}

/// The types of the messages in these bytes.
fn messages(mut bytes: &[u8]) -> Vec<u8> {
    let mut found = Vec::new();
    while let Some((&[kind, a, b, c], rest)) = bytes.split_first_chunk() {
        found.push(kind);
        let length = usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap();
        bytes = rest.get(length..).unwrap_or_default();
    }
    assert_eq!(found.first(), Some(&SERVER_HELLO), "the server does not begin with a ServerHello");
    found
}
