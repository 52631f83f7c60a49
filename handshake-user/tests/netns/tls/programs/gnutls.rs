//! gnutls-cli and gnutls-serv.

use std::{fs, net::SocketAddr, process::Command};

use tempfile::TempDir;

use super::{
    super::{
        certificate::{Certificate, NAME},
        settings::{Settings, Version},
    },
    Account, Client, Library, Peers, Running, account, both, run,
};
use crate::testbed::{Testbed, packet::Side};

pub(crate) const PEERS: Peers = Peers {
    client: |bed, address, settings| Box::new(Cli::new(bed, address, settings)),
    server: serve,
    libraries: both(Some(Library::GnuTls)),
};

#[track_caller]
fn serve(bed: &Testbed, address: SocketAddr, settings: Settings) -> Running {
    let certificate = Certificate::shared();
    let mut priority = priority(settings);
    if settings.retry {
        priority += ":-GROUP-ALL:+GROUP-SECP384R1";
    }
    let mut command = bed.command(Side::Server, "gnutls-serv");
    command.args(["--quiet", "--http", "--disable-client-cert", "--priority", &priority]);
    command.args(["--port", &address.port().to_string()]);
    command.arg("--x509keyfile").arg(&certificate.key).arg("--x509certfile").arg(&certificate.chain);
    if !settings.tickets {
        command.arg("--noticket");
    }
    if settings.early_data {
        command.args(["--earlydata", "--maxearlydata", "4096"]);
    }
    Running::start(bed, address, command)
}

fn priority(settings: Settings) -> String {
    format!("NORMAL:-VERS-ALL:+VERS-TLS{}", settings.version.number())
}

/// The client's command, without the address.
pub(crate) fn command(bed: &Testbed, address: SocketAddr, settings: Settings) -> Command {
    let mut command = bed.command(Side::Client, "gnutls-cli");
    command.args(["--sni-hostname", NAME, "--verify-hostname", NAME, "--port"]);
    command.arg(address.port().to_string()).args(["--priority", &priority(settings)]);
    if settings.trusted {
        command.arg("--x509cafile").arg(&Certificate::shared().chain);
    }
    command
}

struct Cli<'a> {
    bed: &'a Testbed,
    address: SocketAddr,
    settings: Settings,
    folder: TempDir,
}

impl<'a> Cli<'a> {
    fn new(bed: &'a Testbed, address: SocketAddr, settings: Settings) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("early"), super::REQUEST).unwrap();
        Self { bed, address, settings, folder }
    }
}

impl Client for Cli<'_> {
    /// At most two connections: it connects, and once more to resume.
    fn connect(&mut self, times: usize) -> Vec<Account> {
        let mut command = command(self.bed, self.address, self.settings);
        if times == 2 {
            command.arg("--resume");
            if self.settings.version == Version::Tls13 {
                command.arg("--waitresumption");
            }
        }
        if self.settings.early_data {
            command.arg("--earlydata").arg(self.folder.path().join("early"));
        }
        if self.settings.fast_open {
            command.arg("--fastopen");
        }
        command.arg(self.address.ip().to_string());
        let (pid, out) = run(command, super::REQUEST);
        vec![account(pid, &out); times]
    }
}
