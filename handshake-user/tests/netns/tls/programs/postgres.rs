//! PostgreSQL: psql (libpq) and the server, both with the system's OpenSSL, after an `SSLRequest` in plain
//! text.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use nix::unistd::User;
use tempfile::TempDir;

use super::{
    super::{
        certificate::{Certificate, NAME},
        settings::Settings,
    },
    Account, Client, Library, Peers, Running, account, both, run,
};
use crate::testbed::{Testbed, packet::Side};

pub(crate) const PEERS: Peers = Peers {
    client: |bed, address, settings| {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("openssl.cnf"), OFFER_P256).unwrap();
        Box::new(Psql { bed, address, settings, folder })
    },
    server: serve,
    libraries: both(Some(Library::OpenSsl)),
};

/// PostgreSQL refuses to run as root.
const USER: &str = "postgres";

/// By default the server accepts only P-256, while OpenSSL sends a key share for X25519: with TLS 1.3 every
/// connection would begin with a `HelloRetryRequest`.
const OFFER_P256: &str =
    "openssl_conf = c\n[c]\nssl_conf = s\n[s]\nsystem_default = d\n[d]\nGroups = P-256\n";

struct Psql<'a> {
    bed: &'a Testbed,
    address: SocketAddr,
    settings: Settings,
    folder: TempDir,
}

impl Client for Psql<'_> {
    fn connect(&mut self, times: usize) -> Vec<Account> {
        (0..times).map(|_| self.once()).collect()
    }
}

impl Psql<'_> {
    fn once(&self) -> Account {
        let version = self.settings.version.number();
        let trusted = &Certificate::shared().chain;
        let root =
            if self.settings.trusted { trusted } else { Path::new("/etc/ssl/certs/ca-certificates.crt") };
        let connection = format!(
            "host={NAME} hostaddr={} port={} user={USER} dbname=postgres gssencmode=disable \
             ssl_min_protocol_version=TLSv{version} ssl_max_protocol_version=TLSv{version} \
             sslmode=verify-full sslrootcert={}",
            self.address.ip(),
            self.address.port(),
            root.display(),
        );
        // Not through Debian's wrapper.
        let mut command = self.bed.command(Side::Client, programs().join("psql").to_str().unwrap());
        command.args(["--no-psqlrc", "--tuples-only", "--command", "select 'hello'", "--dbname"]);
        command.arg(connection).env("HOME", "/nonexistent");
        if !self.settings.retry {
            command.env("OPENSSL_CONF", self.folder.path().join("openssl.cnf"));
        }
        let (pid, out) = run(command, b"");
        account(pid, &out)
    }
}

#[track_caller]
fn serve(bed: &Testbed, address: SocketAddr, settings: Settings) -> Running {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let made = Command::new("cp").arg("-a").arg(cluster()).arg(&data).status().unwrap();
    assert!(made.success(), "cannot copy the cluster: {made}");
    give(folder.path());
    let certificate = Certificate::shared();
    for (from, to) in [(&certificate.chain, "server.crt"), (&certificate.key, "server.key")] {
        let to = data.join(to);
        fs::copy(from, &to).unwrap();
        give(&to);
    }
    fs::write(data.join("pg_hba.conf"), "hostssl all all all trust\n").unwrap();
    let mut command = bed.command(Side::Server, "setpriv");
    command.args(["--reuid", USER, "--regid", USER, "--clear-groups"]).arg(programs().join("postgres"));
    command.arg("-D").arg(&data);
    let version = settings.version.number();
    let options = [
        format!("listen_addresses={}", address.ip()),
        format!("port={}", address.port()),
        "unix_socket_directories=".into(),
        "ssl=on".into(),
        "fsync=off".into(),
        "autovacuum=off".into(),
        "shared_buffers=1MB".into(),
        "max_connections=4".into(),
        format!("ssl_min_protocol_version=TLSv{version}"),
        format!("ssl_max_protocol_version=TLSv{version}"),
    ];
    for option in options {
        command.args(["-c", &option]);
    }
    Running::start_in(Some(folder), bed, address, command)
}

/// The programs of the newest release; Debian has a folder for each.
fn programs() -> PathBuf {
    let releases = fs::read_dir("/usr/lib/postgresql").expect("postgresql, which this test needs");
    let mut found: Vec<_> = releases.map(|entry| entry.unwrap().path().join("bin")).collect();
    found.retain(|folder| folder.join("postgres").exists());
    found.sort();
    found.pop().expect("a PostgreSQL server, which this test needs")
}

/// An empty cluster, made once and then copied.
fn cluster() -> &'static Path {
    static CLUSTER: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, data) = CLUSTER.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        give(folder.path());
        let data = folder.path().join("data");
        let mut make = Command::new("setpriv");
        make.args(["--reuid", USER, "--regid", USER, "--clear-groups"]).arg(programs().join("initdb"));
        make.args(["--no-sync", "--auth", "trust", "--encoding", "UTF8", "--locale", "C", "-D"]).arg(&data);
        let out = make.stdin(Stdio::null()).output().expect("setpriv, which this test needs");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        (folder, data)
    });
    data
}

fn give(path: &Path) {
    let user = User::from_name(USER).unwrap().expect("the user that PostgreSQL's package makes");
    chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
}
