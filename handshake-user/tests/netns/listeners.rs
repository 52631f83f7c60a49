//! Which process listens is known from the opening on; openings that never began; accept queues.

use std::{
    collections::HashSet,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    process::{self, Stdio},
};

use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    case::{Case, ms, pause},
    ends::Expect,
    functions, histograms,
    pair::Pair,
    program::program,
    record::Record,
    server::{Server, await_listener, await_listener_of},
    socket::{await_connect, begin_connect},
    testbed::{Family, capture::Connection, packet::Side},
    tracer::Tracer,
};

for_each_family!(
    listener_of_one_address,
    listener_of_any_address,
    listener_from_before_the_tracer,
    listener_of_a_group_is_the_process_whose_socket_it_is,
    listener_of_one_address_and_of_any_are_told_apart,
    listener_with_forked_workers_is_the_process_that_called_listen,
    listener_whose_process_has_ended_is_the_one_that_inherited_it,
    listener_that_was_passed_on_is_the_program_that_serves,
    listener_of_multipath_tcp_is_known_by_its_subflow,
);

/// The opening of the server at `listener`, of which nothing is accepted before.
#[track_caller]
fn opening(case: &Case, family: Family, listener: &Socket) -> Record {
    let port = listener.local_addr().unwrap().as_socket().unwrap().port();
    let client = case.bed.socket(Side::Client, family);
    client.connect(&(case.bed.address(Side::Server, family), port).into_address()).unwrap();
    let Connection { client, server } = Pair::accepted(client, listener).finish();
    // A socket of IPv6 shows the addresses of IPv4 as mapped ones.
    let plain = |end: SocketAddr| SocketAddr::new(end.ip().to_canonical(), end.port());
    let connection = Connection { client: plain(client), server: plain(server) };
    let ends = case.ends(connection, Expect { client: (1, 1), server: (1, 1) });
    ends.open(Side::Client).assert_is("process.by", "connect");
    ends.close(Side::Server).assert_is("process.by", functions::closer());
    ends.open(Side::Server).clone()
}

trait IntoAddress {
    fn into_address(self) -> socket2::SockAddr;
}

impl IntoAddress for (IpAddr, u16) {
    fn into_address(self) -> socket2::SockAddr {
        SocketAddr::from(self).into()
    }
}

#[track_caller]
fn check(open: &Record) {
    open.assert_process(process::id());
    open.assert_is("process.by", "listener");
}

fn listener_of_one_address(family: Family) {
    let case = Case::new();
    let (listener, _) = case.bed.listen(family);
    check(&opening(&case, family, &listener));
}

/// One of IPv6 takes connections of both families.
fn listener_of_any_address(family: Family) {
    let case = Case::new();
    let listener = case
        .bed
        .namespace(Side::Server)
        .inside(|| Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP)).unwrap());
    listener.set_only_v6(false).unwrap();
    listener.bind(&(IpAddr::from([0_u16; 8]), 0).into_address()).unwrap();
    listener.listen(16).unwrap();
    check(&opening(&case, family, &listener));
}

fn listener_from_before_the_tracer(family: Family) {
    let mut case = Case::new();
    let (listener, _) = case.bed.listen(family);
    let tracer = Tracer::start(&[]).unwrap_or_else(|reason| panic!("{reason}"));
    case.listen_to(tracer.log());
    check(&opening(&case, family, &listener));
    tracer.stop();
}

/// See `programs/python/listener.py`.
fn server_on(case: &Case, side: Side, mode: &str, address: SocketAddr) -> Server {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/python/listener.py");
    let mut command = case.bed.command(side, "python3");
    command.arg(script).arg(mode).arg(address.ip().to_string()).arg(address.port().to_string());
    Server::start(command)
}

fn server(case: &Case, mode: &str, address: SocketAddr) -> Server {
    let server = server_on(case, Side::Server, mode, address);
    await_listener(&case.bed, address.port());
    server
}

