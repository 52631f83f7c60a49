//! TCP Fast Open: data in the SYN (RFC 7413).

use std::{io::Write, mem::MaybeUninit, net::SocketAddr, thread};

use nix::libc;
use socket2::Socket;

use crate::{
    case::{Case, RTT, ms, pause},
    ends::{Ends, Expect},
    handshakes::{self, Ladder},
    pair::Pair,
    program::machine::tolerance,
    socket::{await_input, drain, set_tcp_option, tcp_info},
    testbed::{
        Family,
        capture::{Capture, Connection},
        faults::{self, Verdict},
        packet::{Packet, Side},
    },
    truth,
};

for_each_family!(
    cookie_requested,
    cookie_requested_by_connect,
    data_accepted,
    data_rejected_after_a_key_change,
    data_rejected_by_a_server_without_fast_open,
    data_lost_with_the_syn,
    data_accepted_with_a_late_first_write,
    data_accepted_without_a_cookie,
    data_accepted_without_a_cookie_by_socket_options,
    data_accepted_by_any_listener,
    data_accepted_with_the_experimental_option,
    answered_before_the_final_ack,
    closed_by_the_server_at_once,
    closed_by_the_server_and_acknowledged_late,
    reset_before_establishment,
);

const EARLY: &[u8] = b"data in the SYN";
/// `net.ipv4.tcp_fastopen`: the client sends data in the SYN without having a cookie.
const CLIENT_WITHOUT_COOKIE: &str = "5";
/// The server takes it.
const SERVER_WITHOUT_COOKIE: &str = "515";
/// Every listener has Fast Open, without `TCP_FASTOPEN`.
const SERVER_WITHOUT_OPTION: &str = "1027";
/// Of `linux/tcp.h`.
const TCP_FASTOPEN_NO_COOKIE: libc::c_int = 34;

/// A server with Fast Open, and a client that has a cookie once it has connected.
struct FastOpen {
    case: Case,
    listener: Socket,
    address: SocketAddr,
    family: Family,
}

impl FastOpen {
    fn new(family: Family) -> Self {
        Self::with(family, ["3", "3"], |listener| set_tcp_option(listener, libc::TCP_FASTOPEN, 16))
    }

    /// With these values of `tcp_fastopen` on the client and on the server.
    fn with(family: Family, settings: [&str; 2], prepare: impl FnOnce(&Socket)) -> Self {
        let case = Case::new();
        for (side, setting) in [Side::Client, Side::Server].into_iter().zip(settings) {
            case.bed.sysctl(side, "ipv4/tcp_fastopen", setting);
            // After losses the kernel suspects a firewall that drops Fast Open, and disables it for an hour.
            case.bed.sysctl(side, "ipv4/tcp_fastopen_blackhole_timeout_sec", "0");
        }
        let (listener, address) = case.bed.listen_on(Side::Server, family, prepare);
        Self { case, listener, address, family }
    }

    fn with_cookie(family: Family) -> Self {
        let this = Self::new(family);
        this.connect().finish();
        this.case.bed.wait_until_quiet();
        this
    }

    fn client(&self) -> Socket {
        self.case.bed.socket(Side::Client, self.family)
    }

    fn send_with_the_syn(&self, client: &Socket) {
        let sent = client.send_to_with_flags(EARLY, &self.address.into(), libc::MSG_FASTOPEN);
        assert_eq!(sent.unwrap(), EARLY.len());
    }

    /// Connects, with data in the SYN if the client has a cookie.
    fn connect(&self) -> Pair {
        let client = self.client();
        self.send_with_the_syn(&client);
        self.accept(client)
    }

    fn accept(&self, client: Socket) -> Pair {
        let pair = Pair::accepted(client, &self.listener);
        await_input(&pair.server);
        let length = pair.server.recv(&mut [MaybeUninit::uninit(); 64]).unwrap();
        assert_eq!(length, EARLY.len());
        pair
    }

    /// The newest connection, and what the link carried for it.
    fn flow(&self) -> (Connection, Capture) {
        self.case.bed.wait_until_quiet();
        let connection = *self.case.bed.capture().connections().last().unwrap();
        (connection, self.case.flow(connection))
    }
}

#[derive(Debug, PartialEq)]
enum Syn {
    WithoutData,
    DataAcknowledged,
    DataIgnored,
}

/// What became of the data in the SYN, by the link.
#[track_caller]
fn fate_of_syn(flow: &Capture) -> Syn {
    let syn = flow.from(Side::Client, Packet::is_syn);
    let syn = &syn.first().expect("a SYN").packet;
    let answer = flow.from(Side::Server, Packet::is_syn_ack);
    match (syn.has_data(), answer.first().expect("a SYN-ACK").packet.acknowledges(syn.end())) {
        (false, _) => Syn::WithoutData,
        (true, true) => Syn::DataAcknowledged,
        (true, false) => Syn::DataIgnored,
    }
}

