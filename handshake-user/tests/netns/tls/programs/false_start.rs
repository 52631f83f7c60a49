//! GnuTLS as a client that does not wait for the server's Finished (RFC 7918). No common command-line client
//! does that.

use super::{Library, Peers, drive, nginx, python::script};
use crate::testbed::packet::Side;

pub(crate) const PEERS: Peers = Peers {
    client: |bed, address, settings| drive(script(bed, Side::Client, "false_start.py"), address, settings),
    server: nginx::serve,
    libraries: [Some(Library::GnuTls), Some(Library::OpenSsl)],
};
