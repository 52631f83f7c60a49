//! Python's asyncio: the system's OpenSSL with memory BIOs.

use super::{Library, Peers, both, drive, python::script, serve};
use crate::testbed::packet::Side;

pub(crate) const PEERS: Peers = Peers {
    client: |bed, address, settings| drive(script(bed, Side::Client, "memory_bio.py"), address, settings),
    server: |bed, address, settings| {
        serve(script(bed, Side::Server, "memory_bio.py"), bed, address, settings)
    },
    libraries: both(Some(Library::OpenSslUncertain)),
};
