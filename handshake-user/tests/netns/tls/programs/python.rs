//! Python's ssl on blocking sockets: the system's OpenSSL.

use std::process::Command;

use super::{Library, Peers, both, drive, serve, source};
use crate::testbed::{Testbed, packet::Side};

pub(crate) const PEERS: Peers = Peers {
    client: |bed, address, settings| drive(command(bed, Side::Client), address, settings),
    server: |bed, address, settings| serve(command(bed, Side::Server), bed, address, settings),
    libraries: both(Some(Library::OpenSsl)),
};

fn command(bed: &Testbed, side: Side) -> Command {
    script(bed, side, "blocking.py")
}

/// A script under the system's own Python, because others may bring a library of their own.
pub(crate) fn script(bed: &Testbed, side: Side, name: &str) -> Command {
    let mut command = bed.command(side, "/usr/bin/python3");
    command.arg("-B").arg(source("python").join(name));
    command
}