/// Connects to a server program. Returns the process that it says has accepted the connection, and the
/// records of the opening and, where it shows the process, of the close of that end.
#[track_caller]
fn visit_from(case: &Case, side: Side, to: SocketAddr) -> (u32, Record) {
    let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
    let mut client = case.bed.socket(side, family);
    client.connect(&to.into()).unwrap();
    let mut said = [0; 16];
    let length = client.read(&mut said).unwrap();
    let accepted_by = str::from_utf8(&said[..length]).unwrap().parse().unwrap();
    let local = client.local_addr().unwrap().as_socket();
    client.write_all(b".").unwrap();
    drop(client);
    let [open, close] = ["open", "close"].map(|event| {
        let mut found = case.records_of(|record| {
            record.is_event(event) && record.text("role") == Some("server") && record.end("remote") == local
        });
        assert_eq!(found.len(), 1);
        found.remove(0)
    });
    // The subflow of a socket of Multipath TCP may be closed by a kernel thread.
    if matches!(close.text("process.by"), Some("close" | "accept")) {
        close.assert_process(accepted_by);
    }
    (accepted_by, open)
}

#[track_caller]
fn visit(case: &Case, to: SocketAddr) -> (u32, Record) {
    visit_from(case, Side::Client, to)
}

fn server_address(case: &Case, family: Family, port: u16) -> SocketAddr {
    SocketAddr::new(case.bed.address(Side::Server, family), port)
}

/// Two processes, each with a socket of its own at the same address: the kernel chooses by a hash.
fn listener_of_a_group_is_the_process_whose_socket_it_is(family: Family) {
    let case = Case::over(ms(2));
    let address = server_address(&case, family, 7101);
    let servers = [server(&case, "single", address), server(&case, "single", address)];
    // The second one may not be there yet: until it is, the first one gets all.
    let wanted: HashSet<u32> = servers.iter().map(Server::pid).collect();
    let mut seen = HashSet::new();
    for _ in 0..200 {
        let (accepted_by, open) = visit(&case, address);
        open.assert_process(accepted_by);
        open.assert_is("process.by", "listener");
        seen.insert(accepted_by);
        if seen == wanted {
            return;
        }
    }
    panic!("{seen:?} have accepted connections, not {wanted:?}");
}

/// The kernel prefers the socket that is bound to the address; that of IPv6 takes IPv4 as well.
fn listener_of_one_address_and_of_any_are_told_apart(family: Family) {
    let case = Case::over(ms(2));
    let bound = server_address(&case, family, 7102);
    let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), bound.port());
    let of_any = server(&case, "single", any);
    let other = match family {
        Family::V4 => server_address(&case, Family::V6, bound.port()),
        Family::V6 => server_address(&case, Family::V4, bound.port()),
    };
    let (accepted_by, open) = visit(&case, bound);
    assert_eq!(accepted_by, of_any.pid());
    open.assert_process(of_any.pid());

    let of_bound = server(&case, "single", bound);
    let mut found = 0;
    for _ in 0..100 {
        let (accepted_by, open) = visit(&case, bound);
        open.assert_process(accepted_by);
        found = accepted_by;
        if found == of_bound.pid() {
            break;
        }
        pause(50);
    }
    assert_eq!(found, of_bound.pid(), "it is bound to the address");
    let (accepted_by, open) = visit(&case, other);
    assert_eq!(accepted_by, of_any.pid());
    open.assert_process(of_any.pid());
}

/// Two servers with the same address but for the namespace.
#[test]
fn listeners_of_two_namespaces_are_told_apart() {
    let case = Case::over(ms(2));
    let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 7103);
    let of_server = server(&case, "single", any);
    let of_client = server_on(&case, Side::Client, "single", any);
    await_listener_of(&case.bed, Side::Client, any.port());
    for (to, from, pid) in
        [(Side::Server, Side::Client, of_server.pid()), (Side::Client, Side::Server, of_client.pid())]
    {
        let address = SocketAddr::new(case.bed.address(to, Family::V4), any.port());
        let (accepted_by, open) = visit_from(&case, from, address);
        assert_eq!(accepted_by, pid);
        open.assert_process(pid);
        open.assert_is("process.by", "listener");
        assert_eq!(open.number("netns"), Some(case.bed.namespace(to).inode()));
    }
}