#[track_caller]
fn check(ends: &Ends, flow: &Capture, fast_open: &str, seen_by_server: &[&str]) {
    let (client, server) = (ends.open(Side::Client), ends.open(Side::Server));
    client.assert_is("open.outcome", "established");
    client.assert_near("open.duration_us", truth::client_open(flow));
    client.assert_near("open.rtt_us", truth::client_open(flow));
    client.assert_is("open.fast_open", fast_open);
    client.assert_count("open.syn_retransmits", 0);
    server.assert_is("open.outcome", "established");
    server.assert_near("open.duration_us", truth::server_open(flow));
    server.assert_one_of_or_unknown("open.fast_open", seen_by_server);
    server.assert_count("open.syn_retransmits", 0);
    ends.check_own_process();
}

#[track_caller]
fn check_accepted(ends: &Ends, flow: &Capture) {
    assert_eq!(fate_of_syn(flow), Syn::DataAcknowledged);
    check(ends, flow, "data_accepted", &["data_accepted"]);
    ends.open(Side::Server).assert_is("open.fast_open", "data_accepted");
}

fn cookie_requested(family: Family) {
    let scene = FastOpen::new(family);
    scene.connect().finish();
    let (connection, flow) = scene.flow();
    assert_eq!(fate_of_syn(&flow), Syn::WithoutData);

    let ends = scene.case.ends(connection, Expect::BOTH);
    check(&ends, &flow, "cookie_requested", &["none", "cookie_requested"]);
    handshakes::check(Ladder::FastOpenCookieRequested, &scene.case, &ends, Side::Client);
}

/// Without a cookie, `connect()` sends the SYN despite `TCP_FASTOPEN_CONNECT`.
fn cookie_requested_by_connect(family: Family) {
    let scene = FastOpen::new(family);
    let mut client = scene.client();
    set_tcp_option(&client, libc::TCP_FASTOPEN_CONNECT, 1);
    client.connect(&scene.address.into()).unwrap();
    client.write_all(EARLY).unwrap();
    scene.accept(client).finish();
    let (connection, flow) = scene.flow();
    assert_eq!(fate_of_syn(&flow), Syn::WithoutData);

    let ends = scene.case.ends(connection, Expect::BOTH);
    check(&ends, &flow, "cookie_requested", &["none", "cookie_requested"]);
}

fn data_accepted(family: Family) {
    let scene = FastOpen::with_cookie(family);
    let pair = scene.connect();
    assert_ne!(tcp_info(&pair.client).tcpi_options & 32, 0, "TCPI_OPT_SYN_DATA");
    pair.finish_after(300);
    let (connection, flow) = scene.flow();

    let ends = scene.case.ends(connection, Expect::BOTH);
    check_accepted(&ends, &flow);
    handshakes::check(Ladder::FastOpenDataAccepted, &scene.case, &ends, Side::Client);
}

/// `connect()` succeeds at once and sends nothing; establishment starts with the first write, much later.
fn data_accepted_with_a_late_first_write(family: Family) {
    let scene = FastOpen::with_cookie(family);
    let mut client = scene.client();
    set_tcp_option(&client, libc::TCP_FASTOPEN_CONNECT, 1);
    client.connect(&scene.address.into()).unwrap();
    pause(300);
    client.write_all(EARLY).unwrap();
    scene.accept(client).finish_after(300);
    let (connection, flow) = scene.flow();
    let taken = truth::client_open(&flow);
    assert_time!(taken < RTT + tolerance(ms(10)), "establishment took {taken:?} on the link");

    check_accepted(&scene.case.ends(connection, Expect::BOTH), &flow);
}

fn data_accepted_without_a_cookie(family: Family) {
    let enable = |listener: &Socket| set_tcp_option(listener, libc::TCP_FASTOPEN, 16);
    let scene = FastOpen::with(family, [CLIENT_WITHOUT_COOKIE, SERVER_WITHOUT_COOKIE], enable);
    check_accepted_at_once(&scene, |_| ());
}

fn data_accepted_without_a_cookie_by_socket_options(family: Family) {
    let scene = FastOpen::with(family, ["3", "3"], |listener| {
        set_tcp_option(listener, libc::TCP_FASTOPEN, 16);
        set_tcp_option(listener, TCP_FASTOPEN_NO_COOKIE, 1);
    });
    check_accepted_at_once(&scene, |client| set_tcp_option(client, TCP_FASTOPEN_NO_COOKIE, 1));
}

