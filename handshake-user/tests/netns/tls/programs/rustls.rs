//! rustls, which cannot be probed: its handshakes are seen on the wire alone.

use std::{env, process::Command};

use super::{Peers, both, drive, serve};
use crate::testbed::{Testbed, packet::Side};

pub(crate) const PEERS: Peers = Peers {
    client: |bed, address, settings| drive(command(bed, Side::Client), address, settings),
    server: |bed, address, settings| serve(command(bed, Side::Server), bed, address, settings),
    libraries: both(None),
};

/// An example of this package, which cargo builds into the folder next to that of the tests.
fn command(bed: &Testbed, side: Side) -> Command {
    let tests = env::current_exe().unwrap();
    let peer = tests.parent().unwrap().with_file_name("examples").join("rustls-peer");
    assert!(peer.exists(), "there is no {}: run through `cargo xtask test`", peer.display());
    bed.command(side, peer.to_str().unwrap())
}
