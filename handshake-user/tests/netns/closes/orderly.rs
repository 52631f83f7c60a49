//! A FIN from both ends, in every order.

use std::{io::Write, net::Shutdown, thread};

use super::{check_active, check_orphan, check_own_process, check_passive};
use crate::{
    case::{Case, RTT, ms, pause},
    ends::Expect,
    handshakes::{self, Ladder},
    socket::{await_input, drain},
    testbed::{
        Family,
        packet::{Packet, Side},
    },
    truth,
};

for_each_family_and_side!(four_segments, three_segments, half_close, half_close_then_close);
for_each_family!(simultaneous, simultaneous_half_close, half_close_with_data_after_it);

/// One end closes; the program at the other takes 200 ms to do the same.
fn four_segments(family: Family, first: Side) {
    let case = Case::new();
    let pair = case.establish(family);
    let connection = pair.connection;
    let (active, passive) = pair.split(first);
    drop(active);
    drain(&passive);
    pause(200);
    drop(passive);
    let flow = case.flow(connection);

    let ends = case.ends(connection, Expect::BOTH);
    check_orphan(&ends, &flow, first);
    check_passive(&ends, &flow, first.other(), "four_segments");
    assert!(truth::passive_app_wait(&flow, first.other()) >= ms(200));
    check_own_process(&ends);
    if first == Side::Client {
        handshakes::check(Ladder::FourSegments, &case, &ends, Side::Server);
    }
}

/// The other end closes at once and its kernel delays ACKs: one segment is both FIN and ACK.
fn three_segments(family: Family, first: Side) {
    let case = Case::new();
    let pair = case.establish(family);
    // On a connection that has carried no data the kernel delays ACKs by no more than a tick.
    pair.talk();
    let connection = pair.connection;
    let (active, passive) = pair.split(first);
    passive.set_tcp_quickack(false).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            drain(&passive);
            drop(passive);
        });
        pause(50);
        drop(active);
    });
    let flow = case.flow(connection);
    let fin = flow.from(first, Packet::is_fin)[0].packet.end();
    let answers = flow.from(first.other(), |packet| packet.acknowledges(fin));
    assert_time!(
        answers[0].packet.is_fin(),
        "the scenario did not happen: the FIN was acknowledged by a segment of its own"
    );

    let ends = case.ends(connection, Expect::BOTH);
    check_active(&ends, &flow, first, "three_segments");
    check_passive(&ends, &flow, first.other(), "three_segments");
    check_own_process(&ends);
    if first == Side::Client {
        handshakes::check(Ladder::ThreeSegments, &case, &ends, Side::Client);
    }
}

/// One end shuts down its sending side and waits for the other.
fn half_close(family: Family, first: Side) {
    let case = Case::new();
    let pair = case.establish(family);
    let connection = pair.connection;
    let (active, passive) = pair.split(first);
    active.shutdown(Shutdown::Write).unwrap();
    drain(&passive);
    pause(200);
    drop(passive);
    drain(&active);
    drop(active);
    let flow = case.flow(connection);

    let ends = case.ends(connection, Expect::BOTH);
    check_active(&ends, &flow, first, "four_segments");
    ends.close(first).assert_near("close.app_wait_us", truth::active_app_wait(&flow, first));
    check_passive(&ends, &flow, first.other(), "four_segments");
    check_own_process(&ends);
    if first == Side::Client {
        handshakes::check(Ladder::HalfClose, &case, &ends, Side::Client);
    }
}

/// It closes for good once its FIN is acknowledged.
fn half_close_then_close(family: Family, first: Side) {
    let case = Case::new();
    let pair = case.establish(family);
    let connection = pair.connection;
    let (active, passive) = pair.split(first);
    active.shutdown(Shutdown::Write).unwrap();
    case.bed.wait_until("the FIN is acknowledged", |link| link.has_fin_acknowledged(first));
    drop(active);
    // A program that is slow to close.
    pause(100);
    drop(passive);
    let flow = case.flow(connection);

    let ends = case.ends(connection, Expect::BOTH);
    check_orphan(&ends, &flow, first);
    check_passive(&ends, &flow, first.other(), "four_segments");
    check_own_process(&ends);
}

/// Data that the server sends after the client's FIN does not count towards the wait for the FIN's ACK.
fn half_close_with_data_after_it(family: Family) {
    let case = Case::new();
    let pair = case.establish(family);
    let connection = pair.connection;
    let (client, mut server) = (pair.client, pair.server);
    client.shutdown(Shutdown::Write).unwrap();
    await_input(&server);
    for _ in 0..5 {
        server.write_all(&[0; 4000]).unwrap();
        pause(30);
    }
    drop(server);
    assert_eq!(drain(&client), 20_000);
    drop(client);
    let flow = case.flow(connection);

    let ends = case.ends(connection, Expect::BOTH);
    check_active(&ends, &flow, Side::Client, "four_segments");
    check_passive(&ends, &flow, Side::Server, "four_segments");
}

fn simultaneous(family: Family) {
    simultaneously(family, drop);
}

fn simultaneous_half_close(family: Family) {
    simultaneously(family, |socket| {
        socket.shutdown(Shutdown::Write).unwrap();
        drain(&socket);
    });
}

/// The two FINs cross on the link.
fn simultaneously(family: Family, close: impl Fn(socket2::Socket) + Copy + Send + Sync) {
    let case = Case::new();
    let pair = case.establish(family);
    let connection = pair.connection;
    thread::scope(|scope| {
        scope.spawn(|| close(pair.client));
        pause(10);
        close(pair.server);
    });
    let flow = case.flow(connection);
    for side in [Side::Client, Side::Server] {
        assert!(
            flow.sent(side, Packet::is_fin) < flow.got(side, Packet::is_fin),
            "the FINs have not crossed"
        );
    }

    let ends = case.ends(connection, Expect::BOTH);
    for side in [Side::Client, Side::Server] {
        let close = ends.close(side);
        close.assert_is("close.initiator", "both");
        close.assert_is("close.style", "simultaneous");
        close.assert_near("close.ack_wait_us", truth::ack_wait(&flow, side));
        close.assert_near_or_unknown("close.duration_us", truth::active_close(&flow, side));
        assert!(truth::active_close(&flow, side) < RTT);
    }
    check_own_process(&ends);
    handshakes::check(Ladder::SimultaneousClose, &case, &ends, Side::Client);
}
