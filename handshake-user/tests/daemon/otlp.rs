//! Connections as traces, and metrics, taken by a collector that decodes them with the official definitions,
//! and by collectors that hang, lie or are killed.
#![expect(clippy::cast_precision_loss, reason = "small numbers")]

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use flate2::read::{GzDecoder, MultiGzDecoder};
use nix::sys::signal::Signal;
use opentelemetry_proto::tonic::{
    collector::{
        metrics::v1::ExportMetricsServiceRequest,
        trace::v1::{ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse},
    },
    common::v1::{KeyValue, any_value::Value as Any},
    metrics::v1::{AggregationTemporality, Metric, metric::Data, number_data_point::Value as Number},
    trace::v1::{Span, status::StatusCode},
};
use prost::Message as _;
use rustls::{ServerConfig, ServerConnection, StreamOwned, pki_types::pem::PemObject as _};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::{
    close, connect, listen,
    program::{Daemon, Scrape, command, machine::patience, tls_server::TlsServer},
    web::Certificates,
};

const EXPORTED: &str = "handshake_otlp_spans_exported_total";
const DROPPED: &str = "handshake_otlp_spans_dropped_total";
const CONNECTIONS: &str = "handshake_otlp_connections_total";
const OFFICIAL: &str = "a request by the official definitions";
const EXPORTS: &str = "handshake_otlp_metric_exports_total";
/// Metrics alone, as often as can be.
const METRICS: [(&str, &str); 2] =
    [("OTEL_TRACES_EXPORTER", "none"), ("OTEL_METRIC_EXPORT_INTERVAL", "1000")];
/// How long an export may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a collector answers.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Manner {
    /// It takes all.
    Takes,
    /// It takes all, and closes the connection each time.
    Closes,
    /// It takes the request and says that it rejected so many spans.
    Rejects(i64),
    /// It has no room, until so many seconds later.
    Later(u64),
    /// It answers with this status.
    Says(u16),
    /// Its answer is no message of OTLP.
    Raves,
    /// Its answer has no end.
    GoesOn,
    /// It does not answer.
    Hangs,
}

/// What it has seen.
#[derive(Default)]
struct Seen {
    /// When each request came.
    asked: Vec<Instant>,
    /// Those whose answer was success.
    taken: Vec<ExportTraceServiceRequest>,
    /// The same of metrics.
    metrics: Vec<ExportMetricsServiceRequest>,
    headers: String,
}

/// An HTTP server for one kind of request.
struct Collector {
    address: SocketAddr,
    manner: Arc<Mutex<Manner>>,
    seen: Arc<Mutex<Seen>>,
    tls: Option<Arc<ServerConfig>>,
    running: Option<Server>,
}

struct Server {
    stop: Arc<AtomicBool>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
    thread: JoinHandle<()>,
}

trait Stream: Read + Write {}
impl<S: Read + Write> Stream for S {}

impl Collector {
    fn start(manner: Manner) -> Self {
        Self::start_with(manner, None)
    }

    fn start_with(manner: Manner, tls: Option<ServerConfig>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut collector = Self {
            address: listener.local_addr().unwrap(),
            manner: Arc::new(Mutex::new(manner)),
            seen: Arc::default(),
            tls: tls.map(Arc::new),
            running: None,
        };
        collector.serve(listener);
        collector
    }

    fn serve(&mut self, listener: TcpListener) {
        listener.set_nonblocking(true).unwrap();
        let (stop, streams) = (Arc::new(AtomicBool::new(false)), Arc::<Mutex<Vec<TcpStream>>>::default());
        let (its_stop, its_streams) = (Arc::clone(&stop), Arc::clone(&streams));
        let (manner, seen, tls) = (Arc::clone(&self.manner), Arc::clone(&self.seen), self.tls.clone());
        let thread = thread::spawn(move || {
            while !its_stop.load(SeqCst) {
                let Ok((stream, _)) = listener.accept() else {
                    thread::sleep(Duration::from_millis(2));
                    continue;
                };
                stream.set_nonblocking(false).unwrap();
                its_streams.lock().unwrap().push(stream.try_clone().unwrap());
                let (manner, seen, tls) = (Arc::clone(&manner), Arc::clone(&seen), tls.clone());
                thread::spawn(move || {
                    let mut stream: Box<dyn Stream> = match tls {
                        Some(config) => {
                            Box::new(StreamOwned::new(ServerConnection::new(config).unwrap(), stream))
                        }
                        None => Box::new(stream),
                    };
                    while answer(&mut *stream, &manner, &seen).unwrap_or(false) {}
                });
            }
        });
        self.running = Some(Server { stop, streams, thread });
    }

