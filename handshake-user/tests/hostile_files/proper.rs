//! A client and a server with their own copy of OpenSSL, which the daemon has to find: the proof that it
//! still works.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;

use crate::{
    program::{Daemon, child_guard::ChildGuard, copy_program},
    serving::Serving,
};

/// The name of its process.
const NAME: &str = "proper-client";
/// The daemon must distinguish processes.
pub(crate) const LABEL: [&str; 2] = ["--label", "process"];

pub(crate) struct Proper {
    folder: TempDir,
    _server: ChildGuard,
    at: String,
}

impl Proper {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["libssl.so.3", "libcrypto.so.3"] {
            fs::copy(installed(name), folder.path().join(name)).unwrap();
        }
        copy_program(Path::new("/usr/bin/openssl"), &folder.path().join(NAME));
        let (key, certificate) = (folder.path().join("key"), folder.path().join("certificate"));
        let made = Command::new("openssl")
            .args(
                "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=proper -keyout"
                    .split(' '),
            )
            .args([&*key, Path::new("-out"), &certificate])
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        let mut server = Command::new("openssl");
        server.args(["s_server", "-accept", "127.0.0.1:0", "-www", "-key"]);
        server.args([&*key, Path::new("-cert"), &certificate]).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut server = ChildGuard::start(&mut server);
        let mut lines = BufReader::new(server.stdout.take().unwrap()).lines().map_while(Result::ok);
        let at = lines.find_map(|line| Some(line.strip_prefix("ACCEPT ")?.to_owned())).unwrap();
        Self { folder, _server: server, at }
    }

    /// Repeats handshakes until the daemon has seen one in the library.
    #[track_caller]
    pub(crate) fn is_seen(&self, serving: &mut Serving<'_>, patience: Duration) {
        let labels = [&*format!("process=\"{NAME}\""), "library=\"openssl\""];
        let count = |daemon: &Daemon| daemon.scrape().sum("handshake_tls_duration_seconds_count", &labels);
        serving.until("a proper library is probed", patience, |daemon| {
            let before = count(daemon);
            let client = Command::new(self.folder.path().join(NAME))
                .args(["s_client", "-connect", &self.at])
                .env("LD_LIBRARY_PATH", self.folder.path())
                .stdin(Stdio::null())
                .output()
                .unwrap();
            assert!(client.status.success(), "{client:?}");
            std::thread::sleep(Duration::from_millis(200));
            count(daemon) > before
        });
    }
}

/// The path of a library of this system.
pub(crate) fn installed(name: &str) -> PathBuf {
    let folder = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    let folders = [folder.as_str(), "/usr/lib64", "/usr/lib"];
    let found = folders.iter().map(|folder| Path::new(folder).join(name)).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("there is no {name} on this system"))
}

/// Copies of a library, each a separate file.
pub(crate) fn copies(library: &Path, count: usize, folder: &Path, name: &str) -> Vec<PathBuf> {
    let path = |turn| folder.join(format!("{name}-{turn}.so.3"));
    let copy = |path: PathBuf| {
        fs::copy(library, &path).unwrap();
        path
    };
    (0..count).map(path).map(copy).collect()
}
