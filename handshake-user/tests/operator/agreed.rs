//! The two answers of docs/metrics.md to the question which services still speak old versions or are not
//! post-quantum yet, and which clients ask for them: the query, and the command.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use crate::{
    program::{Daemon, TRACING, binary},
    prometheus::{Prometheus, file},
    traffic::Tls,
};

const TIMEOUT: Duration = Duration::from_secs(20);

/// The block of code in docs/metrics.md that has this in it.
fn documented(part: &str) -> String {
    let page = fs::read_to_string(file("docs/metrics.md")).unwrap();
    let mut blocks = page.split("```").skip(1).step_by(2).filter(|block| block.contains(part));
    let block = blocks.next().unwrap_or_else(|| panic!("no code with {part}"));
    assert!(blocks.next().is_none(), "{part} is in two blocks of code");
    block.split_once('\n').unwrap().1.to_owned()
}

/// OpenSSL 3.5 between its own client and server.
pub(crate) fn post_quantum() -> PathBuf {
    let tools = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("tools");
    let home = tools.join("peers/openssl-3.5");
    assert!(home.exists(), "there is no {}: run through `cargo xtask test`", home.display());
    home
}

/// One server of each kind.
struct Services {
    old: Tls,
    classic: Tls,
    post_quantum: Tls,
}

impl Services {
    fn start() -> Self {
        let home: &'static Path = Box::leak(post_quantum().into_boxed_path());
        Self {
            old: Tls::start(2, &["-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"]),
            classic: Tls::start(2, &["-tls1_3", "-groups", "X25519"]),
            post_quantum: Tls::start_with(home, 2, &["-tls1_3", "-groups", "X25519MLKEM768"]),
        }
    }

    #[track_caller]
    fn connect(&self) {
        for service in [&self.old, &self.classic, &self.post_quantum] {
            let out = service.connect();
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        }
    }

    /// The port, version and group of those that the answers name.
    fn named(&self) -> BTreeSet<[String; 3]> {
        [(&self.old, "1.1"), (&self.classic, "1.3")]
            .map(|(service, version)| [service.port().to_string(), version.to_owned(), "x25519".to_owned()])
            .into()
    }
}

#[test]
fn old_and_not_post_quantum_services_are_found_by_the_query_and_by_the_command() {
    let query = documented("handshake_tls_negotiated_total{role=\"server\", version=~");
    let command = documented("handshake trace --duration 1m");
    let services = Services::start();

    let daemon = Daemon::start(&["--label", "local_port,remote_net"]);
    let prometheus = Prometheus::start();
    prometheus.scrape(&[&daemon.address]);
    let deadline = Instant::now() + TIMEOUT;
    let ports =
        [&services.old, &services.classic, &services.post_quantum].map(|service| service.port().to_string());
    loop {
        services.connect();
        let all = "sum by (local_port) (handshake_tls_negotiated_total{role=\"server\"})";
        let seen: BTreeSet<_> =
            prometheus.query(all).iter().map(|sample| label(sample, "local_port")).collect();
        if ports.iter().all(|port| seen.contains(port)) {
            break;
        }
        assert!(Instant::now() < deadline, "not all of {ports:?} are among {seen:?}");
        thread::sleep(Duration::from_millis(300));
    }
    let answer = prometheus.query(&query);
    let ours = answer.iter().filter(|sample| ports.contains(&label(sample, "local_port")));
    let found: BTreeSet<_> = ours
        .clone()
        .map(|sample| ["local_port", "version", "group"].map(|name| label(sample, name)))
        .collect();
    assert_eq!(found, services.named(), "{answer:?}");
    for sample in ours {
        assert!(label(sample, "remote_net").starts_with("127.0.0."), "{sample}");
    }
    let (status, _) = daemon.stop(Signal::SIGTERM);
    assert!(status.success());

    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(binary(), folder.path().join("handshake")).unwrap();
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let mut shell = Command::new("sh");
    shell.args(["-c", &command.replace(" 1m ", " 8s ")]).env("PATH", path);
    let mut shell = shell.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(shell.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(said.any(|line| line.contains(TRACING)), "it does not trace");
    let rest = thread::spawn(move || said.count());
    services.connect();
    services.connect();
    let out = shell.wait_with_output().unwrap();
    rest.join().unwrap();
    assert!(out.status.success());
    let text = String::from_utf8(out.stdout).unwrap();
    let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let found: BTreeSet<_> = lines
        .filter(|line| ports.contains(&line[1].to_owned()))
        .map(|line| {
            assert_eq!((line[0], line[2], line[5]), ("2", "openssl", "127.0.0.1"), "{text}");
            [line[1], line[3], line[4]].map(str::to_owned)
        })
        .collect();
    assert_eq!(found, services.named(), "{text}");
}

fn label(sample: &serde_json::Value, name: &str) -> String {
    sample["metric"][name].as_str().unwrap_or_default().to_owned()
}
