//! Which process listens is known from the opening on.

use std::{
    net::{IpAddr, SocketAddr},
    process,
};

use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    case::Case,
    ends::Expect,
    pair::Pair,
    record::Record,
    testbed::{Family, capture::Connection, packet::Side},
    tracer::Tracer,
};

for_each_family!(listener_of_one_address, listener_of_any_address, listener_from_before_the_tracer);

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
    ends.close(Side::Server).assert_is("process.by", "close");
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
}
