//! Closes in which the kernel's state changes are misleading.

use std::{io::Write, net::Shutdown, thread};

use super::{check_orphan, check_passive};
use crate::{
    case::{Case, RTT, ms, pause},
    ends::Expect,
    socket::{await_input, drain},
    testbed::{
        Family,
        packet::{Packet, Side},
    },
    truth,
};

for_each_family_and_side!(acknowledged_late, shutdown_then_close_by_the_passive_end);
for_each_family!(fin_behind_unsent_data, passive_fin_behind_unsent_data, half_close_behind_unsent_data);

/// The peer's kernel delays the ACK of the FIN, hoping for data to send with it.
fn acknowledged_late(family: Family, first: Side) {
    let case = Case::new();
    let pair = case.establish(family);
    pair.talk();
    let connection = pair.connection;
    let (active, passive) = pair.split(first);
    passive.set_tcp_quickack(false).unwrap();
    active.shutdown(Shutdown::Write).unwrap();
    await_input(&passive);
    pause(200);
    drop(passive);
    drain(&active);
    drop(active);
    let flow = case.flow(connection);
    let truth = truth::ack_wait(&flow, first);
    assert_time!(truth > RTT + ms(10), "the scenario did not happen: the ACK came after {truth:?}");

    let ends = case.ends(connection, Expect::BOTH);
    super::check_active(&ends, &flow, first, "four_segments");
    check_passive(&ends, &flow, first.other(), "four_segments");
}

/// `shutdown()`, then `close()` before the FIN is acknowledged: the kernel reports the same state twice.
fn shutdown_then_close_by_the_passive_end(family: Family, first: Side) {
    let case = Case::new();
    let pair = case.establish(family);
    let connection = pair.connection;
    let (active, passive) = pair.split(first);
    drop(active);
    drain(&passive);
    pause(100);
    passive.shutdown(Shutdown::Write).unwrap();
    pause(10);
    drop(passive);
    let flow = case.flow(connection);

    let ends = case.ends(connection, Expect::BOTH);
    check_orphan(&ends, &flow, first);
    check_passive(&ends, &flow, first.other(), "four_segments");
}

/// More than fits into the receive buffer.
const LARGE: usize = 60_000;
/// With half of it, Linux 7.3 offers no window any more, whatever the receiver reads.
const RECEIVE_BUFFER: usize = 16_384;

/// The peer reads slowly, so most of the data waits in the sender's queue, with the FIN behind it.
fn behind_unsent_data(family: Family, close: impl FnOnce(socket2::Socket) + Send) {
    let case = Case::new();
    let pair = case.establish_with(
        family,
        |_| (),
        |listener| listener.set_recv_buffer_size(RECEIVE_BUFFER).unwrap(),
    );
    let connection = pair.connection;
    let (mut client, server) = (pair.client, pair.server);
    client.write_all(&vec![0; LARGE]).unwrap();
    let start = std::time::Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| close(client));
        pause(400);
        assert_eq!(drain(&server), LARGE as u64);
        pause(100);
        drop(server);
    });
    let flow = case.flow(connection);
    let late = flow.sent(Side::Client, Packet::is_fin) - start;
    assert_time!(late > ms(400), "the scenario did not happen: the FIN left after {late:?}");

    let ends = case.ends(connection, Expect::BOTH);
    let close = ends.close(Side::Client);
    close.assert_is("close.initiator", "local");
    close.assert_is("close.style", "four_segments");
    close.assert_near_or_unknown("close.ack_wait_us", truth::ack_wait(&flow, Side::Client));
    close.assert_near_or_unknown("close.duration_us", truth::active_close(&flow, Side::Client));
    close.assert_near_or_unknown("close.app_wait_us", truth::active_app_wait(&flow, Side::Client));
    check_passive(&ends, &flow, Side::Server, "four_segments");
}

fn fin_behind_unsent_data(family: Family) {
    behind_unsent_data(family, drop);
}

fn half_close_behind_unsent_data(family: Family) {
    behind_unsent_data(family, |client| {
        client.shutdown(Shutdown::Write).unwrap();
        drain(&client);
    });
}

/// The same at the end that closes last.
fn passive_fin_behind_unsent_data(family: Family) {
    let case = Case::new();
    let pair =
        case.establish_with(family, |client| client.set_recv_buffer_size(RECEIVE_BUFFER).unwrap(), |_| ());
    let connection = pair.connection;
    let (client, mut server) = (pair.client, pair.server);
    client.shutdown(Shutdown::Write).unwrap();
    drain(&server);
    server.write_all(&vec![0; LARGE]).unwrap();
    drop(server);
    pause(400);
    assert_eq!(drain(&client), LARGE as u64);
    drop(client);
    let flow = case.flow(connection);
    let late = truth::passive_app_wait(&flow, Side::Server);
    assert_time!(late > ms(400), "the scenario did not happen: the FIN left after {late:?}");

    let ends = case.ends(connection, Expect::BOTH);
    super::check_active(&ends, &flow, Side::Client, "four_segments");
    let close = ends.close(Side::Server);
    close.assert_is("close.initiator", "remote");
    close.assert_is("close.style", "four_segments");
    close.assert_near_or_unknown("close.ack_wait_us", truth::ack_wait(&flow, Side::Server));
    // From the peer's FIN to the ACK of ours, however long after `close()` ours left.
    close.assert_near("close.duration_us", truth::passive_close(&flow, Side::Server));
}
