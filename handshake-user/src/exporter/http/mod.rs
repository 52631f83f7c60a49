//! The daemon's HTTP server: six pages, GET and HEAD, and one request that does something; HTTP/1.

mod activity;
mod auth;
mod body;
mod connections;
mod look_back;
mod negotiation;
mod rendering;
mod stream;
mod web;

use std::{
    convert::Infallible,
    future::Future,
    io::{self, Write as _},
    net::{IpAddr, SocketAddr},
    os::fd::{FromRawFd as _, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use flate2::{Compression, write::GzEncoder};
use hyper::{
    Method, Request, Response, StatusCode, Version,
    header::{
        ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST,
        HeaderValue, REFERRER_POLICY, VARY, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
    },
    http::uri::Authority,
    rt,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::{
    rt::TokioIo,
    server::graceful::{GracefulConnection, GracefulShutdown},
};
use rustix::net::{AddressFamily, SocketType, sockopt};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

pub use self::web::Web;
use self::{
    activity::Activity, auth::Verdict, body::Body, connections::Connections, look_back::LookBacks,
    negotiation::Variant, rendering::Renderings, stream::Stream,
};
use super::{metrics::Format, page::policy};
use crate::recording::{NoLookBack, Written};

/// Connections that may await `accept()`, if `net.core.somaxconn` allows.
const BACKLOG: u32 = 4096;
/// What the kernel keeps of a connection, unread and unsent; it takes twice as much for its own account of
/// it.
const RECEIVE_BUFFER: u32 = 16 * 1024;
const SEND_BUFFER: u32 = 64 * 1024;
/// How long a peer may leave data unacknowledged, even after we have closed.
const ACKNOWLEDGED: Duration = Duration::from_secs(10);
/// Largest head of a request, bytes; the HTTP layer accepts a hundred headers.
const HEAD: usize = 16 * 1024;
/// How long responses in progress may take once the server stops.
const SHUTDOWN: Duration = Duration::from_millis(500);
/// Shortest time between two log lines about the same problem.
const LOG_INTERVAL: Duration = Duration::from_mins(1);

const TEXT: &str = "text/plain; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";
const FORBIDDEN: &str = "the page / has names and addresses, so it answers only this host, as localhost or a loopback address; \
    page = \"all\" in the configuration, or --page all, shows it to whoever reaches the server\n";

/// What the pages show.
pub trait Pages: Send + Sync + 'static {
    /// The text of `/metrics`.
    ///
    /// # Errors
    /// When it cannot be rendered now.
    fn metrics(&self, format: Format) -> Result<String>;
    /// The page `/`.
    ///
    /// # Errors
    /// When it cannot be drawn now.
    fn page(&self) -> Result<String>;
    /// Whether peers on other hosts may see it.
    fn shows_page_to_all(&self) -> bool;
    /// Has the records of the last while written to a file.
    ///
    /// # Errors
    /// Why not.
    fn look_back(&self) -> Result<Written, NoLookBack>;
    /// The configuration in force, as a file.
    fn config(&self) -> String;
    /// Whether the event loop lives.
    ///
    /// # Errors
    /// Why not.
    fn healthy(&self) -> Result<()>;
    /// Whether all required probes are attached.
    ///
    /// # Errors
    /// Why not.
    fn ready(&self) -> Result<()>;
}

/// Listens on the address.
///
/// # Errors
/// When that is not possible; the text says what to do.
pub fn listen(address: SocketAddr) -> Result<TcpListener> {
    bind(address).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => anyhow!(
            "cannot listen on {address}: it is in use; find out by whom with `ss -ltnp 'sport = :{}'`, or choose another \
             with --listen",
            address.port()
        ),
        io::ErrorKind::AddrNotAvailable => anyhow!(
            "cannot listen on {address}: this host does not have the address; list its addresses with `ip address`"
        ),
        io::ErrorKind::PermissionDenied => anyhow!(
            "cannot listen on {address}: ports below 1024 need root or CAP_NET_BIND_SERVICE; choose another with --listen"
        ),
        _ => anyhow!("cannot listen on {address}: {error}"),
    })
}

