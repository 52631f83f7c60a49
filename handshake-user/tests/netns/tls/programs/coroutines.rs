//! OpenSSL on coroutines: many handshakes on one thread, whose calls are left in their middle and return in any order.

use std::{net::SocketAddr, process::Command};

use super::{
    super::certificate::Certificate, Account, Client, Library, Peers, Running, account, both, run, tool,
};
use crate::testbed::{Testbed, packet::Side};

pub(crate) const PEERS: Peers = Peers {
    client: |bed, address, _| Box::new(AtOnce { bed, address }),
    server: |bed, address, _| {
        let certificate = Certificate::shared();
        let mut command = command(bed, Side::Server, "server", address);
        command.arg(&certificate.chain).arg(&certificate.key);
        Running::start(bed, address, command)
    },
    libraries: both(Some(Library::OpenSslInDoubt)),
};

fn command(bed: &Testbed, side: Side, role: &str, address: SocketAddr) -> Command {
    let mut command = bed.command(side, tool("coroutines").to_str().unwrap());
    command.args([role, &address.ip().to_string(), &address.port().to_string()]);
    command
}

/// All its connections go on at the same time.
struct AtOnce<'a> {
    bed: &'a Testbed,
    address: SocketAddr,
}

impl Client for AtOnce<'_> {
    fn connect(&mut self, times: usize) -> Vec<Account> {
        let mut command = command(self.bed, Side::Client, "client", self.address);
        command.arg(times.to_string());
        let (pid, out) = run(command, b"");
        vec![account(pid, &out); times]
    }
}