/// The client's first connection, so that it has no cookie.
#[track_caller]
fn check_accepted_at_once(scene: &FastOpen, prepare: impl FnOnce(&Socket)) {
    let client = scene.client();
    prepare(&client);
    scene.send_with_the_syn(&client);
    scene.accept(client).finish_after(300);
    let (connection, flow) = scene.flow();

    check_accepted(&scene.case.ends(connection, Expect::BOTH), &flow);
}

fn data_accepted_by_any_listener(family: Family) {
    let scene = FastOpen::with(family, ["3", SERVER_WITHOUT_OPTION], |_| ());
    scene.connect().finish();
    scene.case.bed.wait_until_quiet();
    scene.connect().finish_after(300);
    let (connection, flow) = scene.flow();

    check_accepted(&scene.case.ends(connection, Expect::BOTH), &flow);
}

/// A server without Fast Open makes the client try the option's experimental number (RFC 7413 §4.1.1).
fn data_accepted_with_the_experimental_option(family: Family) {
    const EXPERIMENTAL: [u8; 2] = [0xf9, 0x89];
    let scene = FastOpen::new(family);
    scene.case.bed.sysctl(Side::Server, "ipv4/tcp_fastopen", "0");
    scene.connect().finish();
    scene.case.bed.sysctl(Side::Server, "ipv4/tcp_fastopen", "3");
    for fast_open in ["cookie_requested", "data_accepted"] {
        scene.case.bed.wait_until_quiet();
        scene.connect().finish_after(300);
        let (connection, flow) = scene.flow();
        let syn = &flow.from(Side::Client, Packet::is_syn)[0].packet;
        let header = &syn.bytes[..syn.bytes.len() - syn.payload];
        assert!(header.windows(2).any(|bytes| bytes == EXPERIMENTAL), "another option");
        let ends = scene.case.ends(connection, Expect::BOTH);
        check(&ends, &flow, fast_open, &["none", "cookie_requested", "data_accepted"]);
    }
}

/// The client's kernel holds its final ACK back for data, so that one segment acknowledges the SYN-ACK and
/// the server's answer, which left later: the sample of the server's kernel is that of the answer.
fn answered_before_the_final_ack(family: Family) {
    let scene = FastOpen::with_cookie(family);
    let client = scene.client();
    client.set_tcp_quickack(false).unwrap();
    let server = thread::scope(|scope| {
        scope.spawn(|| scene.send_with_the_syn(&client));
        await_input(&scene.listener);
        let (mut server, _) = scene.listener.accept().unwrap();
        server.recv(&mut [MaybeUninit::uninit(); 64]).unwrap();
        pause(20);
        server.write_all(b"an early answer").unwrap();
        server
    });
    await_input(&client);
    pause(100);
    drop(server);
    drain(&client);
    drop(client);
    let (connection, flow) = scene.flow();
    assert_eq!(fate_of_syn(&flow), Syn::DataAcknowledged);
    let answer = flow.from(Side::Server, Packet::has_data)[0].packet.end();
    let last = flow.from(Side::Client, |packet| !packet.is_syn())[0];
    assert!(last.packet.acknowledges(answer), "the final ACK came alone");
    let truth = truth::server_open(&flow);
    assert_time!(truth > RTT + ms(15), "establishment took {truth:?} on the link");

    let ends = scene.case.ends(connection, Expect::BOTH);
    let server = ends.open(Side::Server);
    server.assert_is("open.fast_open", "data_accepted");
    server.assert_near("open.duration_us", truth);
    server.assert_unknown("open.rtt_us");
    ends.open(Side::Client).assert_near("open.duration_us", truth::client_open(&flow));
}

fn data_rejected_after_a_key_change(family: Family) {
    data_rejected(family, |scene| {
        scene.case.bed.sysctl(Side::Server, "ipv4/tcp_fastopen_key", "00000001-00000002-00000003-00000004");
    });
}

fn data_rejected_by_a_server_without_fast_open(family: Family) {
    data_rejected(family, |scene| scene.case.bed.sysctl(Side::Server, "ipv4/tcp_fastopen", "0"));
}

fn data_rejected(family: Family, spoil: impl FnOnce(&FastOpen)) {
    let scene = FastOpen::with_cookie(family);
    spoil(&scene);
    scene.connect().finish();
    let (connection, flow) = scene.flow();
    assert_eq!(fate_of_syn(&flow), Syn::DataIgnored);

    let ends = scene.case.ends(connection, Expect::BOTH);
    check(&ends, &flow, "data_rejected", &["none", "cookie_requested", "data_rejected"]);
    handshakes::check(Ladder::FastOpenDataRejected, &scene.case, &ends, Side::Client);
}

