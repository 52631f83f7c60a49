//! The segment that completes the handshake: alone, with data, late, or ignored.

use std::{io::Write, thread};

use nix::libc;
use socket2::Socket;

use crate::{
    case::{Case, Expect, Pair, RTT, pause},
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
    carried_by_data_of_a_talkative_client,
    carried_by_data_of_a_client_with_deferred_accept,
    carried_by_a_write_that_waited_for_the_connection,
    held_back_until_there_is_data,
    held_back_in_vain,
    lost_and_made_good_by_data,
    ignored_by_deferred_accept,
);

fn at_once(client: &mut Socket) {
    client.write_all(b"no time to lose").unwrap();
}

/// Does not acknowledge at once what it expects to answer.
fn without_quick_ack(client: &Socket) {
    client.set_tcp_quickack(false).unwrap();
}

#[track_caller]
fn completing_packet_has_data(flow: &Capture) -> bool {
    let completing = flow.from(Side::Client, |packet| !packet.is_syn());
    completing.first().expect("something after the SYN").packet.has_data()
}

fn carried_by_data_of_a_talkative_client(family: Family) {
    carried_by_data(family, without_quick_ack);
}

fn carried_by_data_of_a_client_with_deferred_accept(family: Family) {
    carried_by_data(family, |client| set_tcp_option(client, libc::TCP_DEFER_ACCEPT, 1));
}

fn carried_by_data(family: Family, prepare: impl FnOnce(&Socket)) {
    let case = Case::new();
    let (listener, address) = case.bed.listen(family);
    let mut client = case.bed.socket(Side::Client, family);
    prepare(&client);
    client.connect(&address.into()).unwrap();
    at_once(&mut client);
    check_carried_by_data(&case, Pair::accepted(client, &listener));
}

fn carried_by_a_write_that_waited_for_the_connection(family: Family) {
    let case = Case::new();
    let (listener, address) = case.bed.listen(family);
    let mut client = case.bed.socket(Side::Client, family);
    begin_connect(&client, address);
    client.set_nonblocking(false).unwrap();
    at_once(&mut client);
    check_carried_by_data(&case, Pair::accepted(client, &listener));
}

fn check_carried_by_data(case: &Case, pair: Pair) {
    let connection = pair.finish();
    let flow = case.flow(connection);
    assert!(completing_packet_has_data(&flow), "not the case that this test is about");

    let ends = case.ends(connection, Expect::BOTH);
    let (client, server) = (ends.open(Side::Client), ends.open(Side::Server));
    client.assert_near("open.duration_us", truth::client_open(&flow));
    client.assert_near("open.rtt_us", truth::client_open(&flow));
    client.assert_is("open.final_ack", "data");
    server.assert_near("open.duration_us", truth::server_open(&flow));
    // It would be right here, but looks like the case of the lost one.
    server.assert_near_or_unknown("open.rtt_us", truth::server_open(&flow));
    server.assert_is("open.final_ack", "data");
}

fn held_back_until_there_is_data(family: Family) {
    let case = Case::new();
    let (listener, address) = case.bed.listen(family);
    let mut client = case.bed.socket(Side::Client, family);
    without_quick_ack(&client);
    client.connect(&address.into()).unwrap();
    pause(100);
    at_once(&mut client);
    let connection = Pair::accepted(client, &listener).finish();
    let flow = case.flow(connection);
    assert!(completing_packet_has_data(&flow), "not the case that this test is about");

    let ends = case.ends(connection, Expect::BOTH);
    let (client, server) = (ends.open(Side::Client), ends.open(Side::Server));
    client.assert_near("open.duration_us", truth::client_open(&flow));
    client.assert_is("open.final_ack", "data");
    server.assert_near("open.duration_us", truth::server_open(&flow));
    server.assert_is("open.final_ack", "data");
    server.assert_near_or_unknown("open.rtt_us", RTT);
}

/// The client waits for data that its program never sends, and acknowledges at last without.
fn held_back_in_vain(family: Family) {
    let case = Case::new();
    let (listener, address) = case.bed.listen(family);
    let client = case.bed.socket(Side::Client, family);
    without_quick_ack(&client);
    client.connect(&address.into()).unwrap();
    let connection = Pair::accepted(client, &listener).finish_after(400);
    let flow = case.flow(connection);
    assert!(!completing_packet_has_data(&flow), "not the case that this test is about");
    assert!(truth::server_open(&flow) > RTT * 2, "not the case that this test is about");

    let ends = case.ends(connection, Expect::BOTH);
    let (client, server) = (ends.open(Side::Client), ends.open(Side::Server));
    client.assert_near("open.duration_us", truth::client_open(&flow));
    client.assert_near("open.rtt_us", truth::client_open(&flow));
    server.assert_near("open.duration_us", truth::server_open(&flow));
    server.assert_is("open.final_ack", "bare");
    // The server cannot tell the delay from the distance: its rtt is what passed, and is not checked.
}

fn lost_and_made_good_by_data(family: Family) {
    let case = Case::new();
    case.bed.fault(faults::drop_first(1, Side::Client, Packet::is_bare_ack));
    let (listener, address) = case.bed.listen(family);
    let mut client = case.bed.socket(Side::Client, family);
    client.connect(&address.into()).unwrap();
    pause(150);
    at_once(&mut client);
    let connection = Pair::accepted(client, &listener).finish();
    let flow = case.flow(connection);
    assert!(truth::server_open(&flow) > RTT * 3, "not the case that this test is about");

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
        at_once(&mut client);
        accepted.join().unwrap();
        Pair::accepted(client, &listener)
    });
    let connection = pair.finish();
    let flow = case.flow(connection);
    let truth = truth::server_open_by(&flow, Packet::has_data);
    assert!(truth > RTT * 5, "not the case that this test is about");

    let ends = case.ends(connection, Expect::BOTH);
    let (client, server) = (ends.open(Side::Client), ends.open(Side::Server));
    client.assert_near("open.duration_us", truth::client_open(&flow));
    client.assert_is("open.final_ack", "bare");
    server.assert_near("open.duration_us", truth);
    server.assert_unknown("open.rtt_us");
    server.assert_is("open.final_ack", "data");
}
