//! The daemon's HTTP server: four pages, GET and HEAD, HTTP/1.

use std::{convert::Infallible, future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Result, anyhow};
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

use super::metrics;

/// How long a client may take for a request, or stay idle before the next one: longer than scrapes are apart.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long answers that are under way may take once the server stops.
const FAREWELL: Duration = Duration::from_millis(500);
/// Connections at once; more wait in the listen queue.
const MOST: usize = 64;

const TEXT: &str = "text/plain; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";
const INDEX: &str = "<!doctype html>
<html lang=\"en\"><head><meta charset=\"utf-8\"><title>handshake</title></head>
<body><h1>handshake</h1>
<p>TCP openings and closings of this host, timed in the kernel.</p>
<ul>
<li><a href=\"/metrics\">/metrics</a>: for Prometheus</li>
<li><a href=\"/healthz\">/healthz</a>: whether the event loop lives</li>
<li><a href=\"/readyz\">/readyz</a>: whether the probes are attached</li>
</ul></body></html>
";

/// What the pages show.
pub trait Pages: Send + Sync + 'static {
    /// The text of `/metrics`.
    ///
    /// # Errors
    /// When it cannot be had now.
    fn metrics(&self) -> Result<String>;
    /// Whether the event loop lives.
    ///
    /// # Errors
    /// Why not.
    fn healthy(&self) -> Result<(), String>;
    /// Whether everything that is required is attached.
    ///
    /// # Errors
    /// Why not.
    fn ready(&self) -> Result<(), String>;
}

/// Takes the address.
///
/// # Errors
/// When it cannot be had; the text says what to do.
pub async fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => anyhow!(
            "cannot listen on {address}: it is in use; see by whom with `ss -ltnp 'sport = :{}'`, or take another \
             with --listen",
            address.port()
        ),
        io::ErrorKind::AddrNotAvailable => anyhow!(
            "cannot listen on {address}: this host does not have the address; see those it has with `ip address`"
        ),
        io::ErrorKind::PermissionDenied => anyhow!(
            "cannot listen on {address}: ports below 1024 need root or CAP_NET_BIND_SERVICE; take another with --listen"
        ),
        _ => anyhow!("cannot listen on {address}: {error}"),
    })
}

/// Serves until `stop`, then lets answers under way finish, for a moment.
pub async fn serve<P: Pages>(listener: TcpListener, pages: Arc<P>, stop: impl Future<Output = ()>) {
    let (stopping, stopped) = watch::channel(());
    let mut connections = JoinSet::new();
    tokio::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < MOST => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, Arc::clone(&pages), stopped.clone()));
                }
                Err(error) => {
                    // Out of file descriptors, for one: asking again at once would not help.
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    drop(listener);
    drop(stopping);
    let farewell = async { while connections.join_next().await.is_some() {} };
    if timeout(FAREWELL, farewell).await.is_err() {
        tracing::debug!("closing connections that are in the middle of a request");
    }
}

pub(crate) async fn connection<P: Pages>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    pages: Arc<P>,
    mut stopped: watch::Receiver<()>,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer(request.method(), request.uri().path(), &*pages);
        async move { Ok::<_, Infallible>(answer) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    let result = tokio::select! {
        result = &mut serving => result,
        // The other end is dropped when the server stops.
        _ = stopped.changed() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "an HTTP connection ended early");
    }
}

/// What a request gets. The server itself leaves the body out for HEAD.
fn answer(method: &Method, path: &str, pages: &impl Pages) -> Response<Full<Bytes>> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        let mut refusal = page(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET and HEAD only\n".to_owned());
        refusal.headers_mut().insert(ALLOW, const { hyper::header::HeaderValue::from_static("GET, HEAD") });
        return refusal;
    }
    match path {
        "/" => page(StatusCode::OK, HTML, INDEX.to_owned()),
        "/metrics" => match pages.metrics() {
            Ok(text) => page(StatusCode::OK, metrics::CONTENT_TYPE, text),
            Err(error) => page(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error:#}\n")),
        },
        "/healthz" => verdict(pages.healthy()),
        "/readyz" => verdict(pages.ready()),
        _ => {
            page(StatusCode::NOT_FOUND, TEXT, "not found; there are /metrics, /healthz, /readyz\n".to_owned())
        }
    }
}

fn verdict(verdict: Result<(), String>) -> Response<Full<Bytes>> {
    match verdict {
        Ok(()) => page(StatusCode::OK, TEXT, "ok\n".to_owned()),
        Err(reason) => page(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{reason}\n")),
    }
}

fn page(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    use hyper::header::HeaderValue;
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
        sync::oneshot,
        time::Instant,
    };

    use super::*;

    /// Pages of a daemon that is healthy and not ready.
    struct Waiting;

    impl Pages for Waiting {
        fn metrics(&self) -> Result<String> {
            Ok("up 1\n".to_owned())
        }

        fn healthy(&self) -> Result<(), String> {
            Ok(())
        }

        fn ready(&self) -> Result<(), String> {
            Err("the probes are being attached".to_owned())
        }
    }

    async fn get(path: &str) -> (u16, String, String) {
        let response = answer(&Method::GET, path, &Waiting);
        let kind = response.headers()[CONTENT_TYPE].to_str().unwrap().to_owned();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, kind, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn pages_say_what_they_are() {
        assert_eq!(get("/metrics").await, (200, metrics::CONTENT_TYPE.into(), "up 1\n".into()));
        assert_eq!(get("/healthz").await, (200, TEXT.into(), "ok\n".into()));
        assert_eq!(get("/readyz").await, (503, TEXT.into(), "the probes are being attached\n".into()));
        assert_eq!(get("/").await.0, 200);
        assert_eq!(get("/nothing").await.0, 404);
    }

    #[test]
    fn only_reading_is_allowed() {
        let refusal = answer(&Method::POST, "/metrics", &Waiting);
        assert_eq!(refusal.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(refusal.headers()[ALLOW], "GET, HEAD");
    }

    #[tokio::test]
    async fn a_busy_port_is_one_sentence() {
        let taken = listen(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = taken.local_addr().unwrap();
        let error = listen(address).await.unwrap_err().to_string();
        assert!(error.contains(&address.to_string()) && error.contains("ss -ltnp"), "{error}");
    }

    #[tokio::test]
    async fn head_has_no_body_and_an_unfinished_request_does_not_hold_the_end_up() {
        let listener = listen(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(serve(listener, Arc::new(Waiting), async { drop(stopped.await) }));

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