    /// Neither listens nor answers any more.
    fn kill(&mut self) {
        let Some(Server { stop, streams, thread }) = self.running.take() else { return };
        stop.store(true, SeqCst);
        thread.join().unwrap();
        // Not in the middle of an answer.
        let _seen = self.seen.lock().unwrap();
        for stream in streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }

    fn come_back(&mut self) {
        self.serve(TcpListener::bind(self.address).unwrap());
    }

    fn behave(&self, manner: Manner) {
        *self.manner.lock().unwrap() = manner;
    }

    fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// A daemon that exports to it.
    fn daemon(&self, arguments: &[&str]) -> Daemon {
        self.daemon_with(arguments, &[])
    }

    fn daemon_with(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Daemon {
        let url = self.url();
        let own = ["--listen", "127.0.0.1:0", "--tls-libraries", "off", "--otlp-endpoint", &url];
        let mut command = command(&[&own[..], arguments].concat());
        Daemon::spawn(command.envs(variables.iter().copied()))
    }

    /// Every span that it took, with the attributes of its resource.
    fn spans(&self) -> Vec<(Span, Vec<KeyValue>)> {
        let seen = self.seen.lock().unwrap();
        let resources = seen.taken.iter().flat_map(|request| &request.resource_spans);
        let spans = resources.flat_map(|of| {
            let resource = of.resource.as_ref().unwrap().attributes.clone();
            let spans = of.scope_spans.iter().flat_map(|scope| scope.spans.clone());
            spans.map(move |span| (span, resource.clone()))
        });
        spans.collect()
    }

    /// The spans of whole connections with this address at either end.
    fn wholes(&self, address: &str) -> Vec<Span> {
        let ends = ["network.local.address", "network.peer.address"];
        let spans = self.spans().into_iter().map(|(span, _)| span);
        let is_whole = |span: &Span| span.parent_span_id.is_empty();
        let has_it =
            |span: &Span| ends.iter().any(|end| text(&span.attributes, end).as_deref() == Some(address));
        spans.filter(|span| is_whole(span) && has_it(span)).collect()
    }

    fn requests(&self) -> usize {
        self.seen.lock().unwrap().asked.len()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Reads a request and answers it. Returns whether another may follow.
fn answer(stream: &mut dyn Stream, manner: &Mutex<Manner>, seen: &Mutex<Seen>) -> io::Result<bool> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let mut body = vec![0; length.trim().parse().unwrap()];
    stream.read_exact(&mut body)?;
    let mut plain = Vec::new();
    if head.contains("content-encoding: gzip") {
        GzDecoder::new(&body[..]).read_to_end(&mut plain).unwrap();
    } else {
        plain = body;
    }
    let is_metrics = head.starts_with("post /v1/metrics http/1.1");
    let (traces, metrics) = if is_metrics {
        (None, Some(ExportMetricsServiceRequest::decode(&plain[..]).expect(OFFICIAL)))
    } else {
        (Some(ExportTraceServiceRequest::decode(&plain[..]).expect(OFFICIAL)), None)
    };
    let mut seen = seen.lock().unwrap();
    seen.asked.push(Instant::now());
    seen.headers = head;
    let partly = |rejected_spans| {
        let error_message = "no room".to_owned();
        let partial_success = Some(ExportTracePartialSuccess { rejected_spans, error_message });
        ExportTraceServiceResponse { partial_success }.encode_to_vec()
    };
    let (status, headers, body) = match *manner.lock().unwrap() {
        Manner::Takes => (200, String::new(), Vec::new()),
        Manner::Closes => (200, "connection: close\r\n".to_owned(), Vec::new()),
        Manner::Rejects(spans) => (200, String::new(), partly(spans)),
        Manner::Later(seconds) => (503, format!("retry-after: {seconds}\r\n"), Vec::new()),
        Manner::Says(status) => (status, String::new(), Vec::new()),
        Manner::Raves => (200, String::new(), b"<html>welcome".to_vec()),
        Manner::GoesOn => {
            drop(seen);
            stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?;
            loop {
                stream.write_all(b"4\r\n\0\0\0\0\r\n")?;
            }
        }
        Manner::Hangs => {
            drop(seen);
            stream.read_exact(&mut byte)?;
            return Ok(false);
        }
    };
    write!(stream, "HTTP/1.1 {status} X\r\n{headers}content-length: {}\r\n\r\n", body.len())?;
    stream.write_all(&body)?;
    stream.flush()?;
    if status == 200 {
        seen.taken.extend(traces);
        seen.metrics.extend(metrics);
    }
    Ok(headers.is_empty() || status != 200)
}

fn any<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a Any> {
    attributes.iter().find(|one| one.key == key)?.value.as_ref()?.value.as_ref()
}

fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    match any(attributes, key)? {
        Any::StringValue(text) => Some(text.clone()),
        _ => None,
    }
}

#[track_caller]
fn wait_for(what: &str, mut enough: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !enough() {
        assert!(begin.elapsed() < patience(PATIENCE), "not in time: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// The close records of this address in the daemon's files.
fn closes(folder: &Path, address: &str) -> Vec<Value> {
    let mut text = String::new();
    for file in fs::read_dir(folder).unwrap() {
        let file = fs::File::open(file.unwrap().path()).unwrap();
        MultiGzDecoder::new(file).read_to_string(&mut text).unwrap();
    }
    let records = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let ends_here =
        |record: &Value| [&record["local"], &record["remote"]].iter().any(|end| end["addr"] == address);
    records.filter(|record| record["event"] == "close" && ends_here(record)).collect()
}

/// A time of RFC 3339, microseconds since 1970.
fn micros(time: &Value) -> u64 {
    let time = humantime::parse_rfc3339(time.as_str().unwrap()).unwrap();
    u64::try_from(time.duration_since(std::time::UNIX_EPOCH).unwrap().as_micros()).unwrap()
}

/// As the documentation says.
fn trace_id(record: &Value) -> Vec<u8> {
    let text = |key: &str| record[key].as_str().unwrap();
    Sha256::digest(format!("{}/{}", text("boot_id"), text("id")))[..16].to_vec()
}

#[test]
fn connection_is_a_trace_and_its_times_are_those_of_its_record() {
    let collector = Collector::start(Manner::Takes);
    let folder = tempfile::tempdir().unwrap();
    let server = TlsServer::start(2, &["-tls1_3"]);
    let daemon = collector.daemon_with(
        &["--records", folder.path().to_str().unwrap()],
        &[
            ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=a%20b"),
        ],
    );
    let (listener, at, _) = listen("127.77.60.1");
    for _ in 0..5 {
        close(connect(&listener, at));
    }
    let mut curl = Command::new("curl");
    curl.args(["-sk", "-o", "/dev/null", "--resolve"])
        .arg(format!("example.org:{}:127.0.0.1", server.address.port()));
    assert!(curl.arg(format!("https://example.org:{}/", server.address.port())).status().unwrap().success());

    let is_tls = |span: &Span| {
        let port = Some(&Any::IntValue(i64::from(server.address.port())));
        any(&span.attributes, "server.port") == port && span.parent_span_id.is_empty()
    };
    let tls = || collector.spans().into_iter().map(|(span, _)| span).filter(is_tls).count();
    wait_for("5 connections of two ends, and one with TLS", || {
        collector.wholes("127.77.60.1").len() == 10 && tls() == 2
    });
    let mut records = Vec::new();
    wait_for("their records", || {
        records = closes(folder.path(), "127.77.60.1");
        let with_tls = closes(folder.path(), "127.0.0.1").into_iter();
        let port = server.address.port();
        records.extend(
            with_tls.filter(|record| record["local"]["port"] == port || record["remote"]["port"] == port),
        );
        records.len() == 12
    });

    let mut traces: HashMap<Vec<u8>, Vec<(Span, Vec<KeyValue>)>> = HashMap::new();
    for (span, resource) in collector.spans() {
        traces.entry(span.trace_id.clone()).or_default().push((span, resource));
    }
    let mut parts = 0;
    for record in &records {
        let trace = traces.get(&trace_id(record)).unwrap_or_else(|| panic!("no trace of {record}"));
        let (whole, resource) = trace.iter().find(|(span, _)| span.parent_span_id.is_empty()).unwrap();
        let at = |ns: u64| ns / 1000;
        let number = |value: &Value| value.as_u64();
        assert_eq!(at(whole.end_time_unix_nano), micros(&record["time"]), "{record}");
        if let Some(lifetime) = number(&record["lifetime_us"]) {
            assert_eq!(whole.end_time_unix_nano - whole.start_time_unix_nano, lifetime * 1000, "{record}");
        }
        for (part, _) in trace.iter().filter(|(span, _)| !span.parent_span_id.is_empty()) {
            parts += 1;
            assert_eq!(part.parent_span_id, whole.span_id);
            let lasts = part.end_time_unix_nano - part.start_time_unix_nano;
            let (begins, said) = match part.name.as_str() {
                "TCP open" => (0, &record["open"]["duration_us"]),
                "TLS handshake" => {
                    (record["tls"]["start_us"].as_u64().unwrap(), &record["tls"]["duration_us"])
                }
                "TCP close" => {
                    assert_eq!(part.end_time_unix_nano, whole.end_time_unix_nano, "{record}");
                    // Where the FINs crossed, it ends with the ACK of ours.
                    let crossed = record["close"]["style"] == "simultaneous";
                    let end = if crossed { "ack_wait_us" } else { "duration_us" };
                    assert_eq!(Some(lasts / 1000), number(&record["close"][end]), "{record}");
                    continue;
                }
                // It comes later.
                "TCP TIME_WAIT" => continue,
                other => panic!("{other}: {part:?}"),
            };
            assert_eq!(part.start_time_unix_nano, whole.start_time_unix_nano + begins * 1000, "{record}");
            assert_eq!(Some(lasts / 1000), number(said), "{record}");
            assert!(part.end_time_unix_nano <= whole.end_time_unix_nano, "{record}");
        }
        assert_eq!(text(&whole.attributes, "handshake.id").as_deref(), record["id"].as_str());
        assert_eq!(text(resource, "host.name").as_deref(), record["host"].as_str());
        assert_eq!(text(resource, "deployment.environment.name").as_deref(), Some("test"));
        if let Some(comm) = record["process"]["comm"].as_str() {
            assert_eq!(text(resource, "service.name").as_deref(), Some(comm));
        }
    }
    assert!(parts >= 12 * 2, "an opening and a closing each, {parts}");
    let curl = collector.spans().into_iter().find(|(span, _)| {
        span.name == "TLS handshake"
            && text(&span.attributes, "handshake.tls.role").as_deref() == Some("client")
    });
    let (handshake, _) = curl.expect("the handshake of curl");
    assert_eq!(text(&handshake.attributes, "tls.protocol.version").as_deref(), Some("1.3"));
    assert_eq!(any(&handshake.attributes, "tls.established"), Some(&Any::BoolValue(true)));
    assert!(handshake.events.iter().filter(|event| event.name == "flight").count() >= 2, "{handshake:?}");

    let headers = collector.seen.lock().unwrap().headers.clone();
    assert!(headers.starts_with("post /v1/traces http/1.1"), "{headers}");
    assert!(headers.contains("x-tenant: a b") && headers.contains("application/x-protobuf"), "{headers}");
    let (scrape, taken) = (daemon.scrape(), collector.spans().len());
    assert!(scrape.sum(EXPORTED, &[]) <= taken as f64 && scrape.sum(EXPORTED, &[]) > 0.0);
    assert_eq!(scrape.sum(DROPPED, &[]), 0.0);
}

#[test]
fn own_connections_are_not_exported_even_if_the_collector_closes_each() {
    let collector = Collector::start(Manner::Closes);
    let daemon = collector.daemon(&[]);
    let (listener, at, _) = listen("127.77.61.1");
    for round in 1..=4 {
        close(connect(&listener, at));
        wait_for("the connection", || collector.wholes("127.77.61.1").len() == 2 * round);
    }
    assert!(collector.requests() >= 4);
    // The connections to the collector have closed, and would be among these.
    thread::sleep(Duration::from_secs(3));
    let port = Some(&Any::IntValue(i64::from(collector.address.port())));
    for (span, _) in collector.spans() {
        let ends = ["network.local.port", "network.peer.port"];
        assert!(ends.iter().all(|end| any(&span.attributes, end) != port), "{span:?}");
    }
    drop(daemon);
}

#[test]
fn collector_that_is_killed_and_comes_back_misses_nothing_and_is_told_nothing_twice() {
    let mut collector = Collector::start(Manner::Takes);
    let daemon = collector.daemon(&[]);
    let (listener, at, _) = listen("127.77.62.1");
    let begin = Instant::now();
    let mut made = 0;
    let mut load = |until: u64| {
        while begin.elapsed() < Duration::from_secs(until) {
            close(connect(&listener, at));
            made += 1;
        }
    };
    load(2);
    collector.kill();
    load(5);
    collector.come_back();
    load(7);
    wait_for("every connection", || collector.wholes("127.77.62.1").len() >= 2 * made);
    let wholes = collector.wholes("127.77.62.1");
    assert_eq!(wholes.len(), 2 * made, "each once");
    let mut told: HashMap<(Vec<u8>, Vec<u8>), u32> = HashMap::new();
    for (span, _) in collector.spans() {
        *told.entry((span.trace_id, span.span_id)).or_default() += 1;
    }
    let twice: Vec<_> = told.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    // What the collector took, the daemon counts, and the rest waits for the next request.
    let scrape = daemon.scrape_until(|scrape| scrape.sum(EXPORTED, &[]) == collector.spans().len() as f64);
    assert_eq!(scrape.sum(EXPORTED, &[]), collector.spans().len() as f64);
    assert_eq!(scrape.sum(DROPPED, &[]), 0.0);
    assert!(scrape.sum(CONNECTIONS, &["sampled=\"true\""]) >= 2.0 * made as f64);
    assert!(daemon.said().contains("connections are not exported: cannot connect"), "{}", daemon.said());
}

#[test]
fn collector_that_hangs_stalls_nothing_and_is_asked_again() {
    let collector = Collector::start(Manner::Hangs);
    let daemon = collector.daemon_with(&[], &[("OTEL_EXPORTER_OTLP_TIMEOUT", "300")]);
    let (listener, at, _) = listen("127.77.63.1");
    for _ in 0..10 {
        close(connect(&listener, at));
    }
    wait_for("a second attempt", || collector.requests() >= 2);
    let before = daemon.scrape().sum("handshake_events_total", &["stage=\"close\""]);
    close(connect(&listener, at));
    let after = daemon
        .scrape_until(|scrape| scrape.sum("handshake_events_total", &["stage=\"close\""]) >= before + 2.0);
    assert!(after.sum("handshake_events_total", &["stage=\"close\""]) >= before + 2.0);
    assert_eq!((after.sum(EXPORTED, &[]), after.sum(DROPPED, &[])), (0.0, 0.0));
    assert_eq!(daemon.request("GET", "/healthz").0, 200);
    assert!(daemon.said().contains("no answer in time"), "{}", daemon.said());
    collector.behave(Manner::Takes);
    wait_for("all of them", || collector.wholes("127.77.63.1").len() == 22);
}

#[test]
fn end_does_not_wait_for_a_collector_that_hangs() {
    let collector = Collector::start(Manner::Hangs);
    let daemon = collector.daemon(&[]);
    let (listener, at, _) = listen("127.77.64.1");
    close(connect(&listener, at));
    wait_for("an attempt", || collector.requests() >= 1);
    let (status, took, log) = daemon.end(Signal::SIGTERM);
    assert!(status.success() && took < patience(Duration::from_secs(30)), "{took:?}");
    let log = String::from_utf8(log).unwrap();
    assert!(log.contains("spans were not exported before the end"), "{log}");

    // And one that listens gets the last second.
    collector.behave(Manner::Takes);
    let daemon = collector.daemon(&[]);
    let before = collector.wholes("127.77.64.1").len();
    close(connect(&listener, at));
    thread::sleep(Duration::from_millis(100));
    assert!(daemon.end(Signal::SIGTERM).0.success());
    assert_eq!(collector.wholes("127.77.64.1").len(), before + 2);
}

#[test]
fn collector_is_asked_again_when_it_says_and_not_before() {
    let collector = Collector::start(Manner::Later(4));
    let daemon = collector.daemon(&[]);
    let (listener, at, _) = listen("127.77.65.1");
    close(connect(&listener, at));
    wait_for("the first request", || collector.requests() == 1);
    collector.behave(Manner::Takes);
    wait_for("the connection", || collector.wholes("127.77.65.1").len() == 2);
    let seen = collector.seen.lock().unwrap();
    let waited = seen.asked[1] - seen.asked[0];
    assert!(waited >= Duration::from_secs(4), "{waited:?}");
    drop(seen);
    assert_eq!(daemon.scrape().sum(DROPPED, &[]), 0.0);
}

#[test]
fn collector_that_lies_costs_spans_that_are_counted_and_nothing_else() {
    let collector = Collector::start(Manner::Rejects(i64::MAX));
    let daemon = collector.daemon(&[]);
    let (listener, at, _) = listen("127.77.66.1");
    let dropped = |scrape: &Scrape, reason: &str| scrape.sum(DROPPED, &[&format!("reason=\"{reason}\"")]);
    let mut before: f64 = 0.0;
    for (manner, reason) in [
        (Manner::Rejects(i64::MAX), "rejected"),
        (Manner::Raves, "unconfirmed"),
        (Manner::GoesOn, "unconfirmed"),
        (Manner::Says(400), "refused"),
        (Manner::Says(301), "refused"),
    ] {
        collector.behave(manner);
        let so_far = dropped(&daemon.scrape(), reason);
        close(connect(&listener, at));
        let scrape = daemon.scrape_until(|scrape| dropped(scrape, reason) >= so_far + 2.0);
        assert!(dropped(&scrape, reason) >= so_far + 2.0, "{manner:?}");
        before = before.max(scrape.sum(EXPORTED, &[]));
    }
    assert_eq!(before, 0.0, "it took nothing");
    assert!(daemon.said().contains("no room"), "{}", daemon.said());
    // Some, and the rest is exported.
    collector.behave(Manner::Rejects(1));
    let rejected = dropped(&daemon.scrape(), "rejected");
    close(connect(&listener, at));
    let scrape = daemon.scrape_until(|scrape| scrape.sum(EXPORTED, &[]) >= 1.0);
    assert!(scrape.sum(EXPORTED, &[]) >= 1.0);
    assert!(dropped(&scrape, "rejected") >= rejected + 1.0);
    assert!(daemon.resident_kib() < 256 << 10);
}

#[test]
fn sample_never_leaves_out_a_failure() {
    let collector = Collector::start(Manner::Takes);
    let daemon = collector.daemon(&["--otlp-sample", "0"]);
    let (listener, at, _) = listen("127.77.67.1");
    for _ in 0..10 {
        close(connect(&listener, at));
    }
    drop(listener);
    TcpStream::connect(at).unwrap_err();
    wait_for("the failure", || !collector.wholes("127.77.67.1").is_empty());
    let scrape = daemon.scrape_until(|scrape| scrape.sum(CONNECTIONS, &["sampled=\"false\""]) >= 20.0);
    assert!(scrape.sum(CONNECTIONS, &["sampled=\"false\""]) >= 20.0);
    thread::sleep(Duration::from_secs(2));
    let [whole] = &collector.wholes("127.77.67.1")[..] else { panic!("more than the failure") };
    assert_eq!((whole.trace_state.as_str(), whole.kind), ("ot=th:0", 3));
    let status = whole.status.as_ref().unwrap();
    assert_eq!((status.code, status.message.as_str()), (StatusCode::Error as i32, "refused"));
}

#[test]
fn collector_is_verified_by_the_authority_that_a_variable_names() {
    let made = Certificates::new();
    let chain = rustls::pki_types::CertificateDer::from_pem_file(made.path("server.pem")).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::from_pem_file(made.path("server.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![chain], key).unwrap();
    let collector = Collector::start_with(Manner::Takes, Some(config));
    let (listener, at, _) = listen("127.77.68.1");
    let authority = made.path("ca.pem");
    let variable = ("OTEL_EXPORTER_OTLP_CERTIFICATE", authority.to_str().unwrap());
    let daemon = collector.daemon_with(&[], &[variable]);
    close(connect(&listener, at));
    wait_for("the connection", || collector.wholes("127.77.68.1").len() == 2);
    drop(daemon);

    let other = made.path("client.pem");
    let variable = ("OTEL_EXPORTER_OTLP_CERTIFICATE", other.to_str().unwrap());
    let daemon = collector.daemon_with(&[], &[variable]);
    close(connect(&listener, at));
    wait_for("trouble", || daemon.said().contains("connections are not exported: cannot connect"));
    assert_eq!(collector.wholes("127.77.68.1").len(), 2);
}

/// The latest metrics that it took.
fn latest(collector: &Collector) -> ExportMetricsServiceRequest {
    collector.seen.lock().unwrap().metrics.last().expect("no metrics").clone()
}

/// Families and their metrics.
fn by_name(request: &ExportMetricsServiceRequest) -> BTreeMap<String, Metric> {
    let [of] = &request.resource_metrics[..] else { panic!("{request:?}") };
    let [scope] = &of.scope_metrics[..] else { panic!("{request:?}") };
    assert_eq!(scope.scope.as_ref().unwrap().name, "handshake");
    let named: BTreeMap<_, _> = scope.metrics.iter().map(|it| (it.name.clone(), it.clone())).collect();
    assert_eq!(named.len(), scope.metrics.len(), "each once");
    named
}

/// A series as in the text of Prometheus, with its labels in order.
fn series(name: &str, labels: impl IntoIterator<Item = (String, String)>) -> String {
    let mut labels: Vec<_> = labels.into_iter().map(|(name, value)| format!("{name}={value:?}")).collect();
    labels.sort();
    format!("{name}{{{}}}", labels.join(","))
}

/// What only grows, as a scrape has it: counters, and the buckets, sums and counts of histograms.
fn growing(request: &ExportMetricsServiceRequest) -> BTreeMap<String, f64> {
    let mut values = BTreeMap::new();
    for (name, metric) in by_name(request) {
        let labels = |attributes: &[KeyValue]| -> Vec<(String, String)> {
            let value = |one: &KeyValue| text(attributes, &one.key).unwrap();
            attributes.iter().map(|one| (one.key.clone(), value(one))).collect()
        };
        let cumulative = AggregationTemporality::Cumulative as i32;
        match metric.data.unwrap() {
            Data::Sum(sum) => {
                assert!(sum.is_monotonic && sum.aggregation_temporality == cumulative, "{name}");
                for point in sum.data_points {
                    assert!(0 < point.start_time_unix_nano, "{name}");
                    assert!(point.start_time_unix_nano < point.time_unix_nano, "{name}");
                    let Some(Number::AsDouble(value)) = point.value else { panic!("{name}: {point:?}") };
                    values.insert(series(&name, labels(&point.attributes)), value);
                }
            }
            Data::Histogram(histogram) => {
                assert_eq!(histogram.aggregation_temporality, cumulative, "{name}");
                for point in histogram.data_points {
                    let of = labels(&point.attributes);
                    assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1, "{name}");
                    assert_eq!(point.bucket_counts.iter().sum::<u64>(), point.count, "{name}");
                    let mut below = 0;
                    for (at, own) in point.bucket_counts.iter().enumerate() {
                        below += own;
                        let bound = point.explicit_bounds.get(at);
                        let bound = bound.map_or_else(|| "+Inf".to_owned(), f64::to_string);
                        let with_bound = of.iter().cloned().chain([("le".to_owned(), bound)]);
                        values.insert(series(&format!("{name}_bucket"), with_bound), below as f64);
                    }
                    values.insert(series(&format!("{name}_count"), of.clone()), point.count as f64);
                    values.insert(series(&format!("{name}_sum"), of), point.sum.unwrap());
                }
            }
            _ => {}
        }
    }
    values
}

/// The text of a scrape: the type of each family, and the value of each series.
fn scraped(daemon: &Daemon) -> (BTreeMap<String, String>, BTreeMap<String, f64>) {
    let (_, _, body) = daemon.request("GET", "/metrics");
    let (mut types, mut values) = (BTreeMap::new(), BTreeMap::new());
    for line in body.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|line| line.split_once(' ')) {
            types.insert(name.to_owned(), kind.to_owned());
        } else if !line.starts_with('#') {
            let (of, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = of.trim_end_matches('}').split_once('{').unwrap_or((of, ""));
            // No value here has a comma.
            let labels = labels.split(',').filter(|label| !label.is_empty());
            let labels = labels.map(|label| {
                let (name, value) = label.split_once('=').unwrap();
                (name.to_owned(), value.trim_matches('"').to_owned())
            });
            let labels = labels.filter(|(_, value)| !value.is_empty());
            values.insert(series(name, labels), value.parse().unwrap());
        }
    }
    (types, values)
}

#[test]
fn metrics_are_those_of_the_page() {
    let collector = Collector::start(Manner::Takes);
    let daemon = collector.daemon_with(&["--otlp-signal", "metrics,traces"], &METRICS);
    let (listener, at, _) = listen("127.77.69.1");
    for _ in 0..5 {
        close(connect(&listener, at));
    }
    daemon.metrics_until(|text| text.contains("handshake_tcp_close_ack_wait_seconds_bucket"));
    let (types, before) = scraped(&daemon);
    // One that began after that.
    let requests = collector.requests();
    wait_for("two more exports", || collector.requests() >= requests + 2);
    let request = latest(&collector);
    let (_, after) = scraped(&daemon);

    let exported = by_name(&request);
    let kinds = exported.iter().map(|(name, metric)| {
        let kind = match metric.data.as_ref().unwrap() {
            Data::Sum(_) => "counter",
            Data::Histogram(_) => "histogram",
            _ => "gauge",
        };
        assert_eq!(text(&metric.metadata, "prometheus.type").as_deref(), Some(kind));
        (name.clone(), kind.to_owned())
    });
    let kinds: BTreeMap<_, _> = kinds.collect();
    // Families of others' connections may have come meanwhile.
    for (name, kind) in &types {
        assert_eq!(kinds.get(name), Some(kind), "{name}");
    }
    let unit = |name: &str| exported[name].unit.clone();
    assert_eq!(unit("handshake_tcp_close_ack_wait_seconds"), "s");
    assert_eq!(
        (unit("handshake_records_written_bytes_total"), unit("handshake_connections")),
        ("By".into(), String::new())
    );

    let growing = growing(&request);
    let mut compared = BTreeSet::new();
    for (series, value) in &growing {
        let least = before.get(series).copied().unwrap_or(0.0);
        let most = *after.get(series).unwrap_or_else(|| panic!("{series} is not on the page"));
        assert!(least <= *value && *value <= most, "{series}: {least}, {value}, {most}");
        compared.insert(series.split('{').next().unwrap().to_owned());
    }
    // None is missing.
    for series in before.keys() {
        let name = series.split('{').next().unwrap();
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
        let is_histogram = family.is_some_and(|family| types.get(family).is_some_and(|it| it == "histogram"));
        if is_histogram || types.get(name).is_some_and(|it| it == "counter") {
            assert!(growing.contains_key(series), "{series}");
        }
    }
    let opens = "handshake_tcp_opens_total{family=\"ipv4\",outcome=\"established\",role=\"client\"}";
    assert!(growing[opens] >= 5.0, "{compared:?}");
    assert!(compared.contains("handshake_tcp_close_ack_wait_seconds_bucket"), "{compared:?}");

    let resource = request.resource_metrics[0].resource.clone().unwrap().attributes;
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(text(&resource, "service.name").as_deref(), Some("handshake"));
    assert_eq!(text(&resource, "service.version").as_deref(), Some(env!("CARGO_PKG_VERSION")));
    for name in ["host.name", "service.instance.id"] {
        assert_eq!(text(&resource, name).as_deref(), Some(host.trim()));
    }
    // No traces, and so no records of connections without TLS.
    assert!(collector.seen.lock().unwrap().taken.is_empty());
    let scrape = daemon.scrape();
    if !daemon.said().contains("records fill them") {
        assert_eq!(scrape.sum("handshake_events_total", &["stage=\"open\""]), 0.0);
    }
    assert_eq!(scrape.sum(CONNECTIONS, &[]), 0.0);
    let exports = |result: &str| scrape.sum(EXPORTS, &[&format!("result=\"{result}\"")]);
    assert!(exports("success") >= 2.0);
    assert_eq!(exports("success"), scrape.sum(EXPORTS, &[]));
}

#[test]
fn metrics_that_could_not_be_delivered_are_replaced_by_the_next_and_by_the_last() {
    let mut collector = Collector::start(Manner::Hangs);
    let variables = [&METRICS[..], &[("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "300")]].concat();
    let daemon = collector.daemon_with(&["--otlp-signal", "metrics"], &variables);
    let result = |scrape: &Scrape, result: &str| scrape.sum(EXPORTS, &[&format!("result=\"{result}\"")]);
    wait_for("a second attempt", || collector.requests() >= 2);
    let scrape = daemon.scrape_until(|scrape| result(scrape, "replaced") >= 1.0);
    assert!(result(&scrape, "replaced") >= 1.0);
    assert_eq!(result(&scrape, "success"), 0.0);
    assert_eq!(daemon.request("GET", "/healthz").0, 200);
    assert!(daemon.said().contains("metrics are not exported: no answer in time"), "{}", daemon.said());

    collector.kill();
    collector.behave(Manner::Takes);
    thread::sleep(Duration::from_secs(2));
    collector.come_back();
    wait_for("the latest", || !collector.seen.lock().unwrap().metrics.is_empty());
    // Each is told once, and none that was replaced.
    let times = |collector: &Collector| -> Vec<u64> {
        let seen = collector.seen.lock().unwrap();
        let points = seen.metrics.iter().map(|request| {
            let Some(Data::Sum(sum)) = &by_name(request)["handshake_tcp_opens_total"].data else { panic!() };
            sum.data_points[0].time_unix_nano
        });
        points.collect()
    };
    wait_for("two more", || times(&collector).len() >= 3);
    assert!(times(&collector).is_sorted_by(|one, next| one < next), "{:?}", times(&collector));

    for (manner, name) in
        [(Manner::Says(400), "refused"), (Manner::Raves, "unconfirmed"), (Manner::Rejects(1), "rejected")]
    {
        collector.behave(manner);
        let before = result(&daemon.scrape(), name);
        let scrape = daemon.scrape_until(|scrape| result(scrape, name) > before);
        assert!(result(&scrape, name) > before, "{name}");
    }

    // What happened last is told at the end.
    collector.behave(Manner::Takes);
    let (listener, at, _) = listen("127.77.70.1");
    let before = daemon.scrape().sum("handshake_tcp_opens_total", &[]);
    close(connect(&listener, at));
    assert!(daemon.end(Signal::SIGTERM).0.success());
    let growing = growing(&latest(&collector));
    let opens: f64 = growing
        .iter()
        .filter(|(name, _)| name.starts_with("handshake_tcp_opens_total{"))
        .map(|(_, it)| it)
        .sum();
    assert!(opens >= before + 2.0, "{opens}, {before}");
}

#[test]
fn end_does_not_wait_for_a_collector_of_metrics_that_hangs() {
    let collector = Collector::start(Manner::Hangs);
    let daemon = collector.daemon_with(&["--otlp-signal", "metrics"], &METRICS);
    wait_for("an attempt", || collector.requests() >= 1);
    let (status, took, log) = daemon.end(Signal::SIGTERM);
    assert!(status.success() && took < patience(Duration::from_secs(30)), "{took:?}");
    let log = String::from_utf8(log).unwrap();
    assert!(log.contains("the last metrics were not exported before the end"), "{log}");
}