/// Whatever the workers call themselves, they run the same program; which of them accepts, only the close
/// shows.
fn listener_with_forked_workers_is_the_process_that_called_listen(family: Family) {
    let case = Case::over(ms(2));
    let address = server_address(&case, family, 7104);
    let server = server(&case, "prefork", address);
    // Longer than from one look at the open files to the next.
    for _ in 0..5 {
        let (accepted_by, open) = visit(&case, address);
        assert_ne!(accepted_by, server.pid());
        open.assert_process(server.pid());
        open.assert_is("process.by", "listener");
        open.assert_is("process.comm", "python3");
        pause(500);
    }
}

/// Before the next look at the open files the record names the process that called `listen()`.
fn listener_whose_process_has_ended_is_the_one_that_inherited_it(family: Family) {
    let case = Case::over(ms(2));
    let address = server_address(&case, family, 7105);
    let server = server(&case, "daemonize", address);
    await_name(&case, address, |accepted_by, open| {
        open.assert_one_of_or_unknown("process.comm", &["python3"]);
        let named = open.number("process.pid");
        assert!(named == Some(accepted_by.into()) || named == Some(server.pid().into()), "{open}");
        named == Some(accepted_by.into())
    });
}

/// The process that called `listen()` holds the socket as well, and never accepts: which program serves is
/// unknown until it has closed a connection.
fn listener_that_was_passed_on_is_the_program_that_serves(family: Family) {
    let case = Case::over(ms(2));
    let address = server_address(&case, family, 7106);
    let server = server(&case, "activate", address);
    await_name(&case, address, |accepted_by, open| {
        assert_ne!(accepted_by, server.pid());
        // Until the first look, which finds that another program has it too, it is the caller.
        open.assert_one_of_or_unknown("process.comm", &["activated", "python3"]);
        open.number("process.pid") == Some(accepted_by.into())
    });
    for _ in 0..3 {
        let (accepted_by, open) = visit(&case, address);
        open.assert_process(accepted_by);
        open.assert_is("process.by", "listener");
        open.assert_is("process.comm", "activated");
        pause(500);
    }
}

/// The TCP socket that listens belongs to the kernel; the process has one of Multipath TCP. The servers of Go
/// are such.
fn listener_of_multipath_tcp_is_known_by_its_subflow(family: Family) {
    let case = Case::over(ms(2));
    let address = server_address(&case, family, 7110);
    let server = server(&case, "mptcp", address);
    // Longer than from one look at the open files to the next.
    for _ in 0..5 {
        let (accepted_by, open) = visit(&case, address);
        assert_eq!(accepted_by, server.pid());
        open.assert_process(server.pid());
        open.assert_is("process.by", "listener");
        pause(500);
    }
}

/// Connects again and again until the opening names the process as it should.
#[track_caller]
fn await_name(case: &Case, address: SocketAddr, is_named: impl Fn(u32, &Record) -> bool) {
    for _ in 0..40 {
        let (accepted_by, open) = visit(case, address);
        if is_named(accepted_by, &open) {
            return;
        }
        pause(250);
    }
    panic!("the opening of the server does not name its process");
}

