//! Go's crypto/tls: with its symbols, and without.

use std::process::Command;

use crate::testbed::Testbed;
use crate::testbed::packet::Side;

use super::{Peers, both, drive, serve, tool};

pub(crate) const PEERS: Peers = Peers {
    client: |bed, address, settings| drive(command(bed, Side::Client, "plain"), address, settings),
    server: |bed, address, settings| serve(command(bed, Side::Server, "plain"), bed, address, settings),
    libraries: both(Some("go")),
};

pub(crate) mod stripped {
    use super::{Peers, Side, both, command, drive, serve};

    pub(crate) const PEERS: Peers = Peers {
        client: |bed, address, settings| drive(command(bed, Side::Client, "stripped"), address, settings),
        server: |bed, address, settings| {
            serve(command(bed, Side::Server, "stripped"), bed, address, settings)
        },
        libraries: both(Some("go")),
    };
}

fn command(bed: &Testbed, side: Side, build: &str) -> Command {
    bed.command(side, tool(&format!("go-{build}")).to_str().unwrap())
}
