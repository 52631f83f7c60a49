//! Node.js: an OpenSSL of its own, linked into the program, between memory buffers.

use std::process::Command;

use crate::testbed::Testbed;
use crate::testbed::packet::Side;

use super::{Peers, both, drive, serve, source};

pub(crate) const PEERS: Peers = Peers {
    client: |bed, address, settings| drive(command(bed, Side::Client), address, settings),
    server: |bed, address, settings| serve(command(bed, Side::Server), bed, address, settings),
    libraries: both(Some("openssl")),
};

fn command(bed: &Testbed, side: Side) -> Command {
    let mut command = bed.command(side, "node");
    command.arg(source("node/peer.js"));
    command
}
