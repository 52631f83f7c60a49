//! Connection attempts that fail.

use std::net::SocketAddr;

use nix::libc;
use socket2::Socket;

use crate::{
    case::{Case, ms, pause},
    ends::Expect,
    record::Record,
    socket::{await_connect, begin_connect, set_tcp_option, timed},
    testbed::{
        Family, faults,
        packet::{Packet, Side},
    },
    truth,
};

for_each_family!(
    refused,
    refused_and_noticed_late,
    timed_out,
    unreachable,
    aborted,
    aborted_in_a_blackhole,
    reset_before_the_server_was_established
);

/// A port without a listener.
fn closed_port(case: &Case, family: Family) -> SocketAddr {
    SocketAddr::new(case.bed.address(Side::Server, family), 9)
}

/// The client has one `open` record and there is nothing else. Without a SYN-ACK there is no round trip to
/// report.
#[track_caller]
fn check_failed(case: &Case, outcome: &str, retransmits: usize) -> Record {
    let ends = case.ends(case.connection(), Expect::CLIENT_FAILED);
    let open = ends.open(Side::Client);
    open.assert_is("open.outcome", outcome);
    open.assert_unknown("open.rtt_us");
    open.assert_unknown("open.final_ack");
    open.assert_unknown("close");
    open.assert_count("open.syn_retransmits", retransmits);
    open.assert_process(std::process::id());
    open.clone()
}

fn refused(family: Family) {
    let case = Case::new();
    let client = case.bed.socket(Side::Client, family);
    let result = client.connect(&closed_port(&case, family).into());
    assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::ECONNREFUSED));

    check_refused(&case);
}

/// The duration runs from the SYN to the RST.
#[track_caller]
fn check_refused(case: &Case) {
    let flow = case.flow(case.connection());
    let truth = flow.got(Side::Client, Packet::is_rst) - flow.sent(Side::Client, Packet::is_syn);
    check_failed(case, "refused", 0).assert_near_or_unknown("open.duration_us", truth);
}

/// The program asks for the result long after the RST has arrived.
fn refused_and_noticed_late(family: Family) {
    let case = Case::new();
    let client = case.bed.socket(Side::Client, family);
    begin_connect(&client, closed_port(&case, family));
    pause(300);
    await_connect(&client);
    assert_eq!(client.take_error().unwrap().unwrap().raw_os_error(), Some(libc::ECONNREFUSED));
    drop(client);

    check_refused(&case);
}

fn timed_out(family: Family) {
    let case = Case::new();
    case.bed.fault(faults::drop_all(Packet::is_syn));
    let client = case.bed.socket(Side::Client, family);
    set_tcp_option(&client, libc::TCP_SYNCNT, 1);
    let (taken, result) = timed(|| client.connect(&closed_port(&case, family).into()));
    assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::ETIMEDOUT));
    // How many SYNs are retransmitted with TCP_SYNCNT set to 1 differs between kernels.
    let retransmitted = case.bed.capture().count(Side::Client, Packet::is_syn) - 1;
    assert!(retransmitted > 0);

    check_failed(&case, "timed_out", retransmitted).assert_near_or_unknown("open.duration_us", taken);
}

fn unreachable(family: Family) {
    let case = Case::new();
    case.bed.fault(faults::host_unreachable());
    let client = case.bed.socket(Side::Client, family);
    let (taken, result) = timed(|| client.connect(&closed_port(&case, family).into()));
    assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EHOSTUNREACH));

    check_failed(&case, "unreachable", 0).assert_near_or_unknown("open.duration_us", taken);
}

fn abort_after_20_ms(case: &Case, client: Socket, address: SocketAddr) {
    // Measured, because a busy machine makes the pause longer.
    let (taken, ()) = timed(|| {
        begin_connect(&client, address);
        pause(20);
        drop(client);
    });
    case.bed.wait_until_quiet();

    check_failed(case, "aborted", 0).assert_near_or_unknown("open.duration_us", taken);
}

/// The server's SYN-ACK finds the client's socket gone; the server never has a connection.
fn aborted(family: Family) {
    let case = Case::new();
    let (_listener, address) = case.bed.listen(family);
    let client = case.bed.socket(Side::Client, family);
    abort_after_20_ms(&case, client, address);
}

fn aborted_in_a_blackhole(family: Family) {
    let case = Case::new();
    case.bed.fault(faults::blackhole());
    let client = case.bed.socket(Side::Client, family);
    abort_after_20_ms(&case, client, closed_port(&case, family));
}

/// The final ACK is lost and the client resets at once: the server never has a connection.
fn reset_before_the_server_was_established(family: Family) {
    let case = Case::new();
    case.bed.fault(faults::drop_first(1, Side::Client, Packet::is_bare_ack));
    let (listener, address) = case.bed.listen(family);
    let client = case.bed.socket(Side::Client, family);
    client.connect(&address.into()).unwrap();
    client.set_linger(Some(ms(0))).unwrap();
    drop(client);
    let connection = case.connection();
    let flow = case.flow(connection);
    drop(listener);

    let ends = case.ends(connection, Expect { client: (1, 1), server: (0, 0) });
    let open = ends.open(Side::Client);
    open.assert_is("open.outcome", "established");
    open.assert_near("open.duration_us", truth::client_open(&flow));
    ends.close(Side::Client).assert_is("close.style", "reset_sent");
}
