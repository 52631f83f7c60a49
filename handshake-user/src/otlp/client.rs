//! One request after the other to the collector, over a connection that is kept. Every attempt ends in time,
//! and whatever the other end answers is read to a limit.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http_body_util::{BodyExt as _, Collected, Full, Limited};
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1::{self, SendRequest},
    header::{CONTENT_ENCODING, CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message as _;
use rustix::net::sockopt::socket_cookie;
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpSocket, TcpStream, lookup_host},
    time::{Instant, timeout, timeout_at},
};

use super::{own::OwnConnections, target::Target};
use crate::untrusted::Untrusted;

/// Most of an answer's body that is read, bytes.
const MAX_BODY: usize = 64 << 10;
/// Most of an answer's head that is read, bytes.
const MAX_HEAD: usize = 64 << 10;
/// Addresses of a name that are tried.
const MAX_ADDRESSES: usize = 4;
/// The longest that a collector can make us wait by `Retry-After`.
const MAX_RETRY_AFTER: Duration = Duration::from_mins(2);

const PROTOBUF: HeaderValue = HeaderValue::from_static("application/x-protobuf");
const GZIP: HeaderValue = HeaderValue::from_static("gzip");
const AGENT: HeaderValue = HeaderValue::from_static(concat!("handshake/", env!("CARGO_PKG_VERSION")));

/// What a collector answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It took the spans or data points, all but so many.
    Taken { rejected: u64, message: Option<Untrusted> },
    /// It says that it took them, but not in the way of OTLP: it may be no collector.
    Unconfirmed,
    /// It will not take them.
    Refused(StatusCode),
    /// It may take them later, and may say when.
    Later(StatusCode, Option<Duration>),
}

/// Why there is no answer.
#[derive(Debug, Error)]
pub(super) enum Trouble {
    #[error("no address for its name: {0}")]
    Name(io::Error),
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("no answer in time")]
    Timeout,
}

/// Sends requests, one at a time.
pub(super) struct Client {
    target: Target,
    own: Arc<OwnConnections>,
    open: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    pub(super) const fn new(target: Target, own: Arc<OwnConnections>) -> Self {
        Self { target, own, open: None }
    }

    /// Sends a request, and waits for the answer.
    pub(super) async fn post(&mut self, body: &Bytes) -> Result<Answer, Trouble> {
        let deadline = Instant::now() + self.target.timeout;
        let sent = timeout_at(deadline, self.send(body)).await.unwrap_or(Err(Trouble::Timeout));
        let (head, body) = match sent {
            Ok(response) => response.into_parts(),
            Err(trouble) => {
                self.open = None;
                return Err(trouble);
            }
        };
        let body = timeout_at(deadline, Limited::new(body, MAX_BODY).collect()).await;
        let body = body.ok().and_then(Result::ok).map(Collected::to_bytes);
        if body.is_none() {
            // What else comes is not waited for.
            self.open = None;
        }
        Ok(answer(head.status, &head.headers, body.as_deref(), SystemTime::now()))
    }

    async fn send(&mut self, body: &Bytes) -> Result<Response<Incoming>, Trouble> {
        if let Some(mut kept) = self.open.take()
            && kept.ready().await.is_ok()
        {
            match kept.send_request(self.request(body)).await {
                // It was closed meanwhile, and the request has not left.
                Err(error) if error.is_canceled() => {}
                Err(error) => return Err(error.into()),
                Ok(response) => {
                    self.open = Some(kept);
                    return Ok(response);
                }
            }
        }
        let mut new = self.connect().await?;
        let response = new.send_request(self.request(body)).await?;
        self.open = Some(new);
        Ok(response)
    }

