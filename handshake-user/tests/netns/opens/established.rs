//! Connections established without loss, by usual and unusual calls.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use nix::libc;
use socket2::Socket;

use crate::{
    case::{Case, ms, pause},
    ends::{Ends, Expect},
    functions,
    handshakes::{self, Ladder},
    pair::Pair,
    socket::{await_connect, begin_connect, drain, kernel_rtt},
    testbed::{
        Family,
        capture::{Capture, Connection},
        packet::{Packet, Side},
    },
    truth,
};

for_each_family!(
    plain,
    non_blocking,
    repeated_connect_calls,
    from_a_chosen_port,
    within_one_namespace,
    slow_to_be_accepted,
    simultaneous,
);

/// The `open` records of both ends when nothing went wrong.
#[track_caller]
pub(super) fn check_plain(ends: &Ends, flow: &Capture) {
    let client = ends.open(Side::Client);
    let server = ends.open(Side::Server);
    let truths = [(client, truth::client_open(flow)), (server, truth::server_open(flow))];
    for (open, truth) in truths {
        open.assert_is("open.outcome", "established");
        open.assert_near("open.duration_us", truth);
        open.assert_near("open.rtt_us", truth);
        open.assert_count("open.syn_retransmits", 0);
        open.assert_is("open.final_ack", "bare");
        open.assert_is("open.fast_open", "none");
    }
    client.assert_unknown("open.syn_cookie");
    functions::check_syn_cookie(server, false);
    ends.check_own_process();
}

fn plain(family: Family) {
    let case = Case::new();
    let pair = case.establish(family);
    let smoothed = [kernel_rtt(&pair.client), kernel_rtt(&pair.server)];
    let connection = pair.finish();
    let flow = case.flow(connection);

    let ends = case.ends(connection, Expect::BOTH);
    check_plain(&ends, &flow);
    handshakes::check(Ladder::ThreeWayHandshake, &case, &ends, Side::Client);
    ends.open(Side::Client).assert_near("open.rtt_us", smoothed[0]);
    ends.open(Side::Server).assert_near("open.rtt_us", smoothed[1]);
    for (side, netns) in [Side::Client, Side::Server].map(|side| (side, case.bed.namespace(side).inode())) {
        assert!(ends.open(side).number("netns").is_none_or(|number| number == netns), "{}", ends.open(side));
    }
}

fn non_blocking(family: Family) {
    let case = Case::new();
    let (listener, address) = case.bed.listen(family);
    let client = case.bed.socket(Side::Client, family);
    begin_connect(&client, address);
    await_connect(&client);
    client.set_nonblocking(false).unwrap();
    let connection = Pair::accepted(client, &listener).finish();
    let flow = case.flow(connection);

    check_plain(&case.ends(connection, Expect::BOTH), &flow);
}

/// Some event loops call `connect()` repeatedly until it reports that the connection is established.
fn repeated_connect_calls(family: Family) {
    let case = Case::new();
    let (listener, address) = case.bed.listen(family);
    let client = case.bed.socket(Side::Client, family);
    begin_connect(&client, address);
    for _ in 0..3 {
        pause(10);
        let error = client.connect(&address.into()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EALREADY));
    }
    await_connect(&client);
    client.connect(&address.into()).unwrap();
    let error = client.connect(&address.into()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EISCONN));
    client.set_nonblocking(false).unwrap();
    let connection = Pair::accepted(client, &listener).finish();
    let flow = case.flow(connection);

    check_plain(&case.ends(connection, Expect::BOTH), &flow);
}

fn from_a_chosen_port(family: Family) {
    let case = Case::new();
    let here = SocketAddr::new(case.bed.address(Side::Client, family), 40_123);
    let pair = case.establish_with(family, |client| client.bind(&here.into()).unwrap(), |_| ());
    assert_eq!(pair.connection.client, here);
    let connection = pair.finish();
    let flow = case.flow(connection);

    check_plain(&case.ends(connection, Expect::BOTH), &flow);
}

