//! A collector that decodes requests with the official definitions, and hangs, lies or dies when told to.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use flate2::read::GzDecoder;
use opentelemetry_proto::tonic::{
    collector::{
        metrics::v1::ExportMetricsServiceRequest,
        trace::v1::{ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse},
    },
    common::v1::{KeyValue, any_value::Value as Any},
    trace::v1::Span,
};
use prost::Message as _;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::program::{Daemon, command, machine::patience};

const OFFICIAL: &str = "a request by the official definitions";
/// How long an export may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a collector answers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Manner {
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
pub(super) struct Seen {
    /// When each request came.
    pub(super) asked: Vec<Instant>,
    /// Those whose answer was success.
    pub(super) taken: Vec<ExportTraceServiceRequest>,
    /// The same of metrics.
    pub(super) metrics: Vec<ExportMetricsServiceRequest>,
    pub(super) headers: String,
}

/// An HTTP server for one kind of request.
pub(super) struct Collector {
    pub(super) address: SocketAddr,
    pub(super) manner: Arc<Mutex<Manner>>,
    pub(super) seen: Arc<Mutex<Seen>>,
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
    pub(super) fn start(manner: Manner) -> Self {
        Self::start_with(manner, None)
    }

    pub(super) fn start_with(manner: Manner, tls: Option<ServerConfig>) -> Self {
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
    pub(super) fn kill(&mut self) {
        let Some(Server { stop, streams, thread }) = self.running.take() else { return };
        stop.store(true, SeqCst);
        thread.join().unwrap();
        // Not in the middle of an answer.
        let _seen = self.seen.lock().unwrap();
        for stream in streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }

    pub(super) fn come_back(&mut self) {
        self.serve(TcpListener::bind(self.address).unwrap());
    }

    pub(super) fn behave(&self, manner: Manner) {
        *self.manner.lock().unwrap() = manner;
    }

    pub(super) fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// A daemon that exports to it.
    pub(super) fn daemon(&self, arguments: &[&str]) -> Daemon {
        self.daemon_with(arguments, &[])
    }

    pub(super) fn daemon_with(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Daemon {
        let url = self.url();
        let own = ["--listen", "127.0.0.1:0", "--tls-libraries", "off", "--otlp-endpoint", &url];
        let mut command = command(&[&own[..], arguments].concat());
        Daemon::spawn(command.envs(variables.iter().copied()))
    }

    /// Every span that it took, with the attributes of its resource.
    pub(super) fn spans(&self) -> Vec<(Span, Vec<KeyValue>)> {
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
    pub(super) fn wholes(&self, address: &str) -> Vec<Span> {
        let ends = ["network.local.address", "network.peer.address"];
        let spans = self.spans().into_iter().map(|(span, _)| span);
        let is_whole = |span: &Span| span.parent_span_id.is_empty();
        let has_it =
            |span: &Span| ends.iter().any(|end| text(&span.attributes, end).as_deref() == Some(address));
        spans.filter(|span| is_whole(span) && has_it(span)).collect()
    }

    pub(super) fn requests(&self) -> usize {
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

pub(super) fn any<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a Any> {
    attributes.iter().find(|one| one.key == key)?.value.as_ref()?.value.as_ref()
}

pub(super) fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    match any(attributes, key)? {
        Any::StringValue(text) => Some(text.clone()),
        _ => None,
    }
}

#[track_caller]
pub(super) fn wait_for(what: &str, mut enough: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !enough() {
        assert!(begin.elapsed() < patience(PATIENCE), "not in time: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}
