//! The end that dials is the TLS server: the role in TCP and that in TLS are two facts.

use super::{
    programs::{drive, python::script, serve, server_address},
    scenario::TOLERANCE,
    settings::Settings,
    wire::{self, Kind},
};
use crate::{
    case::{Case, RTT},
    ends::Expect,
    testbed::packet::{Packet, Side},
};

#[test]
fn tls_1_3_takes_the_dialler_three_round_trips() {
    // The client's Finished is its first record under its keys.
    reversed(Settings::TLS13, Kind::Data, [3, 2]);
}

#[test]
fn tls_1_2_takes_the_dialler_four_round_trips() {
    reversed(Settings::TLS12, Kind::ChangeCipherSpec, [4, 3]);
}

/// The setup's round trips are those of the dialler and of the other end.
fn reversed(settings: Settings, finished: Kind, round_trips: [usize; 2]) {
    let case = Case::new();
    let address = server_address(&case.bed);
    let command = |side| script(&case.bed, side, "reversed.py");
    let _server = serve(command(Side::Server), &case.bed, address, settings);
    let accounts = drive(command(Side::Client), address, settings).connect(1);
    assert_eq!(accounts[0].failure, None);
    let connection = case.connection();
    let flow = case.flow(connection);
    let client = wire::records(&flow, Side::Server);
    assert_eq!(client[0].kind, Kind::Handshake, "the end that accepts sends the ClientHello");
    let finished = client.iter().find(|record| record.kind == finished).expect("no Finished on the link");
    let syn = flow.sent(Side::Client, Packet::is_syn);
    let syn_ack = flow.sent(Side::Server, Packet::is_syn_ack);

    let ends = case.ends(connection, Expect::BOTH);
    for (side, count) in [Side::Client, Side::Server].into_iter().zip(round_trips) {
        let tls = ends.tls(side);
        let (role, in_tls) = match side {
            Side::Client => ("client", "server"),
            Side::Server => ("server", "client"),
        };
        tls.assert_is("role", role);
        tls.assert_is("tls.role", in_tls);
        tls.assert_is("tls.outcome", "completed");
        tls.assert_is("tls.library", "openssl");
        tls.assert_count("setup.round_trips", count);
        if settings.version.number() == "1.3" {
            let took = match side {
                Side::Client => finished.got - syn,
                Side::Server => finished.sent - syn_ack,
            };
            tls.assert_within("setup.duration_us", took, TOLERANCE);
        }
        if let Some(excess) = tls.get("setup.excess_us").and_then(serde_json::Value::as_i64) {
            let most = i64::try_from(RTT.as_micros()).unwrap() / 2;
            assert_time!(excess < most, "{excess} µs are blamed on a program, in {tls}");
        }
    }
}