/// The queue takes one more than its limit. The SYN of the third client is dropped.
#[test]
fn full_accept_queue_is_measured_and_explains_the_client_that_waited() {
    /// No other test uses it in any namespace.
    const PORT: u16 = 7107;
    const LABEL: &str = "local_port=\"7107\"";
    let case = Case::over(ms(2));
    let daemon = histograms::start(&["--tls-libraries", "off"]);
    let address = server_address(&case, Family::V4, PORT);
    let listener = case.bed.socket(Side::Server, Family::V4);
    listener.bind(&address.into()).unwrap();
    listener.listen(1).unwrap();
    let local = || case.bed.socket(Side::Server, Family::V4);
    let waiting = [local(), local()];
    for client in &waiting {
        client.connect(&address.into()).unwrap();
    }
    let late = local();
    begin_connect(&late, address);
    let scrape = daemon.scrape_until(|scrape| scrape.sum("handshake_listener_drops_total", &[LABEL]) > 0.0);
    for (name, value) in [
        ("handshake_listener_accept_queue", 2.0),
        ("handshake_listener_accept_queue_limit", 1.0),
        ("handshake_listener_accept_queues_full", 1.0),
    ] {
        let found = scrape.sum(name, &[LABEL]);
        assert!((found - value).abs() < 0.5, "{name} is {found}, not {value}");
    }
    assert!(scrape.sum("handshake_listener_drops_total", &[LABEL]) >= 1.0);

    listener.accept().unwrap();
    await_connect(&late);
    let local = late.local_addr().unwrap().as_socket();
    let open = case
        .records_of(|record| {
            record.is_event("open") && record.text("role") == Some("client") && record.end("local") == local
        })
        .remove(0);
    open.assert_is("open.outcome", "established");
    assert!(open.number("open.syn_retransmits") > Some(0), "{open}");
    assert!(open.number("open.listener.drops") > Some(0), "{open}");
    assert_eq!(open.number("open.listener.accept_queue"), Some(2), "{open}");
    assert_eq!(open.number("open.listener.accept_queue_limit"), Some(1), "{open}");
    let explained = explain(&open);
    assert!(explained.contains("its accept queue may have been full"), "{explained}");

    drop(listener);
    let after = daemon.scrape();
    assert!(after.sum("handshake_listener_accept_queues_full", &[LABEL]) < 0.5, "nobody listens any more");
}

/// What `handshake explain` says of a record.
fn explain(record: &Record) -> String {
    let mut command = program(&["explain", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    writeln!(child.stdin.take().unwrap(), "{record}").unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
}

/// A namespace with two local ports: the third connection to the same address has none.
#[test]
fn opening_without_a_local_port_has_an_outcome_of_its_own() {
    let case = Case::new();
    case.bed.sysctl(Side::Client, "ipv4/ip_local_port_range", "40000 40001");
    let (_listener, address) = case.bed.listen(Family::V4);
    let mut open = Vec::new();
    let error = loop {
        let client = case.bed.socket(Side::Client, Family::V4);
        match client.connect(&address.into()) {
            Ok(()) => open.push(client),
            Err(error) => break error,
        }
        assert!(open.len() < 9, "the range of ports is larger");
    };
    assert_eq!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL));
    let remote = Some(address);
    let found = case.records_of(|record| {
        record.end("remote") == remote && record.text("open.outcome") == Some("no_local_port")
    });
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].end("local").unwrap().port(), 0);
    found[0].assert_process(process::id());
    let explained = explain(&found[0]);
    assert!(explained.contains("net.ipv4.ip_local_port_range"), "{explained}");
}

/// The other cause of `connect()` without a local port: the program has bound one whose connection to this
/// address still exists.
#[test]
fn opening_whose_ends_are_taken_has_no_local_port() {
    let case = Case::over(ms(2));
    let (_listener, address) = case.bed.listen(Family::V4);
    let local = SocketAddr::new(case.bed.address(Side::Client, Family::V4), 7109);
    let bound = || {
        let client = case.bed.socket(Side::Client, Family::V4);
        client.set_reuse_address(true).unwrap();
        client.bind(&local.into()).unwrap();
        client
    };
    let (first, second) = (bound(), bound());
    first.connect(&address.into()).unwrap();
    let error = second.connect(&address.into()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL));
    let found = case.records_of(|record| {
        record.end("remote") == Some(address) && record.text("open.outcome") == Some("no_local_port")
    });
    assert_eq!(found.len(), 1);
    found[0].assert_process(process::id());
}
