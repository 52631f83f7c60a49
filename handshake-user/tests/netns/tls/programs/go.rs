//! Go's crypto/tls, with and without symbols.

use std::{net::SocketAddr, path::PathBuf, process::Command};

use super::{Client, Library, Peers, Running, Settings, await_probes, both, drive, serve, tool};
use crate::testbed::{Testbed, packet::Side};

pub(crate) const PEERS: Peers = Peers {
    client: |bed, address, settings| client(bed, address, settings, "plain"),
    server: |bed, address, settings| server(bed, address, settings, "plain"),
    libraries: both(Some(Library::Go)),
};

pub(crate) mod stripped {
    use super::{Library, Peers, both, client, server};

    pub(crate) const PEERS: Peers = Peers {
        client: |bed, address, settings| client(bed, address, settings, "stripped"),
        server: |bed, address, settings| server(bed, address, settings, "stripped"),
        libraries: both(Some(Library::Go)),
    };
}

fn client(bed: &Testbed, address: SocketAddr, settings: Settings, build: &str) -> Box<dyn Client> {
    let client = drive(command(bed, Side::Client, build), address, settings);
    await_probes(&program(build));
    client
}

fn server(bed: &Testbed, address: SocketAddr, settings: Settings, build: &str) -> Running {
    let server = serve(command(bed, Side::Server, build), bed, address, settings);
    await_probes(&program(build));
    server
}

fn program(build: &str) -> PathBuf {
    tool(&format!("go-{build}"))
}

fn command(bed: &Testbed, side: Side, build: &str) -> Command {
    bed.command(side, program(build).to_str().unwrap())
}
