//! The forms of `/metrics`, read by Prometheus' own programs.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use flate2::read::GzDecoder;

use crate::program::{Daemon, Scrape, child_guard::ChildGuard};

const OPENMETRICS: &str = "Accept: application/openmetrics-text; version=1.0.0, text/plain; q=0.5\r\n";
const GZIP: &str = "Accept-Encoding: gzip\r\n";

fn unpacked(body: &[u8]) -> String {
    let mut text = String::new();
    GzDecoder::new(body).read_to_string(&mut text).unwrap();
    text
}

#[test]
fn every_form_of_the_page_says_the_same() {
    let daemon = Daemon::start(&[]);
    let build =
        |text: &str| text.lines().find(|line| line.starts_with("handshake_build_info{")).map(str::to_owned);
    let names = |text: &str| -> Vec<String> {
        // Those of histograms come with the first connections.
        let typed = text.lines().filter(|line| !line.ends_with(" histogram"));
        let named = typed.filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
        named.map(|name| name.trim_end_matches("_total").to_owned()).collect()
    };
    let (_, plain_head, plain) = daemon.request("GET", "/metrics");
    assert!(!plain_head.contains("content-encoding"), "{plain_head}");
    for (headers, kind, is_open, is_packed) in [
        (GZIP.to_owned(), "text/plain; version=0.0.4; charset=utf-8", false, true),
        (OPENMETRICS.to_owned(), "application/openmetrics-text; version=1.0.0; charset=utf-8", true, false),
        (
            [OPENMETRICS, GZIP].concat(),
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            true,
            true,
        ),
        // Nothing of this is served: the client gets what everybody understands.
        (
            "Accept: image/png\r\nAccept-Encoding: br\r\n".to_owned(),
            "text/plain; version=0.0.4; charset=utf-8",
            false,
            false,
        ),
    ] {
        let (status, head, body) = daemon.request_with("GET", "/metrics", &headers);
        assert!(status == 200 && head.contains(&format!("content-type: {kind}\r\n")), "{headers}: {head}");
        assert!(head.contains("vary: Accept, Accept-Encoding\r\n"), "{head}");
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
        assert_eq!(head.contains("content-encoding: gzip\r\n"), is_packed, "{headers}: {head}");
        let text = if is_packed { unpacked(&body) } else { String::from_utf8(body.clone()).unwrap() };
        println!("{kind}, gzip {is_packed}: {} bytes of {}", body.len(), text.len());
        assert!(!is_packed || body.len() * 5 < text.len(), "{} of {}", body.len(), text.len());
        assert_eq!(text.ends_with("# EOF\n"), is_open);
        assert!(build(&text).is_some());
        assert_eq!((build(&text), names(&text)), (build(&plain), names(&plain)), "{headers}");
        let (_, head, body) = daemon.request_with("HEAD", "/metrics", &headers);
        assert!(body.is_empty() && head.contains(&format!("content-type: {kind}\r\n")), "{head}");
    }
    // Without room for more headers, and in front of an end that nobody would parse.
    let hostile = format!("Accept: {}\r\n", "a/b;q=0.1,;=\"".repeat(1000));
    assert_eq!(daemon.request_with("GET", "/metrics", &hostile).0, 200);
    let many = "Accept: */*;q=0.5\r\nAccept-Encoding: gzip;q=0.3\r\n".repeat(40);
    assert_eq!(daemon.request_with("GET", "/metrics", &many).0, 200);
}

