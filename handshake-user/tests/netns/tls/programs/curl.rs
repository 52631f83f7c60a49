//! curl as a client of nginx, both with the system's OpenSSL.

use std::net::SocketAddr;

use super::{
    super::{
        certificate::{Certificate, NAME},
        settings::{Settings, Version},
    },
    Account, Client, Library, Peers, account, both, nginx, run,
};
use crate::testbed::{Testbed, packet::Side};

pub(crate) const PEERS: Peers = Peers {
    client: |bed, address, settings| Box::new(Curl { bed, address, settings }),
    server: nginx::serve,
    libraries: both(Some(Library::OpenSsl)),
};

struct Curl<'a> {
    bed: &'a Testbed,
    address: SocketAddr,
    settings: Settings,
}

impl Client for Curl<'_> {
    /// One process for all connections, because it keeps its sessions in memory.
    fn connect(&mut self, times: usize) -> Vec<Account> {
        let mut command = self.bed.command(Side::Client, "curl");
        command.args(["--silent", "--show-error", "--fail", "--max-time", "10", "--http1.1"]);
        command.args(["--header", "Connection: close", "--resolve"]);
        command.arg(format!("{NAME}:{}:{}", self.address.port(), self.address.ip()));
        command.args(match self.settings.version {
            Version::Tls12 => ["--tlsv1.2", "--tls-max", "1.2"],
            Version::Tls13 => ["--tlsv1.3", "--tls-max", "1.3"],
        });
        if self.settings.trusted {
            command.arg("--cacert").arg(&Certificate::shared().chain);
        }
        if self.settings.fast_open {
            command.arg("--tcp-fastopen");
        }
        for _ in 0..times {
            command.arg(format!("https://{NAME}:{}/", self.address.port()));
        }
        let (pid, out) = run(command, b"");
        vec![account(pid, &out); times]
    }
}