/// The SYN is retransmitted without its data.
fn data_lost_with_the_syn(family: Family) {
    let scene = FastOpen::with_cookie(family);
    scene.case.bed.fault(faults::drop_first(1, Side::Client, Packet::is_syn));
    scene.connect().finish();
    let (connection, flow) = scene.flow();
    assert_eq!(fate_of_syn(&flow), Syn::DataIgnored);

    let ends = scene.case.ends(connection, Expect::BOTH);
    let (client, server) = (ends.open(Side::Client), ends.open(Side::Server));
    client.assert_is("open.fast_open", "data_rejected");
    client.assert_near("open.duration_us", truth::client_open(&flow));
    client.assert_near_or_unknown("open.rtt_us", RTT);
    client.assert_count("open.syn_retransmits", 1);
    server.assert_near("open.duration_us", truth::server_open(&flow));
    server.assert_one_of_or_unknown("open.fast_open", &["none", "cookie_requested"]);
    server.assert_count("open.syn_retransmits", 0);
}

fn closed_by_the_server_at_once(family: Family) {
    closed_by_the_server(&FastOpen::with_cookie(family));
}

/// The first round trip that the server's kernel measures is that of its FIN, not that of the handshake.
fn closed_by_the_server_and_acknowledged_late(family: Family) {
    let scene = FastOpen::with_cookie(family);
    let mut fin = None;
    scene.case.bed.fault(move |packet| {
        if packet.from == Side::Server && packet.is_fin() {
            fin = Some(packet.end());
        }
        let late = packet.from == Side::Client && fin.is_some_and(|end| packet.acknowledges(end));
        if late { Verdict::Delay(ms(40)) } else { Verdict::Pass }
    });
    closed_by_the_server(&scene);
}

/// The server has read the request and closes before the handshake is complete: the connection goes from
/// SYN-RECEIVED to FIN-WAIT-1, and the kernel does not report when the handshake was completed.
fn closed_by_the_server(scene: &FastOpen) {
    let client = scene.client();
    thread::scope(|scope| {
        scope.spawn(|| scene.send_with_the_syn(&client));
        await_input(&scene.listener);
        let (server, _) = scene.listener.accept().unwrap();
        server.recv(&mut [MaybeUninit::uninit(); 64]).unwrap();
        drop(server);
    });
    drain(&client);
    pause(50);
    drop(client);
    let (connection, flow) = scene.flow();
    assert_eq!(fate_of_syn(&flow), Syn::DataAcknowledged);
    assert!(flow.sent(Side::Server, Packet::is_fin) < flow.got(Side::Server, Packet::is_bare_ack));

    let ends = scene.case.ends(connection, Expect::BOTH);
    let (client, server) = (ends.open(Side::Client), ends.open(Side::Server));
    client.assert_is("open.fast_open", "data_accepted");
    client.assert_near("open.duration_us", truth::client_open(&flow));
    server.assert_is("open.fast_open", "data_accepted");
    server.assert_near_or_unknown("open.duration_us", truth::server_open(&flow));
    server.assert_near_or_unknown("open.rtt_us", truth::server_open(&flow));
    let close = ends.close(Side::Server);
    close.assert_is("close.initiator", "local");
    close.assert_near_or_unknown("close.ack_wait_us", truth::ack_wait(&flow, Side::Server));
    ends.close(Side::Client).assert_is("close.initiator", "remote");
}

/// The client's socket is gone when the SYN-ACK arrives: the server's half-open connection is reset.
fn reset_before_establishment(family: Family) {
    let scene = FastOpen::with_cookie(family);
    let client = scene.client();
    client.set_nonblocking(true).unwrap();
    let sent = client.send_to_with_flags(EARLY, &scene.address.into(), libc::MSG_FASTOPEN);
    assert!(sent.is_ok() || sent.is_err_and(|error| error.raw_os_error() == Some(libc::EINPROGRESS)));
    pause(10);
    drop(client);
    let (connection, flow) = scene.flow();
    assert_eq!(fate_of_syn(&flow), Syn::DataAcknowledged);
    assert_eq!(flow.count(Side::Client, Packet::is_rst), 1);

    let ends = scene.case.ends(connection, Expect { client: (1, 0), server: (1, 0) });
    ends.open(Side::Client).assert_is("open.outcome", "aborted");
    let server = ends.open(Side::Server);
    server.assert_is("open.outcome", "reset");
    server.assert_near_or_unknown("open.duration_us", RTT);
    server.assert_unknown("open.rtt_us");
}
