//! Go's crypto/tls: with its symbols, and without.

use std::net::SocketAddr;
use std::process::Command;

use crate::case::pause;
use crate::testbed::Testbed;
use crate::testbed::packet::Side;

use super::{Client, Peers, Running, Settings, both, drive, serve, tool};

pub(crate) const PEERS: Peers = Peers {
    client: |bed, address, settings| client(bed, address, settings, "plain"),
    server: |bed, address, settings| server(bed, address, settings, "plain"),
    libraries: both(Some("go")),
};

pub(crate) mod stripped {
    use super::{Peers, both, client, server};

    pub(crate) const PEERS: Peers = Peers {
        client: |bed, address, settings| client(bed, address, settings, "stripped"),
        server: |bed, address, settings| server(bed, address, settings, "stripped"),
        libraries: both(Some("go")),
    };
}

/// A program with a library of its own is found some tens of milliseconds after it has started: what it does before is
/// seen on the wire alone (docs/limitations.md).
const FOUND: u64 = 1500;

fn client(bed: &Testbed, address: SocketAddr, settings: Settings, build: &str) -> Box<dyn Client> {
    let client = drive(command(bed, Side::Client, build), address, settings);
    pause(FOUND);
    client
}

fn server(bed: &Testbed, address: SocketAddr, settings: Settings, build: &str) -> Running {
    let server = serve(command(bed, Side::Server, build), bed, address, settings);
    pause(FOUND);
    server
}

fn command(bed: &Testbed, side: Side, build: &str) -> Command {
    bed.command(side, tool(&format!("go-{build}")).to_str().unwrap())
}
