//! A RST instead of a FIN, or after one.

use std::{
    io::{ErrorKind, Write},
    net::Shutdown,
};

use socket2::Socket;

use crate::{
    case::{Case, ms},
    ends::{Ends, Expect},
    handshakes::{self, Ladder},
    record::Record,
    socket::{await_hang_up, await_input, disconnect, drain},
    testbed::{
        Family, faults,
        packet::{Packet, Side},
    },
    truth,
};

for_each_family_and_side!(
    by_linger_zero,
    by_unread_data,
    after_half_close_of_the_peer,
    for_data_after_the_close,
    from_a_host_without_the_connection,
);
for_each_family!(never_accepted, by_disconnecting);

/// The times that are measured from a FIN are absent.
#[track_caller]
fn check_no_fin(close: &Record) {
    for path in ["close.ack_wait_us", "close.app_wait_us", "close.time_wait_us"] {
        close.assert_unknown(path);
    }
    close.assert_near_or_unknown("close.duration_us", ms(0));
}

#[track_caller]
fn check_reset(ends: &Ends, sender: Side) {
    let sent = ends.close(sender);
    sent.assert_is("close.style", "reset_sent");
    sent.assert_is("close.initiator", "local");
    check_no_fin(sent);
    let received = ends.close(sender.other());
    received.assert_is("close.style", "reset_received");
    received.assert_is("close.initiator", "remote");
    check_no_fin(received);
}

fn resetting(case: &Case, family: Family, sender: Side, provoke: impl FnOnce(&mut Socket, &mut Socket)) {
    let pair = case.establish(family);
    let connection = pair.connection;
    let (mut active, mut passive) = pair.split(sender);
    provoke(&mut active, &mut passive);
    drop(active);
    await_input(&passive);
    drop(passive);
    let flow = case.flow(connection);
    assert_eq!(flow.count(sender, Packet::is_rst), 1);
    assert_eq!(flow.count(sender.other(), Packet::is_rst), 0);
    assert_eq!(flow.count(sender, Packet::is_fin), 0);

    let ends = case.ends(connection, Expect::BOTH);
    check_reset(&ends, sender);
    // The reset comes from the sender's own system call; at the other end no process asked for it.
    ends.close(sender).assert_process_or_unknown(std::process::id());
    if sender == Side::Client {
        handshakes::check(Ladder::Reset, case, &ends, Side::Client);
    }
}

fn by_linger_zero(family: Family, sender: Side) {
    resetting(&Case::new(), family, sender, |active, _| active.set_linger(Some(ms(0))).unwrap());
}

fn by_unread_data(family: Family, sender: Side) {
    resetting(&Case::new(), family, sender, |active, passive| {
        passive.write_all(b"never read").unwrap();
        await_input(active);
    });
}

/// `connect(AF_UNSPEC)` aborts an established connection.
fn by_disconnecting(family: Family) {
    resetting(&Case::new(), family, Side::Client, |active, _| disconnect(active));
}

/// One end is half-closed and waits; the other resets.
fn after_half_close_of_the_peer(family: Family, half_closed: Side) {
    let case = Case::new();
    let pair = case.establish(family);
    let connection = pair.connection;
    let (active, passive) = pair.split(half_closed);
    active.shutdown(Shutdown::Write).unwrap();
    drain(&passive);
    case.bed.wait_until("the FIN is acknowledged", |link| link.has_fin_acknowledged(half_closed));
    passive.set_linger(Some(ms(0))).unwrap();
    drop(passive);
    await_input(&active);
    drop(active);
    let flow = case.flow(connection);
    assert_eq!(flow.count(half_closed.other(), Packet::is_rst), 1);

    let ends = case.ends(connection, Expect::BOTH);
    let close = ends.close(half_closed);
    close.assert_is("close.initiator", "local");
    close.assert_is("close.style", "reset_received");
    close.assert_near_or_unknown("close.ack_wait_us", truth::ack_wait(&flow, half_closed));
    let close = ends.close(half_closed.other());
    close.assert_is("close.initiator", "remote");
    close.assert_is("close.style", "reset_sent");
    close.assert_unknown("close.ack_wait_us");
}

/// One end has closed both directions, and the other goes on sending.
fn for_data_after_the_close(family: Family, first: Side) {
    let case = Case::new();
    let pair = case.establish(family);
    let connection = pair.connection;
    let (active, mut passive) = pair.split(first);
    drop(active);
    drain(&passive);
    case.bed.wait_until("the FIN is acknowledged", |link| link.has_fin_acknowledged(first));
    passive.write_all(b"are you still there?").unwrap();
    await_hang_up(&passive);
    assert_eq!(passive.write_all(b"no").unwrap_err().kind(), ErrorKind::BrokenPipe);
    drop(passive);
    let flow = case.flow(connection);
    assert_eq!(flow.count(first.other(), Packet::is_fin), 0);

    let ends = case.ends(connection, Expect::BOTH);
    // The record may come before or after the reset: the socket was gone by then.
    let close = ends.close(first);
    close.assert_is("close.initiator", "local");
    close.assert_one_of_or_unknown("close.style", &["four_segments", "reset_sent"]);
    close.assert_near("close.ack_wait_us", truth::ack_wait(&flow, first));
    close.assert_unknown("close.duration_us");
    let close = ends.close(first.other());
    close.assert_is("close.initiator", "remote");
    close.assert_is("close.style", "reset_received");
    close.assert_unknown("close.ack_wait_us");
}

/// As after a restart of the remote host: it answers data with a RST, and only then this end notices.
fn from_a_host_without_the_connection(family: Family, reset: Side) {
    let case = Case::new();
    let pair = case.establish(family);
    let connection = pair.connection;
    let (mut active, passive) = pair.split(reset);
    case.bed.fault(faults::reset(reset, Packet::has_data));
    active.write_all(b"do you remember me?").unwrap();
    await_input(&active);
    assert!(active.take_error().unwrap().is_some());
    drop(active);
    case.bed.mend();
    // The other end still has the connection; its FIN is answered with a RST.
    drop(passive);
    let flow = case.flow(connection);
    assert_eq!(flow.count(reset, Packet::is_rst), 1, "the answer to the FIN");

    let ends = case.ends(connection, Expect::BOTH);
    let close = ends.close(reset);
    close.assert_is("close.style", "reset_received");
    close.assert_is("close.initiator", "remote");
    check_no_fin(close);
    let close = ends.close(reset.other());
    close.assert_is("close.style", "reset_received");
    close.assert_is("close.initiator", "local");
    close.assert_unknown("close.ack_wait_us");
}

/// The server closes its listener with a connection still in the accept queue.
fn never_accepted(family: Family) {
    let case = Case::new();
    let (listener, address) = case.bed.listen(family);
    let client = case.bed.socket(Side::Client, family);
    client.connect(&address.into()).unwrap();
    await_input(&listener);
    drop(listener);
    await_input(&client);
    drop(client);
    let connection = case.connection();
    let flow = case.flow(connection);
    assert_eq!(flow.count(Side::Server, Packet::is_rst), 1);

    check_reset(&case.ends(connection, Expect::BOTH), Side::Server);
}
