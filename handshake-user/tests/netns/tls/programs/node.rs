//! Node.js: an OpenSSL of its own, linked into the program, with memory BIOs.

use std::{env, path::PathBuf, process::Command};

use super::{Library, Peers, await_probes, both, drive, serve, source};
use crate::testbed::{Testbed, packet::Side};

pub(crate) const PEERS: Peers = Peers {
    client: |bed, address, settings| {
        let client = drive(command(bed, Side::Client), address, settings);
        await_probes(&program());
        client
    },
    server: |bed, address, settings| {
        let server = serve(command(bed, Side::Server), bed, address, settings);
        await_probes(&program());
        server
    },
    libraries: both(Some(Library::OpenSslUncertain)),
};

/// The executable behind the command `node`.
fn program() -> PathBuf {
    let folders = env::var_os("PATH").unwrap_or_default();
    let file = env::split_paths(&folders).find_map(|folder| folder.join("node").canonicalize().ok());
    file.expect("node, which this test needs")
}

fn command(bed: &Testbed, side: Side) -> Command {
    let mut command = bed.command(side, "node");
    command.arg(source("node/peer.js"));
    command
}