    fn request(&self, body: &Bytes) -> Request<Full<Bytes>> {
        let Target { endpoint, headers, compresses, .. } = &self.target;
        let mut request = Request::new(Full::new(body.clone()));
        *request.method_mut() = hyper::Method::POST;
        // It was part of a URL.
        *request.uri_mut() = endpoint.path.parse().unwrap_or_default();
        let all = request.headers_mut();
        if let Ok(host) = endpoint.authority().parse() {
            all.insert(HOST, host);
        }
        all.insert(CONTENT_TYPE, PROTOBUF);
        all.insert(USER_AGENT, AGENT);
        if *compresses {
            all.insert(CONTENT_ENCODING, GZIP);
        }
        all.extend(headers.iter().cloned());
        request
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Trouble> {
        let Target { endpoint, tls, .. } = &self.target;
        let stream = self.dial().await?;
        match tls {
            Some((connector, name)) => {
                let stream = connector.connect(name.clone(), stream).await.map_err(Trouble::Connect)?;
                speak(stream).await
            }
            None => speak(stream).await,
        }
        .inspect(|_| tracing::debug!("connected to {endpoint}"))
    }

    /// Connects to the first address of the name that answers; each has its share of the time.
    async fn dial(&self) -> Result<TcpStream, Trouble> {
        let Target { endpoint, timeout: patience, .. } = &self.target;
        let found = lookup_host((&*endpoint.host, endpoint.port)).await.map_err(Trouble::Name)?;
        let addresses: Vec<_> = found.take(MAX_ADDRESSES).collect();
        let share = *patience / u32::try_from(addresses.len().max(1)).unwrap_or(1);
        let mut last = io::ErrorKind::AddrNotAvailable.into();
        for address in addresses {
            match timeout(share, self.dial_one(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = error,
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(Trouble::Connect(last))
    }

    async fn dial_one(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        if let Ok(cookie) = socket_cookie(&socket) {
            self.own.dials(cookie, address);
        }
        let stream = socket.connect(address).await?;
        self.own.connected(stream.local_addr()?, address);
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// Speaks HTTP/1 over a connection.
async fn speak<S>(stream: S) -> Result<SendRequest<Full<Bytes>>, Trouble>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) =
        http1::Builder::new().max_buf_size(MAX_HEAD).handshake(TokioIo::new(stream)).await?;
    // It ends with its sender; what goes wrong, the sender is told.
    tokio::spawn(async { drop(connection.await) });
    Ok(sender)
}

/// What an answer means (OTLP 1.10, "OTLP/HTTP Response"). `body`: `None` if it was not read to its end. That
/// to metrics has the same fields by other names.
fn answer(status: StatusCode, headers: &HeaderMap, body: Option<&[u8]>, now: SystemTime) -> Answer {
    match status {
        _ if status.is_success() => {
            match body.and_then(|body| ExportTraceServiceResponse::decode(body).ok()) {
                Some(ExportTraceServiceResponse { partial_success: None }) => {
                    Answer::Taken { rejected: 0, message: None }
                }
                Some(ExportTraceServiceResponse { partial_success: Some(partial) }) => Answer::Taken {
                    rejected: u64::try_from(partial.rejected_spans).unwrap_or(0),
                    message: Some(partial.error_message.into())
                        .filter(|text: &Untrusted| !text.raw().is_empty()),
                },
                None => Answer::Unconfirmed,
            }
        }
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => Answer::Later(status, retry_after(headers, now)),
        _ => Answer::Refused(status),
    }
}

/// In seconds, or as a date (RFC 9110 §10.2.3).
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default(),
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use opentelemetry_proto::tonic::collector::{
        metrics::v1::{ExportMetricsPartialSuccess, ExportMetricsServiceResponse},
        trace::v1::ExportTracePartialSuccess,
    };

    use super::*;

    fn said(status: u16, headers: &[(&'static str, &'static str)], body: Option<&[u8]>) -> Answer {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        let now = UNIX_EPOCH + Duration::from_secs(784_111_777);
        answer(StatusCode::from_u16(status).unwrap(), &headers.collect(), body, now)
    }

    #[test]
    fn answer_is_what_it_says_and_no_more() {
        let all = Answer::Taken { rejected: 0, message: None };
        assert_eq!(said(200, &[], Some(b"")), all);
        for nonsense in [Some(&b"<html>"[..]), Some(b"OK"), Some(b"{}"), Some(&[0xff; 9]), None] {
            assert_eq!(said(200, &[], nonsense), Answer::Unconfirmed, "{nonsense:?}");
        }
        let partly = |rejected_spans, error_message: &str| {
            let partial =
                ExportTracePartialSuccess { rejected_spans, error_message: error_message.to_owned() };
            let response = ExportTraceServiceResponse { partial_success: Some(partial) };
            said(200, &[], Some(&response.encode_to_vec()))
        };
        assert_eq!(partly(7, "full"), Answer::Taken { rejected: 7, message: Some("full".into()) });
        assert_eq!(partly(-7, ""), all, "fewer than none");
        let partial =
            ExportMetricsPartialSuccess { rejected_data_points: 7, error_message: "full".to_owned() };
        let response = ExportMetricsServiceResponse { partial_success: Some(partial) };
        assert_eq!(said(200, &[], Some(&response.encode_to_vec())), partly(7, "full"));
        for status in [301, 400, 401, 404, 413, 500] {
            assert!(matches!(said(status, &[], Some(b"")), Answer::Refused(_)), "{status}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_and_has_a_limit() {
        for (text, wait) in [
            ("7", Some(7)),
            ("0", Some(0)),
            ("86400", Some(120)),
            ("Sun, 06 Nov 1994 08:49:47 GMT", Some(10)),
            ("Sun, 06 Nov 1994 08:49:27 GMT", Some(0)),
            ("-1", None),
            ("soon", None),
        ] {
            let later = Answer::Later(StatusCode::SERVICE_UNAVAILABLE, wait.map(Duration::from_secs));
            assert_eq!(said(503, &[("retry-after", text)], None), later, "{text}");
        }
        for status in [429, 502, 504] {
            assert!(matches!(said(status, &[], None), Answer::Later(_, None)), "{status}");
        }
    }
}
