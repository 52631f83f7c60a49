//! The segment that completes the handshake: bare, with data, late, lost, or ignored.

use std::{io::Write, thread};

use nix::libc;
use socket2::Socket;

use crate::{
    case::{Case, RTT, pause},
    ends::Expect,
    handshakes::{self, Ladder},
    pair::Pair,
    socket::{await_input, begin_connect, set_tcp_option},
    testbed::{
        Family,
        capture::Capture,
        faults,
        packet::{Packet, Side},
    },
    truth,
};

for_each_family!(
    carried_by_data_without_quick_ack,
    carried_by_data_with_deferred_accept,
    carried_by_data_of_a_blocked_write,
    delayed_until_there_is_data,
    delayed_and_bare,
    lost_and_replaced_by_data,
    ignored_by_deferred_accept,
);

fn write(client: &mut Socket) {
    client.write_all(b"a request").unwrap();
}

/// Delays the ACK of the SYN-ACK, to send it with data.
fn without_quick_ack(client: &Socket) {
    client.set_tcp_quickack(false).unwrap();
}

#[track_caller]
fn completing_packet_has_data(flow: &Capture) -> bool {
    let completing = flow.from(Side::Client, |packet| !packet.is_syn());
    completing.first().expect("no segment after the SYN").packet.has_data()
}

fn carried_by_data_without_quick_ack(family: Family) {
    carried_by_data(family, without_quick_ack);
}

fn carried_by_data_with_deferred_accept(family: Family) {
    carried_by_data(family, |client| set_tcp_option(client, libc::TCP_DEFER_ACCEPT, 1));
}

fn carried_by_data(family: Family, prepare: impl FnOnce(&Socket)) {
    let case = Case::new();
    let (listener, address) = case.bed.listen(family);
    let mut client = case.bed.socket(Side::Client, family);
    prepare(&client);
    client.connect(&address.into()).unwrap();
    write(&mut client);
    check_carried_by_data(&case, Pair::accepted(client, &listener));
}

fn carried_by_data_of_a_blocked_write(family: Family) {
    let case = Case::new();
    let (listener, address) = case.bed.listen(family);
    let mut client = case.bed.socket(Side::Client, family);
    begin_connect(&client, address);
    client.set_nonblocking(false).unwrap();
    write(&mut client);
    check_carried_by_data(&case, Pair::accepted(client, &listener));
}

fn check_carried_by_data(case: &Case, pair: Pair) {
    let connection = pair.finish();
    let flow = case.flow(connection);
    assert_time!(completing_packet_has_data(&flow), "the scenario did not happen");

    let ends = case.ends(connection, Expect::BOTH);
    let (client, server) = (ends.open(Side::Client), ends.open(Side::Server));
    client.assert_near("open.duration_us", truth::client_open(&flow));
    client.assert_near("open.rtt_us", truth::client_open(&flow));
    client.assert_is("open.final_ack", "data");
    server.assert_near("open.duration_us", truth::server_open(&flow));
    // The sample is right here, but cannot be told from one taken after a lost ACK.
    server.assert_near_or_unknown("open.rtt_us", truth::server_open(&flow));
    server.assert_is("open.final_ack", "data");
    handshakes::check(Ladder::FinalAckWithData, case, &ends, Side::Client);
}

fn delayed_until_there_is_data(family: Family) {
    let case = Case::new();
    let (listener, address) = case.bed.listen(family);
    let mut client = case.bed.socket(Side::Client, family);
    without_quick_ack(&client);
    client.connect(&address.into()).unwrap();
    pause(100);
    write(&mut client);
    let connection = Pair::accepted(client, &listener).finish();
    let flow = case.flow(connection);
    assert_time!(completing_packet_has_data(&flow), "the scenario did not happen");

    let ends = case.ends(connection, Expect::BOTH);
    let (client, server) = (ends.open(Side::Client), ends.open(Side::Server));
    client.assert_near("open.duration_us", truth::client_open(&flow));
    client.assert_is("open.final_ack", "data");
    server.assert_near("open.duration_us", truth::server_open(&flow));
    server.assert_is("open.final_ack", "data");
    server.assert_near_or_unknown("open.rtt_us", RTT);
}

/// The client delays its ACK for data that its program never sends, and then sends it bare.
fn delayed_and_bare(family: Family) {
    let case = Case::new();
    let (listener, address) = case.bed.listen(family);
    let client = case.bed.socket(Side::Client, family);
    without_quick_ack(&client);
    client.connect(&address.into()).unwrap();
    let connection = Pair::accepted(client, &listener).finish_after(400);
    let flow = case.flow(connection);
    assert_time!(!completing_packet_has_data(&flow), "the scenario did not happen");
    assert_time!(truth::server_open(&flow) > RTT * 2, "the scenario did not happen");

    let ends = case.ends(connection, Expect::BOTH);
    let (client, server) = (ends.open(Side::Client), ends.open(Side::Server));
    client.assert_near("open.duration_us", truth::client_open(&flow));
    client.assert_near("open.rtt_us", truth::client_open(&flow));
    server.assert_near("open.duration_us", truth::server_open(&flow));
    server.assert_is("open.final_ack", "bare");
    // The server cannot tell the delay from the round trip, so its rtt is not checked.
}

fn lost_and_replaced_by_data(family: Family) {
    let case = Case::new();
    case.bed.fault(faults::drop_first(1, Side::Client, Packet::is_bare_ack));
    let (listener, address) = case.bed.listen(family);
    let mut client = case.bed.socket(Side::Client, family);
    client.connect(&address.into()).unwrap();
    pause(150);
    write(&mut client);
    let connection = Pair::accepted(client, &listener).finish();
    let flow = case.flow(connection);
    assert_time!(truth::server_open(&flow) > RTT * 3, "the scenario did not happen");

    let ends = case.ends(connection, Expect::BOTH);
    let (client, server) = (ends.open(Side::Client), ends.open(Side::Server));
    client.assert_near("open.duration_us", truth::client_open(&flow));
    client.assert_near("open.rtt_us", truth::client_open(&flow));
    client.assert_is("open.final_ack", "bare");
    server.assert_near("open.duration_us", truth::server_open(&flow));
    server.assert_unknown("open.rtt_us");
    server.assert_is("open.final_ack", "data");
    server.assert_count("open.syn_retransmits", 0);
}

fn ignored_by_deferred_accept(family: Family) {
    let case = Case::new();
    let (listener, address) = case.bed.listen_on(Side::Server, family, |listener| {
        set_tcp_option(listener, libc::TCP_DEFER_ACCEPT, 5);
    });
    let mut client = case.bed.socket(Side::Client, family);
    client.connect(&address.into()).unwrap();
    let pair = thread::scope(|scope| {
        let accepted = scope.spawn(|| await_input(&listener));
        pause(300);
        write(&mut client);
        accepted.join().unwrap();
        Pair::accepted(client, &listener)
    });
    let connection = pair.finish();
    let flow = case.flow(connection);
    let truth = truth::server_open_by(&flow, Packet::has_data);
    assert_time!(truth > RTT * 5, "the scenario did not happen");

    let ends = case.ends(connection, Expect::BOTH);
    let (client, server) = (ends.open(Side::Client), ends.open(Side::Server));
    client.assert_near("open.duration_us", truth::client_open(&flow));
    client.assert_is("open.final_ack", "bare");
    server.assert_near("open.duration_us", truth);
    server.assert_unknown("open.rtt_us");
    server.assert_is("open.final_ack", "data");
}