/// The listening socket that the service manager passed on (`LISTEN_FDS`). Returns `None` if it did not.
///
/// # Errors
/// When what it passed on is not one listening TCP socket.
pub fn inherited() -> Result<Option<TcpListener>> {
    let mut passed = sd_notify::listen_fds().context("cannot take over the socket of the service manager")?;
    let Some(descriptor) = passed.next() else { return Ok(None) };
    ensure!(
        passed.next().is_none(),
        "the service manager passed on several sockets: handshake listens on one"
    );
    // SAFETY: the service manager opened it for this process, and nobody else here takes it.
    let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };
    adopted(socket)
        .context("the service manager passed on something else than a listening TCP socket (ListenStream=ADDRESS:PORT)")
        .map(Some)
}

fn adopted(socket: OwnedFd) -> io::Result<TcpListener> {
    let is_internet = matches!(sockopt::socket_domain(&socket)?, AddressFamily::INET | AddressFamily::INET6);
    let is_listening = sockopt::socket_acceptconn(&socket)?;
    if !is_internet || !is_listening || sockopt::socket_type(&socket)? != SocketType::STREAM {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER as usize)?;
    sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER as usize)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    sockopt::set_tcp_user_timeout(&socket, user_timeout())?;
    let listener = std::net::TcpListener::from(socket);
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

