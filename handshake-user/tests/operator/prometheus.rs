//! A real Prometheus with the project's rules, quickened: it scrapes every second, and minutes and hours are
//! seconds.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::program::child_guard::ChildGuard;

/// What is five minutes or an hour in the rules.
pub(crate) const WINDOW: Duration = Duration::from_secs(8);
/// How long it may take to start.
const START: Duration = Duration::from_secs(30);

/// A file of the project.
pub(crate) fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

pub(crate) struct Prometheus {
    _child: ChildGuard,
    folder: TempDir,
    address: String,
}

impl Prometheus {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for rules in ["recording.yml", "alerts.yml"] {
            fs::write(folder.path().join(rules), quickened(rules)).unwrap();
        }
        let config = "global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}\n\
            rule_files: [recording.yml, alerts.yml]\n\
            scrape_configs:\n\
            - {job_name: handshake, file_sd_configs: [{files: [targets.json], refresh_interval: 1s}]}\n";
        let config_file = folder.path().join("prometheus.yml");
        fs::write(&config_file, config).unwrap();
        fs::write(folder.path().join("targets.json"), "[]").unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", config_file.display()));
        command.arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()));
        command.args([&format!("--web.listen-address={address}"), "--log.level=warn"]);
        command.stdin(Stdio::null());
        let prometheus = Self { _child: ChildGuard::start(&mut command), folder, address };
        let deadline = Instant::now() + START;
        while prometheus.get("/-/ready").is_none_or(|(status, _)| status != 200) {
            assert!(Instant::now() < deadline, "Prometheus is not ready");
            thread::sleep(Duration::from_millis(50));
        }
        prometheus
    }

    /// From now on it scrapes these.
    pub(crate) fn scrape(&self, targets: &[&str]) {
        let written = self.folder.path().join("new");
        fs::write(&written, json!([{"targets": targets}]).to_string()).unwrap();
        fs::rename(written, self.folder.path().join("targets.json")).unwrap();
    }

    /// Status and body; `None` while it does not listen.
    fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(&self.address).ok()?;
        stream.set_read_timeout(Some(START)).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\nHost: test\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }

    fn data(&self, path: &str) -> Value {
        let (status, body) = self.get(path).expect("Prometheus answers");
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str::<Value>(&body).unwrap()["data"].take()
    }

    /// The samples that a query yields now.
    pub(crate) fn query(&self, query: &str) -> Vec<Value> {
        let mut escaped = String::new();
        for byte in query.bytes() {
            write!(escaped, "%{byte:02X}").unwrap();
        }
        let mut data = self.data(&format!("/api/v1/query?query={escaped}"));
        serde_json::from_value(data["result"].take()).unwrap()
    }

    /// The names of the alerts that fire for this instance.
    pub(crate) fn firing(&self, instance: &str) -> BTreeSet<String> {
        let data = self.data("/api/v1/alerts");
        let alerts = data["alerts"].as_array().unwrap().iter();
        let fires = |alert: &&Value| alert["state"] == "firing" && alert["labels"]["instance"] == instance;
        alerts.filter(fires).map(|alert| alert["labels"]["alertname"].as_str().unwrap().to_owned()).collect()
    }

    /// Rules that could not be evaluated.
    pub(crate) fn broken_rules(&self) -> Vec<Value> {
        let data = self.data("/api/v1/rules");
        let groups = data["groups"].as_array().unwrap().iter();
        let rules = groups.flat_map(|group| group["rules"].as_array().unwrap());
        rules.filter(|rule| rule["health"] != "ok").cloned().collect()
    }
}

/// The rules with short windows, which fire without delay: `promtool test rules` tests the delays.
fn quickened(rules: &str) -> String {
    let text = fs::read_to_string(file("packaging/prometheus").join(rules)).unwrap();
    let window = format!("{}s", WINDOW.as_secs());
    let text = text.replace("[5m]", &format!("[{window}]")).replace("[1h]", &format!("[{window}]"));
    let text = text.replace("offset 1h", &format!("offset {window}"));
    let lines: Vec<_> = text.lines().filter(|line| !line.trim_start().starts_with("for: ")).collect();
    lines.join("\n")
}
