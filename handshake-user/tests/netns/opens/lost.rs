//! Establishment with lost segments, and with SYN cookies, which keep no state of them.

use std::io::Write;

use crate::{
    case::{Case, ms},
    ends::{Ends, Expect},
    functions,
    testbed::{
        Family,
        capture::{Capture, Connection},
        faults,
        packet::{Packet, Side},
    },
    truth,
};

for_each_family!(syn, two_syns, syn_ack, syn_cookie, syn_cookie_without_timestamps);

fn lossy(family: Family, count: usize, from: Side, matches: fn(&Packet) -> bool) -> (Ends, Capture) {
    let case = Case::new();
    case.bed.fault(faults::drop_first(count, from, matches));
    let connection = case.establish(family).finish();
    let flow = case.flow(connection);
    assert_time!(truth::client_open(&flow) > ms(1000), "the scenario did not happen");
    (case.ends(connection, Expect::BOTH), flow)
}

#[track_caller]
fn check_client_after_loss(ends: &Ends, flow: &Capture) {
    let client = ends.open(Side::Client);
    client.assert_is("open.outcome", "established");
    client.assert_near("open.duration_us", truth::client_open(flow));
    client.assert_unknown("open.rtt_us");
    client.assert_count("open.syn_retransmits", flow.count(Side::Client, Packet::is_syn) - 1);
    client.assert_is("open.final_ack", "bare");
}

#[track_caller]
fn check_syn_lost(ends: &Ends, flow: &Capture) {
    check_client_after_loss(ends, flow);
    let server = ends.open(Side::Server);
    server.assert_near("open.duration_us", truth::server_open(flow));
    server.assert_near("open.rtt_us", truth::server_open(flow));
    server.assert_count("open.syn_retransmits", 0);
}

fn syn(family: Family) {
    let (ends, flow) = lossy(family, 1, Side::Client, Packet::is_syn);
    check_syn_lost(&ends, &flow);
}

fn two_syns(family: Family) {
    let (ends, flow) = lossy(family, 2, Side::Client, Packet::is_syn);
    check_syn_lost(&ends, &flow);
}

/// Both ends retransmit: the client its SYN, and the server the SYN-ACK.
fn syn_ack(family: Family) {
    let (ends, flow) = lossy(family, 1, Side::Server, Packet::is_syn_ack);
    check_client_after_loss(&ends, &flow);
    let server = ends.open(Side::Server);
    let truth = truth::server_open(&flow);
    assert!(truth > ms(1000), "the server counts from its first SYN-ACK: {truth:?}");
    server.assert_near("open.duration_us", truth);
    server.assert_unknown("open.rtt_us");
    server.assert_count("open.syn_retransmits", flow.count(Side::Server, Packet::is_syn_ack) - 1);
}

fn syn_cookie(family: Family) {
    check_syn_cookie(family, "1");
}

fn syn_cookie_without_timestamps(family: Family) {
    check_syn_cookie(family, "0");
}

fn check_syn_cookie(family: Family, timestamps: &str) {
    let case = Case::new();
    case.bed.sysctl(Side::Server, "ipv4/tcp_syncookies", "2");
    case.bed.sysctl(Side::Server, "ipv4/tcp_timestamps", timestamps);
    let mut pair = case.establish(family);
    pair.client.write_all(b"data").unwrap();
    let connection: Connection = pair.finish();
    let flow = case.flow(connection);

    let ends = case.ends(connection, Expect::BOTH);
    let (client, server) = (ends.open(Side::Client), ends.open(Side::Server));
    client.assert_near("open.duration_us", truth::client_open(&flow));
    client.assert_near("open.rtt_us", truth::client_open(&flow));
    server.assert_is("open.outcome", "established");
    server.assert_near_or_unknown("open.duration_us", truth::server_open(&flow));
    server.assert_near_or_unknown("open.rtt_us", truth::server_open(&flow));
    functions::check_syn_cookie(server, true);
}