/// The server program is slow to call `accept()`; the kernel completes the handshake without it.
fn slow_to_be_accepted(family: Family) {
    let case = Case::new();
    let (listener, address) = case.bed.listen(family);
    let client = case.bed.socket(Side::Client, family);
    client.connect(&address.into()).unwrap();
    pause(200);
    let connection = Pair::accepted(client, &listener).finish();
    let flow = case.flow(connection);

    check_plain(&case.ends(connection, Expect::BOTH), &flow);
}

/// Two ends dial each other at the same moment (RFC 9293 §3.5), and neither listens. The kernel's sample of
/// the round trip begins at the SYN-ACK that answers the crossing SYN: half of the truth.
fn simultaneous(family: Family) {
    let case = Case::new();
    let here = |side: Side| SocketAddr::new(case.bed.address(side, family), 40_124);
    let dial = |side: Side| {
        let socket = case.bed.socket(side, family);
        socket.bind(&here(side).into()).unwrap();
        begin_connect(&socket, here(side.other()));
        socket
    };
    let [client, server] = [Side::Client, Side::Server].map(dial);
    for socket in [&client, &server] {
        await_connect(socket);
        socket.set_nonblocking(false).unwrap();
    }
    let connection = Connection { client: here(Side::Client), server: here(Side::Server) };
    Pair { client, server, connection }.finish();
    let flow = case.flow(connection);
    for side in [Side::Client, Side::Server] {
        let answer = flow.sent(side, Packet::is_syn_ack);
        assert!(answer < flow.got(side, Packet::is_syn_ack), "the SYNs did not cross");
    }

    let ends = case.ends(connection, Expect::BOTH);
    for side in [Side::Client, Side::Server] {
        let open = ends.open(side);
        open.assert_is("role", "client");
        open.assert_is("open.outcome", "established");
        let took = flow.got(side, Packet::is_syn_ack) - flow.sent(side, Packet::is_syn);
        open.assert_near("open.duration_us", took);
        assert_eq!(open.get("open.simultaneous"), Some(&true.into()), "{open}");
        open.assert_unknown("open.rtt_us");
        open.assert_unknown("open.final_ack");
        open.assert_count("open.syn_retransmits", 0);
    }
}

/// Both ends are in one namespace, without the link between them.
fn within_one_namespace(family: Family) {
    let case = Case::new();
    let (listener, address) = case.bed.listen_on(Side::Client, family, |_| ());
    let client = case.bed.socket(Side::Client, family);
    client.connect(&address.into()).unwrap();
    let connection = Pair::accepted(client, &listener).finish();

    let ends = case.ends(connection, Expect::BOTH);
    for side in [Side::Client, Side::Server] {
        let open = ends.open(side);
        open.assert_is("open.outcome", "established");
        open.assert_near("open.duration_us", Duration::ZERO);
        open.assert_near_or_unknown("open.rtt_us", Duration::ZERO);
        open.assert_is("open.final_ack", "bare");
    }
    ends.check_own_process();
}

/// IPv6 sockets with IPv4-mapped addresses: the records have the family and addresses on the wire.
#[test]
fn to_a_listener_for_both_families() {
    let case = Case::new();
    let listener: Socket = case.bed.socket(Side::Server, Family::V6);
    listener.set_only_v6(false).unwrap();
    listener.bind(&SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0).into()).unwrap();
    listener.listen(1).unwrap();
    let port = listener.local_addr().unwrap().as_socket().unwrap().port();
    let IpAddr::V4(server) = case.bed.address(Side::Server, Family::V4) else { unreachable!() };
    let mapped = |address: Ipv4Addr| SocketAddr::new(address.to_ipv6_mapped().into(), port);
    let client = case.bed.socket(Side::Client, Family::V6);
    client.connect(&mapped(server).into()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    drop(client);
    drain(&accepted);
    drop(accepted);
    let connection = case.connection();
    let flow = case.flow(connection);
    assert!(flow.sent(Side::Client, Packet::is_syn).elapsed() > ms(50));

    check_plain(&case.ends(connection, Expect::BOTH), &flow);
}
