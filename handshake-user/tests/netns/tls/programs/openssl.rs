//! openssl's own client and server, of the system and of other Debian releases. Neither calls the handshake
//! function: reading and writing make the handshake.

use std::{fs, net::SocketAddr, process::Command, time::Duration};

use tempfile::TempDir;

use super::{
    super::{
        certificate::{Certificate, NAME},
        settings::{Settings, Version},
    },
    Account, Client, Library, Peers, Running, account, await_probes, both, run, run_for, tool,
};
use crate::testbed::{Testbed, packet::Side};

/// Generates a module for a release.
macro_rules! release {
    ($name:ident, $release:expr) => {
        pub(crate) mod $name {
            use super::{Library, Peers, Release, both, client, serve};

            pub(crate) const PEERS: Peers = Peers {
                client: |bed, address, settings| client(&$release, bed, address, settings),
                server: |bed, address, settings| serve(&$release, bed, address, settings),
                libraries: both(Some(Library::OpenSsl)),
            };
        }
    };
}

pub(crate) const PEERS: Peers = Peers {
    client: |bed, address, settings| client(&Release::System, bed, address, settings),
    server: |bed, address, settings| serve(&Release::System, bed, address, settings),
    libraries: both(Some(Library::OpenSsl)),
};

release!(v1_1_1, Release::Unpacked("openssl-1.1.1"));
release!(v3_5, Release::Unpacked("openssl-3.5"));
release!(v3_6, Release::Unpacked("openssl-3.6"));

pub(crate) enum Release {
    System,
    /// With its own C library and loader, which may be newer than the system's.
    Unpacked(&'static str),
}

impl Release {
    /// Waits for probes on an unpacked library, which is not in the library cache.
    #[track_caller]
    fn await_probes(&self) {
        let Self::Unpacked(name) = self else { return };
        let library = if *name == "openssl-1.1.1" { "libssl.so.1.1" } else { "libssl.so.3" };
        await_probes(&tool(&format!("{name}/lib/{library}")));
    }

    fn command(&self, bed: &Testbed, side: Side) -> Command {
        match self {
            Self::System => bed.command(side, "openssl"),
            Self::Unpacked(name) => {
                let mut command = bed.command(side, tool(&format!("{name}/loader")).to_str().unwrap());
                command.arg("--library-path").arg(tool(&format!("{name}/lib")));
                command.arg(tool(&format!("{name}/openssl")));
                // Its default configuration would name the release's folders.
                command.env("OPENSSL_CONF", "/dev/null");
                command
            }
        }
    }
}

/// Answers with a page. With early data `s_server` has no pages, and waits for the client to close.
#[track_caller]
fn serve(release: &Release, bed: &Testbed, address: SocketAddr, settings: Settings) -> Running {
    let certificate = Certificate::shared();
    let mut command = release.command(bed, Side::Server);
    command.args(["s_server", "-quiet", "-accept", &address.to_string(), version(settings)]);
    command.arg("-key").arg(&certificate.key).arg("-cert").arg(&certificate.chain);
    if settings.early_data {
        command.arg("-early_data");
    } else {
        command.arg("-www");
    }
    if settings.retry {
        command.args(["-groups", "P-384"]);
    }
    if !settings.tickets {
        command.arg("-no_ticket");
    }
    let running = Running::start(bed, address, command);
    release.await_probes();
    running
}

fn version(settings: Settings) -> &'static str {
    match settings.version {
        Version::Tls12 => "-tls1_2",
        Version::Tls13 => "-tls1_3",
    }
}

/// One process per connection, with the session in a file.
struct Sessions<'a> {
    release: &'static Release,
    bed: &'a Testbed,
    address: SocketAddr,
    settings: Settings,
    folder: TempDir,
}

fn client<'a>(
    release: &'static Release,
    bed: &'a Testbed,
    address: SocketAddr,
    settings: Settings,
) -> Box<dyn Client + 'a> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("early"), super::REQUEST).unwrap();
    Box::new(Sessions { release, bed, address, settings, folder })
}

impl Client for Sessions<'_> {
    fn connect(&mut self, times: usize) -> Vec<Account> {
        (0..times).map(|_| self.once()).collect()
    }
}

impl Sessions<'_> {
    fn once(&self) -> Account {
        let session = self.folder.path().join("session");
        let mut command = self.release.command(self.bed, Side::Client);
        command.args(["s_client", "-quiet", "-no_ign_eof", "-connect", &self.address.to_string()]);
        command.args(["-servername", NAME, version(self.settings), "-sess_out"]).arg(&session);
        if session.exists() {
            command.arg("-sess_in").arg(&session);
        }
        command.arg("-verify_return_error");
        if self.settings.trusted {
            command.arg("-CAfile").arg(&Certificate::shared().chain);
        }
        let (pid, out) = if self.settings.early_data {
            command.arg("-early_data").arg(self.folder.path().join("early"));
            // The server sends nothing: the time is for its tickets to arrive.
            run_for(command, super::REQUEST, Duration::from_millis(400))
        } else {
            run(command, super::REQUEST)
        };
        account(pid, &out)
    }
}
