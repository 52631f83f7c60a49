//! What only a hook on a kernel function tells: right where the tracer hooks it, and unknown where the kernel
//! refuses that, as 6.18 of the development machine does.

use std::{process, thread, time::Instant};

use crate::{
    case::{Case, ms, pause},
    ends::Expect,
    histograms,
    pair::Pair,
    program::Scrape,
    record::Record,
    testbed::{
        Family,
        capture::{Capture, Connection},
        packet::{Packet, Side},
    },
    tracer::Tracer,
    truth,
};

for_each_family!(accepted_after_a_while, accepted_at_once, accepted_by_another_process_than_closes);

const ACCEPT: &str = "inet_csk_accept";
const WAIT: &str = "open.accept_wait_us";

/// Whether the tracer has hooked this function, which it says.
pub(crate) fn is_hooked(function: &str) -> bool {
    Tracer::shared().stderr().contains(&format!("{function} ("))
}

/// How the process is known of a connection that one process accepted and closed.
pub(crate) fn closer() -> &'static str {
    if is_hooked(ACCEPT) { "accept" } else { "close" }
}

/// Whether a server's connection was made from a SYN cookie.
#[track_caller]
pub(crate) fn check_syn_cookie(server: &Record, is_cookie: bool) {
    let found = server.get("open.syn_cookie");
    if is_hooked("tcp_get_cookie_sock") {
        assert_eq!(found, Some(&is_cookie.into()), "{server}");
    } else {
        assert!(found.is_none_or(|found| found == is_cookie && !is_cookie), "{server}");
    }
}

/// When the server's connection was established, by the link.
fn ready(flow: &Capture) -> Instant {
    flow.from(Side::Server, Packet::is_syn_ack)[0].arrived + truth::server_open(flow)
}

fn accepted_after_a_while(family: Family) {
    let case = Case::new();
    let (listener, address) = case.bed.listen(family);
    let client = case.bed.socket(Side::Client, family);
    client.connect(&address.into()).unwrap();
    pause(300);
    let pair = Pair::accepted(client, &listener);
    let accepted = Instant::now();
    let connection = pair.finish();
    let flow = case.flow(connection);

    let ends = case.ends(connection, Expect::BOTH);
    ends.open(Side::Server).assert_is("process.by", "listener");
    ends.close(Side::Client).assert_unknown(WAIT);
    let close = ends.close(Side::Server);
    close.assert_process(process::id());
    close.assert_is("process.by", closer());
    if is_hooked(ACCEPT) {
        close.assert_near(WAIT, accepted - ready(&flow));
    } else {
        close.assert_unknown(WAIT);
    }
}

/// The program is in `accept()` already. The network's time is not in its wait.
fn accepted_at_once(family: Family) {
    let case = Case::new();
    let (listener, address) = case.bed.listen(family);
    let client = case.bed.socket(Side::Client, family);
    let pair = thread::scope(|scope| {
        let server = scope.spawn(|| listener.accept().unwrap().0);
        pause(50);
        client.connect(&address.into()).unwrap();
        let server = server.join().unwrap();
        let connection =
            Connection { client: client.local_addr().unwrap().as_socket().unwrap(), server: address };
        Pair { client: client.try_clone().unwrap(), server, connection }
    });
    drop(client);
    let connection = pair.finish();
    let ends = case.ends(connection, Expect::BOTH);
    let close = ends.close(Side::Server);
    close.assert_is("process.by", closer());
    if is_hooked(ACCEPT) {
        close.assert_near(WAIT, ms(0));
    } else {
        close.assert_unknown(WAIT);
    }
}

/// A server that forks for each connection: the child closes it.
fn accepted_by_another_process_than_closes(family: Family) {
    let case = Case::new();
    let (listener, address) = case.bed.listen(family);
    let client = case.bed.socket(Side::Client, family);
    client.connect(&address.into()).unwrap();
    pause(100);
    let Pair { client, server, connection } = Pair::accepted(client, &listener);
    // It has the connection as its standard input, and ends with it.
    let mut child = process::Command::new("cat")
        .stdin(process::Stdio::from(std::os::fd::OwnedFd::from(server)))
        .stdout(process::Stdio::null())
        .spawn()
        .unwrap();
    drop(client);
    child.wait().unwrap();

    let ends = case.ends(connection, Expect::BOTH);
    let close = ends.close(Side::Server);
    close.assert_process(child.id());
    close.assert_is("process.by", "close");
    if is_hooked(ACCEPT) {
        assert!(close.micros(WAIT).is_some_and(|wait| wait >= ms(50)), "{close}");
    } else {
        close.assert_unknown(WAIT);
    }
}

/// While the connection lives, or with its record where the kernel refuses the programs that fill histograms.
#[test]
fn accept_waits_are_observed_in_their_bucket() {
    const WAITS: &str = "handshake_tcp_accept_wait_seconds";
    const A_SECOND: [&str; 2] = ["0.95", "100"];
    let case = Case::over(ms(2));
    let daemon = histograms::start(&["--tls-libraries", "off"]);
    let before = daemon.scrape();
    let (listener, address) = case.bed.listen(Family::V6);
    let client = case.bed.socket(Side::Client, Family::V6);
    client.connect(&address.into()).unwrap();
    pause(1000);
    let pair = Pair::accepted(client, &listener);
    let rise = |after: &Scrape| histograms::rise(WAITS, &["family=\"ipv6\""], A_SECOND, [&before, after]);
    let alive = daemon.scrape();
    pair.finish();
    if !is_hooked(ACCEPT) {
        let all = daemon.scrape().sum(&format!("{WAITS}_count"), &[]);
        assert!(all < 0.5, "{all} waits without a hook");
        return;
    }
    if !daemon.said().contains("records fill them") {
        assert!(rise(&alive) > 0.5, "{} waits of a second", rise(&alive));
    }
    let ended = daemon.scrape_until(|ended| rise(ended) > 0.5);
    assert!(rise(&ended) > 0.5, "{} waits of a second", rise(&ended));
}