fn user_timeout() -> u32 {
    u32::try_from(ACKNOWLEDGED.as_millis()).unwrap_or(u32::MAX)
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Connections from before a restart may still be in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    // Accepted sockets inherit all of these.
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.set_nodelay(true)?;
    sockopt::set_tcp_user_timeout(&socket, user_timeout())?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves until `stop`, then gives responses in progress a moment to finish.
pub async fn serve<P: Pages>(
    listener: TcpListener,
    pages: Arc<P>,
    web: Arc<Web>,
    stop: impl Future<Output = ()>,
) {
    let site = Arc::new(Site::new(pages, web));
    let graceful = GracefulShutdown::new();
    let mut connections = Connections::new();
    let (mut crowded, mut refused) = (Notice::default(), Notice::default());
    tokio::pin!(stop);
    loop {
        if connections.is_full() && crowded.is_due() {
            tracing::warn!(
                "too many HTTP connections: those that keep the server waiting are closed in favour of new ones; let a \
                 firewall admit only Prometheus"
            );
        }
        let next = async {
            connections.room().await;
            listener.accept().await
        };
        let accepted = tokio::select! {
            biased;
            () = &mut stop => break,
            accepted = next => accepted,
        };
        match accepted {
            // Reset while it waited: a crowd that connects and resets would get a response each.
            Ok((tcp, _)) if !matches!(tcp.take_error(), Ok(None)) => {}
            Ok((tcp, peer)) => {
                let is_local = peer.ip().to_canonical().is_loopback();
                let peer = Peer { is_local, is_certified: false };
                let tls = site.web.settings().tls.clone();
                let activity = if tls.is_some() { Activity::handshaking() } else { Activity::new() };
                let activity = Arc::new(activity);
                let stream = Stream::new(tcp, Arc::clone(&activity));
                let (watcher, site) = (graceful.watcher(), Arc::clone(&site));
                let its = Arc::clone(&activity);
                let task = tokio::spawn(async move {
                    let ended = match tls {
                        None => watcher.watch(conversation(TokioIo::new(stream), site, its, peer)).await,
                        Some(tls) => {
                            let Some(stream) = handshake(tls, stream).await else { return };
                            its.handshaken();
                            // One that was not verified would have failed the handshake.
                            let is_certified = stream.get_ref().1.peer_certificates().is_some();
                            let peer = Peer { is_certified, ..peer };
                            watcher.watch(conversation(TokioIo::new(stream), site, its, peer)).await
                        }
                    };
                    if let Err(error) = ended {
                        tracing::debug!(%error, "an HTTP connection ended early");
                    }
                });
                connections.add(activity, task.abort_handle());
            }
            Err(error) if is_of_the_connection(&error) => {}
            Err(error) => {
                if refused.is_due() {
                    tracing::warn!(
                        %error,
                        "cannot accept an HTTP connection; if open files are exhausted, raise LimitNOFILE (ulimit -n)"
                    );
                }
                connections.close_some().await;
            }
        }
    }
    drop(listener);
    if timeout(SHUTDOWN, graceful.shutdown()).await.is_err() {
        tracing::debug!("closing HTTP connections that are still open");
    }
    connections.close_all();
}

/// The server's side of a TLS handshake. Returns `None` if it fails.
async fn handshake(tls: TlsAcceptor, stream: Stream) -> Option<TlsStream<Stream>> {
    match tls.accept(stream).into_fallible().await {
        Ok(stream) => Some(stream),
        Err((error, mut stream)) => {
            tracing::debug!(%error, "a TLS handshake failed");
            // An orderly close: a RST would take back the alert that says why.
            let _ = stream.shutdown().await;
            None
        }
    }
}

/// Whether the error is only about the connection to be accepted, according to accept(2).
fn is_of_the_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// Something that is logged at most once per [`LOG_INTERVAL`], however often it happens.
#[derive(Default)]
struct Notice(Option<Instant>);

impl Notice {
    fn is_due(&mut self) -> bool {
        let is_due = self.0.is_none_or(|told| told.elapsed() >= LOG_INTERVAL);
        if is_due {
            self.0 = Some(Instant::now());
        }
        is_due
    }
}

/// Serves the requests of one connection over any transport.
///
/// # Errors
/// When it is not HTTP, or ends in the middle of a request.
pub async fn converse<P: Pages>(
    io: impl AsyncRead + AsyncWrite + Unpin + 'static,
    pages: Arc<P>,
) -> hyper::Result<()> {
    let site = Site::new(pages, Arc::new(Web::default()));
    let peer = Peer { is_local: true, is_certified: false };
    conversation(TokioIo::new(io), Arc::new(site), Arc::new(Activity::new()), peer).await
}

fn conversation<I, P>(
    io: I,
    site: Arc<Site<P>>,
    activity: Arc<Activity>,
    peer: Peer,
) -> impl GracefulConnection<Error = hyper::Error, Output = hyper::Result<()>>
where
    I: rt::Read + rt::Write + Unpin + 'static,
    P: Pages,
{
    let service = service_fn(move |request| {
        activity.requested();
        let (site, activity) = (Arc::clone(&site), Arc::clone(&activity));
        async move { Ok::<_, Infallible>(site.respond(&request, &activity, peer).await) }
    });
    http1::Builder::new()
        // A client that sends a request and a FIN still wants the response.
        .half_close(true)
        .max_buf_size(HEAD)
        .header_read_timeout(None)
        .serve_connection(io, service)
}

/// Who sends the requests of a connection.
#[derive(Clone, Copy, Debug)]
struct Peer {
    /// It is on this host.
    is_local: bool,
    /// It has shown a client certificate, which was verified.
    is_certified: bool,
}

struct Site<P> {
    pages: Arc<P>,
    web: Arc<Web>,
    renderings: Renderings,
    drawings: Renderings,
    look_backs: LookBacks,
}

impl<P: Pages> Site<P> {
    fn new(pages: Arc<P>, web: Arc<Web>) -> Self {
        Self {
            pages,
            web,
            renderings: Renderings::default(),
            drawings: Renderings::default(),
            look_backs: LookBacks::default(),
        }
    }

    /// The response to a request. For HEAD, the HTTP layer omits the body.
    async fn respond<B: hyper::body::Body>(
        &self,
        request: &Request<B>,
        activity: &Arc<Activity>,
        peer: Peer,
    ) -> Response<Body> {
        let page = |status, kind, text: String| page(status, kind, Body::page(text, activity));
        let web = self.web.settings();
        let verdict = match &web.users {
            None => Verdict::Granted,
            Some(users) => users.verdict(request.headers()).await,
        };
        let mut response = if verdict == Verdict::Refused {
            let mut refusal = page(StatusCode::UNAUTHORIZED, TEXT, "unauthorized\n".to_owned());
            refusal.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic"));
            refusal
        } else if verdict == Verdict::Busy {
            page(StatusCode::TOO_MANY_REQUESTS, TEXT, "too many passwords are being checked\n".to_owned())
        } else if request.version() == Version::HTTP_11 && request.headers().get_all(HOST).iter().count() != 1
        {
            page(StatusCode::BAD_REQUEST, TEXT, "one Host header is required\n".to_owned())
        } else if request.uri().path() == look_back::PATH {
            let is_allowed =
                web.users.is_some() || peer.is_certified || peer.is_local && names_loopback(request);
            let (status, text, header) =
                self.look_backs.respond(request, is_allowed, || self.pages.look_back()).await;
            let mut response = page(status, TEXT, text);
            response.headers_mut().extend(header);
            response
        } else if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut refusal = page(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET and HEAD only\n".to_owned());
            refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            refusal
        } else {
            match request.uri().path() {
                "/" if self.pages.shows_page_to_all() || peer.is_local && names_loopback(request) => {
                    self.page(activity).await
                }
                "/" => page(StatusCode::FORBIDDEN, TEXT, FORBIDDEN.to_owned()),
                "/metrics" => self.metrics(Variant::wanted(request.headers()), activity).await,
                "/config" => page(StatusCode::OK, TEXT, self.pages.config()),
                "/healthz" => probe_page(self.pages.healthy(), page),
                "/readyz" => probe_page(self.pages.ready(), page),
                _ => page(
                    StatusCode::NOT_FOUND,
                    TEXT,
                    "not found; try /, /metrics, /config, /healthz or /readyz\n".to_owned(),
                ),
            }
        };
        // Request bodies are not read, so the next request could not be found.
        if !request.body().is_end_stream() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response.headers_mut().extend(web.headers.iter().cloned());
        response
    }

    /// Drawn no more often than `/metrics`, however many ask.
    async fn page(&self, activity: &Arc<Activity>) -> Response<Body> {
        let variant = Variant { format: Format::Text, gzip: false };
        let mut response = match self.drawings.fresh(variant, || Ok(self.pages.page()?.into_bytes())).await {
            Ok(text) => page(StatusCode::OK, HTML, Body::shared(text, activity)),
            Err(error) => {
                let body = Body::page(format!("{error:#}\n"), activity);
                return page(StatusCode::INTERNAL_SERVER_ERROR, TEXT, body);
            }
        };
        let headers = response.headers_mut();
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        if let Ok(policy) = HeaderValue::try_from(policy()) {
            headers.insert(CONTENT_SECURITY_POLICY, policy);
        }
        response
    }

    async fn metrics(&self, variant: Variant, activity: &Arc<Activity>) -> Response<Body> {
        let render = || {
            let text = self.pages.metrics(variant.format)?.into_bytes();
            if variant.gzip { Ok(compressed(&text)?) } else { Ok(text) }
        };
        let text = match self.renderings.fresh(variant, render).await {
            Ok(text) => text,
            Err(error) => {
                let body = Body::page(format!("{error:#}\n"), activity);
                return page(StatusCode::INTERNAL_SERVER_ERROR, TEXT, body);
            }
        };
        let kind = variant.format.content_type();
        let mut response = page(StatusCode::OK, kind, Body::shared(text, activity));
        response.headers_mut().insert(VARY, HeaderValue::from_static("Accept, Accept-Encoding"));
        if variant.gzip {
            response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        response
    }
}

/// Whether the request is for a name that only this host answers to: a page of another site can make a
/// browser of this host ask for a name of its own that it has pointed here.
fn names_loopback<B>(request: &Request<B>) -> bool {
    let Some(host) = request.headers().get(HOST) else { return true };
    let Ok(authority) = Authority::try_from(host.as_bytes()) else { return false };
    let name = authority.host();
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    name.eq_ignore_ascii_case("localhost")
        || address.is_ok_and(|address| address.to_canonical().is_loopback())
}

/// Fast rather than small: the best compression saves another tenth, for six times the work.
fn compressed(text: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(text.len() / 8), Compression::fast());
    encoder.write_all(text)?;
    encoder.finish()
}

fn probe_page(
    state: Result<()>,
    page: impl Fn(StatusCode, &'static str, String) -> Response<Body>,
) -> Response<Body> {
    match state {
        Ok(()) => page(StatusCode::OK, TEXT, "ok\n".to_owned()),
        Err(reason) => page(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{reason}\n")),
    }
}

fn page(status: StatusCode, kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
        sync::oneshot,
        time::Instant,
    };

    use super::*;

    /// Pages of a daemon that is healthy but not ready.
    struct Waiting;

    impl Pages for Waiting {
        fn page(&self) -> Result<String> {
            Ok("<!DOCTYPE html>".to_owned())
        }

        fn shows_page_to_all(&self) -> bool {
            false
        }

        fn metrics(&self, _: Format) -> Result<String> {
            Ok("up 1\n".to_owned())
        }

        fn look_back(&self) -> Result<Written, NoLookBack> {
            let (tell, written) = oneshot::channel();
            tell.send(Ok("/records/a.jsonl.gz".into())).unwrap();
            Ok(written)
        }

        fn config(&self) -> String {
            "listen = \"127.0.0.1:9966\"\n".to_owned()
        }

        fn healthy(&self) -> Result<()> {
            Ok(())
        }

        fn ready(&self) -> Result<()> {
            Err(anyhow!("the probes are being attached"))
        }
    }

    /// The response to these bytes and an end of file.
    async fn response_to(bytes: &[u8]) -> String {
        let (ours, theirs) = tokio::io::duplex(64);
        let server = tokio::spawn(converse(theirs, Arc::new(Waiting)));
        let (mut read, mut write) = tokio::io::split(ours);
        let mut answer = Vec::new();
        let both = async {
            tokio::join!(
                async {
                    // Fails once the server has closed.
                    let _ = write.write_all(bytes).await;
                    let _ = write.shutdown().await;
                },
                read.read_to_end(&mut answer)
            )
        };
        timeout(Duration::from_secs(10), both).await.unwrap().1.unwrap();
        drop(server.await.unwrap());
        String::from_utf8(answer).unwrap()
    }

    async fn status(bytes: &str) -> u16 {
        let answer = response_to(bytes.as_bytes()).await;
        answer.strip_prefix("HTTP/1.").map_or(0, |rest| rest[2..5].parse().unwrap())
    }

    async fn get(path: &str) -> (u16, String, String) {
        let answer = response_to(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let kind = head.lines().find_map(|line| line.strip_prefix("content-type: ")).unwrap();
        (head[9..12].parse().unwrap(), kind.to_owned(), body.to_owned())
    }

    #[tokio::test]
    async fn pages_have_status_type_and_body() {
        assert_eq!(get("/metrics").await, (200, Format::Text.content_type().into(), "up 1\n".into()));
        assert_eq!(get("/healthz").await, (200, TEXT.into(), "ok\n".into()));
        assert_eq!(get("/readyz").await, (503, TEXT.into(), "the probes are being attached\n".into()));
        assert_eq!(get("/").await, (403, TEXT.into(), FORBIDDEN.into()));
        assert_eq!(get("/nothing").await.0, 404);
    }

    #[tokio::test]
    async fn page_answers_loopback_names_only_and_with_its_policy() {
        for (host, expected) in [
            ("localhost", 200),
            ("LOCALHOST:9966", 200),
            ("127.0.0.1:9966", 200),
            ("[::1]:9966", 200),
            ("localhost.example", 403),
            ("192.0.2.1", 403),
            ("a b", 403),
        ] {
            assert_eq!(status(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await, expected, "{host}");
        }
        let answer = response_to(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        for header in [
            format!("content-security-policy: {}\r\n", policy()),
            "x-content-type-options: nosniff\r\n".to_owned(),
            "referrer-policy: no-referrer\r\n".to_owned(),
        ] {
            assert!(answer.contains(&header), "{answer}");
        }
    }

    #[tokio::test]
    async fn look_back_is_for_programs_of_this_host_and_not_for_browsers() {
        let post = |headers: &str| format!("POST /look-back HTTP/1.1\r\n{headers}Content-Length: 0\r\n\r\n");
        for (headers, expected) in [
            ("Host: localhost:9966\r\n", 200),
            ("Host: [::1]\r\n", 200),
            ("Host: example.org\r\n", 403),
            ("Host: localhost\r\nOrigin: http://localhost:9966\r\n", 403),
            ("Host: localhost\r\nOrigin: null\r\n", 403),
            ("Host: localhost\r\nSec-Fetch-Site: cross-site\r\n", 403),
        ] {
            let answer = response_to(post(headers).as_bytes()).await;
            assert_eq!(answer[9..12].parse(), Ok(expected), "{headers}: {answer}");
            assert_eq!(answer.ends_with("\r\n\r\n/records/a.jsonl.gz\n"), expected == 200, "{answer}");
        }
        let refusal = response_to(b"GET /look-back HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        assert!(refusal.starts_with("HTTP/1.1 405 ") && refusal.contains("allow: POST\r\n"), "{refusal}");
    }

    #[tokio::test]
    async fn only_get_and_head_are_allowed() {
        let refusal =
            response_to(b"POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n12345").await;
        assert!(refusal.starts_with("HTTP/1.1 405 "), "{refusal}");
        for header in ["allow: GET, HEAD\r\n", "connection: close\r\n"] {
            assert!(refusal.contains(header), "{refusal}");
        }
    }

    #[tokio::test]
    async fn requests_and_malformed_ones_have_their_status() {
        for (bytes, expected) in [
            ("GET /metrics HTTP/1.0\r\n\r\n", 200),
            ("GET http://a/metrics HTTP/1.1\r\nHost: a\r\n\r\n", 200),
            ("\r\n\r\nGET /metrics?x=1 HTTP/1.1\r\nHost: a\r\n\r\n", 200),
            ("GET /metrics HTTP/1.1\r\n\r\n", 400),
            ("GET /metrics HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
            ("GET /metrics HTTP/7.7\r\n\r\n", 400),
            ("\x16\x03\x01\x02\0\x01\0\x01\r\n\r\n", 400),
            ("GET /\u{1} HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 405),
            ("CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 405),
            // No request to respond to.
            ("", 0),
            ("GET /metrics HT", 0),
        ] {
            assert_eq!(status(bytes).await, expected, "{bytes:?}");
        }
        let head = |header: &str| format!("GET / HTTP/1.1\r\nHost: localhost\r\n{header}\r\n");
        assert_eq!(status(&head("")).await, 200);
        assert_eq!(status(&head(&"a: b\r\n".repeat(100))).await, 431);
        assert_eq!(status(&head(&format!("a: {}\r\n", "b".repeat(HEAD)))).await, 431);
        assert_eq!(status(&format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(1 << 20))).await, 431);
    }

    #[tokio::test]
    async fn pipelined_requests_are_served_in_order() {
        let requests =
            ["/metrics", "/healthz", "/x"].map(|path| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        let answers = response_to(requests.concat().as_bytes()).await;
        let statuses: Vec<_> = answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
        assert_eq!(statuses, ["200", "200", "404"]);
    }

    #[tokio::test]
    async fn address_in_use_is_explained() {
        let taken = listen(([127, 0, 0, 1], 0).into()).unwrap();
        let address = taken.local_addr().unwrap();
        let error = listen(address).unwrap_err().to_string();
        assert!(error.contains(&address.to_string()) && error.contains("ss -ltnp"), "{error}");
    }

    #[tokio::test]
    async fn head_has_no_body_and_incomplete_request_does_not_delay_shutdown() {
        let listener = listen(([127, 0, 0, 1], 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let server =
            tokio::spawn(serve(listener, Arc::new(Waiting), Arc::default(), async { drop(stopped.await) }));

        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"HEAD /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut head = String::new();
        stream.read_to_string(&mut head).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 200") && head.contains("content-length: 5\r\n"), "{head}");
        assert!(head.ends_with("\r\n\r\n"), "{head}");

        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(b"GET /metrics HT").await.unwrap();
        let begin = Instant::now();
        drop(stop);
        server.await.unwrap();
        assert!(begin.elapsed() < Duration::from_millis(900), "{:?}", begin.elapsed());
    }
}
