//! Peers that have stopped answering.

use std::{io::Write, time::Duration};

use nix::libc;
use socket2::{Socket, TcpKeepalive};

use crate::{
    case::{Case, pause},
    ends::Expect,
    server::await_no_socket,
    socket::await_input,
    testbed::{
        Family,
        capture::{Capture, Connection},
        faults::{self, Verdict},
        packet::{Packet, Side},
    },
    truth,
};

for_each_family_and_side!(user_timeout, user_timeout_of_an_unreachable_peer, keepalive);
for_each_family!(fin_never_acknowledged, fin_lost_once, last_ack_lost_once);

/// The link breaks, and one end detects it.
fn detect(family: Family, detecting: Side, prepare: impl FnOnce(&Socket), provoke: impl FnOnce(&mut Socket)) {
    detect_by(faults::blackhole(), libc::ETIMEDOUT, family, detecting, prepare, provoke);
}

/// The same for a fault that leaves this error.
fn detect_by(
    fault: impl FnMut(&Packet) -> Verdict + Send + 'static,
    errno: i32,
    family: Family,
    detecting: Side,
    prepare: impl FnOnce(&Socket),
    provoke: impl FnOnce(&mut Socket),
) {
    let case = Case::new();
    let pair = case.establish(family);
    let connection = pair.connection;
    let (mut active, passive) = pair.split(detecting);
    prepare(&active);
    case.bed.fault(fault);
    provoke(&mut active);
    await_input(&active);
    let error = active.take_error().unwrap().expect("an error, not data");
    assert_eq!(error.raw_os_error(), Some(errno));
    drop(active);
    case.bed.mend();
    // The other end does not know yet: its FIN reaches a host that no longer has the connection.
    drop(passive);
    let flow: Capture = case.flow(connection);
    assert_eq!(flow.count(detecting, Packet::is_fin), 0);

    let ends = case.ends(connection, Expect::BOTH);
    let close = ends.close(detecting);
    close.assert_is("close.style", "timed_out");
    for path in ["close.duration_us", "close.ack_wait_us", "close.app_wait_us"] {
        close.assert_unknown(path);
    }
    let close = ends.close(detecting.other());
    close.assert_is("close.style", "reset_received");
    close.assert_is("close.initiator", "local");
}

fn user_timeout(family: Family, detecting: Side) {
    detect(
        family,
        detecting,
        |socket| socket.set_tcp_user_timeout(Some(Duration::from_millis(500))).unwrap(),
        |socket| socket.write_all(b"into the void").unwrap(),
    );
}

/// The retransmission timer gives up with the last error that ICMP reported, instead of ETIMEDOUT.
fn user_timeout_of_an_unreachable_peer(family: Family, detecting: Side) {
    detect_by(
        faults::vanished(detecting),
        libc::EHOSTUNREACH,
        family,
        detecting,
        |socket| socket.set_tcp_user_timeout(Some(Duration::from_millis(500))).unwrap(),
        |socket| socket.write_all(b"into the void").unwrap(),
    );
}

fn keepalive(family: Family, detecting: Side) {
    let second = Duration::from_secs(1);
    let settings = TcpKeepalive::new().with_time(second).with_interval(second).with_retries(1);
    detect(family, detecting, |socket| socket.set_tcp_keepalive(&settings).unwrap(), |_| ());
}

/// The socket is already orphaned when the kernel gives up.
fn fin_never_acknowledged(family: Family) {
    let case = Case::new();
    case.bed.sysctl(Side::Client, "ipv4/tcp_orphan_retries", "1");
    let pair = case.establish(family);
    let connection: Connection = pair.connection;
    case.bed.fault(faults::blackhole());
    drop(pair.client);
    await_no_socket(&case.bed, Side::Client, connection.client.port());
    case.bed.mend();
    drop(pair.server);
    let flow = case.flow(connection);
    let fins = flow.count(Side::Client, Packet::is_fin);
    assert!(fins >= 2, "{fins} FINs");
    assert_eq!(flow.count(Side::Client, Packet::is_rst), 1, "the client's kernel did not give up");

    let ends = case.ends(connection, Expect::BOTH);
    let close = ends.close(Side::Client);
    close.assert_is("close.style", "timed_out");
    close.assert_is("close.initiator", "local");
    close.assert_unknown("close.ack_wait_us");
    close.assert_unknown("close.duration_us");
    let close = ends.close(Side::Server);
    close.assert_is("close.style", "reset_received");
    close.assert_is("close.initiator", "local");
}

/// The reported wait includes the retransmission.
fn fin_lost_once(family: Family) {
    let case = Case::new();
    let pair = case.establish(family);
    let connection = pair.connection;
    case.bed.fault(faults::drop_first(1, Side::Client, Packet::is_fin));
    drop(pair.client);
    await_input(&pair.server);
    // A program that is slow to close.
    pause(100);
    drop(pair.server);
    let flow = case.flow(connection);
    assert!(flow.count(Side::Client, Packet::is_fin) >= 2);

    let ends = case.ends(connection, Expect::BOTH);
    super::check_orphan(&ends, &flow, Side::Client);
    super::check_passive(&ends, &flow, Side::Server, "four_segments");
}

fn last_ack_lost_once(family: Family) {
    let case = Case::new();
    let pair = case.establish(family);
    let connection = pair.connection;
    drop(pair.client);
    case.bed.wait_until("the FIN is acknowledged", |link| link.has_fin_acknowledged(Side::Client));
    case.bed.fault(faults::drop_first(1, Side::Client, Packet::is_bare_ack));
    drop(pair.server);
    case.bed.wait_until("the FIN is retransmitted", |link| link.count(Side::Server, Packet::is_fin) >= 2);
    let flow = case.flow(connection);
    assert!(flow.count(Side::Server, Packet::is_fin) >= 2);
    assert!(truth::ack_wait(&flow, Side::Server) > Duration::from_millis(150));

    let ends = case.ends(connection, Expect::BOTH);
    super::check_orphan(&ends, &flow, Side::Client);
    super::check_passive(&ends, &flow, Side::Server, "four_segments");
}
