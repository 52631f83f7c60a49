//! The table of setup times: each kind of handshake, after a plain TCP handshake and with the `ClientHello`
//! in the SYN. `cargo xtask table` prints what these tests measure beside what is expected.

use std::{env, fs::OpenOptions, io::Write};

use serde_json::json;

use super::{
    programs::{Peers, asyncio, curl, false_start, haproxy, java, rustls, server_address},
    row::Row,
    scenario::{check, made},
    settings::Settings,
};
use crate::{
    case::Case,
    handshakes::{self, Ladder},
    record::Record,
    testbed::packet::Side,
};

const EARLY: Settings = Settings { early_data: true, ..Settings::TLS13 };

/// As a client, HAProxy decides itself when to use Fast Open.
const CURL_AND_HAPROXY: Peers = Peers { client: curl::PEERS.client, ..haproxy::PEERS };

/// One line of the table.
struct Line {
    peers: &'static Peers,
    row: Row,
    /// The settings of the server that the client has a session with, if it has one.
    session: Option<Settings>,
    settings: Settings,
}

impl Line {
    const fn new(row: Row, settings: Settings) -> Self {
        Self { peers: &rustls::PEERS, row, session: None, settings }
    }

    const fn resuming(row: Row, session: Settings, settings: Settings) -> Self {
        Self { session: Some(session), ..Self::new(row, settings) }
    }

    const fn by(peers: &'static Peers, row: Row, settings: Settings) -> Self {
        Self { peers, ..Self::new(row, settings) }
    }
}

/// Generates the tests of both columns; the lines of the second part are only in the first.
macro_rules! table {
    ($($name:ident: $line:expr),+ $(,)?; $($plain:ident: $plain_line:expr),+ $(,)?) => {
        mod plain {
            use super::*;
            $(
                #[test]
                fn $plain() {
                    measure(stringify!($plain), &$plain_line, false);
                }
            )+
            $(
                #[test]
                fn $name() {
                    measure(stringify!($name), &$line, false);
                }
            )+
        }

        mod fast_open {
            use super::*;
            $(
                #[test]
                fn $name() {
                    measure(stringify!($name), &$line, true);
                }
            )+
        }
    };
}

table! {
    tls12_full: Line::new(Row::Tls12Full, Settings::TLS12),
    tls12_resumed: Line::resuming(Row::Tls12Resumed, Settings::TLS12, Settings::TLS12),
    tls12_false_start: Line::by(&false_start::PEERS, Row::Tls12FalseStart, Settings::TLS12),
    tls13_full: Line::new(Row::Tls13Full, Settings::TLS13),
    tls13_hello_retry: Line::new(Row::Tls13Retry, Settings { retry: true, ..Settings::TLS13 }),
    tls13_resumed: Line::resuming(Row::Tls13Resumed, Settings::TLS13, Settings::TLS13),
    early_data_accepted: Line::resuming(Row::EarlyDataAccepted, EARLY, EARLY),
    early_data_rejected: Line::resuming(Row::EarlyDataRejected, EARLY, Settings::TLS13),
    early_data_rejected_by_hello_retry:
        Line::resuming(Row::EarlyDataRejectedByRetry, EARLY, Settings { retry: true, ..EARLY }),
    curl_and_nginx: Line::by(&curl::PEERS, Row::Tls13Full, Settings::TLS13),
    curl_and_haproxy: Line::by(&CURL_AND_HAPROXY, Row::Tls13Full, Settings::TLS13),
    // On blocking sockets, Python checks for a peer before it has sent anything, and fails with Fast Open.
    asyncio: Line::by(&asyncio::PEERS, Row::Tls13Full, Settings::TLS13);
    // Java cannot enable Fast Open.
    java: Line::by(&java::PEERS, Row::Tls13Full, Settings::TLS13),
}

fn measure(name: &str, line: &Line, fast_open: bool) {
    let with = |settings| Settings { fast_open, ..settings };
    let (peers, settings) = (line.peers, with(line.settings));
    let case = Case::new();
    let address = server_address(&case.bed);
    if fast_open {
        for side in [Side::Client, Side::Server] {
            case.bed.sysctl(side, "ipv4/tcp_fastopen", "3");
        }
    }
    let (mut rows, mut accounts) = (Vec::new(), Vec::new());
    let (_server, mut client);
    if let Some(session) = line.session.map(with) {
        let server = (peers.server)(&case.bed, address, session);
        client = (peers.client)(&case.bed, address, session);
        accounts.extend(client.connect(1));
        rows.push(if line.row.version() == "1.2" { Row::Tls12Full } else { Row::Tls13Full });
        _server = if session == settings {
            server
        } else {
            case.bed.wait_until_quiet();
            drop(server);
            (peers.server)(&case.bed, address, settings)
        };
    } else {
        _server = (peers.server)(&case.bed, address, settings);
        if fast_open {
            // A process of its own, which leaves a cookie in the kernel and no session.
            let mut first = (peers.client)(&case.bed, address, settings);
            accounts.extend(first.connect(1));
            rows.push(line.row);
            case.bed.wait_until_quiet();
        }
        client = (peers.client)(&case.bed, address, settings);
    }
    accounts.extend(client.connect(1));
    rows.push(line.row);
    let (witness, ends) = check(&case, peers, made(&rows, accounts));
    assert_eq!(witness.hello_in_syn, fast_open, "the ClientHello in the SYN");
    if let Some(ladder) = ladder(name, fast_open) {
        handshakes::check(ladder, &case, &ends, Side::Client);
    }
    write(name, line.row, fast_open, ends.tls(Side::Client));
}

/// Where docs/handshakes.md shows this line of the table.
fn ladder(name: &str, fast_open: bool) -> Option<Ladder> {
    Some(match (name, fast_open) {
        ("tls12_full", false) => Ladder::Tls12Full,
        ("tls12_resumed", false) => Ladder::Tls12Resumed,
        ("tls12_false_start", false) => Ladder::Tls12FalseStart,
        ("tls13_full", false) => Ladder::Tls13Full,
        ("tls13_hello_retry", false) => Ladder::Tls13HelloRetryRequest,
        ("tls13_resumed", false) => Ladder::Tls13Resumed,
        ("early_data_accepted", false) => Ladder::EarlyDataAccepted,
        ("early_data_rejected", false) => Ladder::EarlyDataRejected,
        ("early_data_accepted", true) => Ladder::ZeroRoundTrips,
        _ => return None,
    })
}

/// A line for `cargo xtask table`.
fn write(name: &str, row: Row, fast_open: bool, tls: &Record) {
    let Some(path) = env::var_os("HANDSHAKE_TABLE") else { return };
    let cell = json!({
        "line": name,
        "fast_open": fast_open,
        "expected": row.setup_round_trips(fast_open),
        "round_trips": tls.number("setup.round_trips"),
        "setup_us": tls.number("setup.duration_us"),
        "tls_us": tls.number("tls.duration_us"),
    });
    let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
    // In one write: other tests append too.
    file.write_all(format!("{cell}\n").as_bytes()).unwrap();
}
