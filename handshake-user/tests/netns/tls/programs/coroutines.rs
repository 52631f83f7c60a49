//! OpenSSL on coroutines: many handshakes on one thread, whose calls are suspended and return in any order.

use std::{net::SocketAddr, process::Command};

use super::{
    super::certificate::Certificate, Account, Client, Library, Peers, Running, account, both, run, tool,
};
use crate::testbed::{Testbed, packet::Side};

pub(crate) const PEERS: Peers = Peers {
    client: |bed, address, _| Box::new(Concurrent { bed, address }),
    server: |bed, address, _| {
        let certificate = Certificate::shared();
        let mut command = command(bed, Side::Server, "server", address);
        command.arg(&certificate.chain).arg(&certificate.key);
        Running::start(bed, address, command)
    },
    libraries: both(Some(Library::OpenSslUncertain)),
};

fn command(bed: &Testbed, side: Side, role: &str, address: SocketAddr) -> Command {
    let mut command = bed.command(side, tool("coroutines").to_str().unwrap());
    command.args([role, &address.ip().to_string(), &address.port().to_string()]);
    command
}

/// Makes all its connections at the same time.
struct Concurrent<'a> {
    bed: &'a Testbed,
    address: SocketAddr,
}

impl Client for Concurrent<'_> {
    fn connect(&mut self, times: usize) -> Vec<Account> {
        let mut command = command(self.bed, Side::Client, "client", self.address);
        command.arg(times.to_string());
        let (pid, out) = run(command, b"");
        vec![account(pid, &out); times]
    }
}