#[test]
fn page_has_every_counter_and_no_empty_histogram() {
    let daemon = Daemon::start(&[]);
    // The connections of the scrapes themselves.
    let text = daemon.metrics_until(|text| text.contains("handshake_tcp_close_ack_wait_seconds_bucket"));
    let histograms = text.lines().filter(|line| !line.starts_with('#') && line.contains("_seconds_count{"));
    let histograms: Vec<_> = histograms.collect();
    assert!(!histograms.is_empty() && histograms.iter().all(|line| !line.ends_with(" 0")), "{histograms:?}");
    let others = text.lines().filter(|line| !line.contains("_seconds_"));
    println!("{} lines, {} bytes, {} histograms", text.lines().count(), text.len(), histograms.len());
    assert!(others.count() < 400, "{text}");
    // Each has fewer than thirty lines.
    assert!(text.lines().count() < 400 + 30 * histograms.len(), "{text}");
    for zero in
        ["handshake_tcp_opens_total{", "handshake_tcp_closes_total{", "handshake_tls_handshakes_total{"]
    {
        assert!(text.lines().any(|line| line.starts_with(zero) && line.ends_with(" 0")), "{zero}");
    }
}

#[test]
fn promtool_has_nothing_to_say_of_the_page() {
    let daemon = Daemon::start(&[]);
    let (_, _, text) = daemon.request("GET", "/metrics");
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = promtool.spawn().expect("promtool comes with Debian's package prometheus");
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(output.status.success() && said.is_empty(), "{said}");
}

/// Prometheus asks for `OpenMetrics` and gzip. It drops the whole scrape where it does not understand a line.
#[test]
fn prometheus_reads_openmetrics() {
    let daemon = Daemon::start(&[]);
    let folder = tempfile::tempdir().unwrap();
    let prometheus = Prometheus::start(folder.path(), &format!("{{targets: [\"{}\"]}}", daemon.address), "");
    prometheus.wait_for("up{job=\"handshake\"} == 1");
    let (_, _, plain) = daemon.request("GET", "/metrics");
    // This bound is `1` in Prometheus' own format: the name of the series tells which of the two it read.
    let bucket = "handshake_tcp_open_duration_seconds_bucket{role=\"server\",le=\"1.0\"}";
    prometheus.wait_for(bucket);
    let here = Scrape::parse(&plain);
    let opens = prometheus.wait_for("sum(handshake_tcp_opens_total)");
    assert!(opens > 0.0 && opens <= here.sum("handshake_tcp_opens_total", &[]) + 1e6, "{opens}");
    let samples = prometheus.wait_for("scrape_samples_scraped{job=\"handshake\"}");
    println!("{samples} samples");
}

/// A real one, with a short interval.
pub(crate) struct Prometheus {
    _child: ChildGuard,
    address: String,
}

impl Prometheus {
    /// Scrapes the target, whose job has these further settings.
    pub(crate) fn start(folder: &Path, target: &str, settings: &str) -> Self {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let config = format!(
            "global: {{scrape_interval: 500ms, scrape_timeout: 500ms}}\nscrape_configs:\n  - job_name: handshake\n{settings}    static_configs:\n      - {target}\n"
        );
        let file = folder.join("prometheus.yml");
        fs::write(&file, config).unwrap();
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!("--storage.tsdb.path={}", folder.join("data").display()));
        command.arg(format!("--web.listen-address={address}")).arg("--log.level=error");
        Self { _child: ChildGuard::start(command.stdout(Stdio::null())), address }
    }

    /// The value of a query that has one series, as soon as it has.
    #[track_caller]
    pub(crate) fn wait_for(&self, query: &str) -> f64 {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let answer = self.query(query);
            if let Some(value) =
                answer.as_ref().and_then(|answer| answer["data"]["result"][0]["value"][1].as_str())
            {
                return value.parse().unwrap();
            }
            assert!(Instant::now() < deadline, "{query}: {answer:?}");
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// Its answer. Returns `None` before it listens.
    fn query(&self, query: &str) -> Option<serde_json::Value> {
        let url = format!("http://{}/api/v1/query", self.address);
        let curl = ["-s", "--max-time", "5", "--data-urlencode"];
        let output = Command::new("curl").args(curl).arg(format!("query={query}")).arg(url).output().unwrap();
        serde_json::from_slice(&output.stdout).ok()
    }
}
