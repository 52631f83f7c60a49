//! `POST /look-back`: has the daemon write the records of the last while to a file, as SIGUSR1 does.
//!
//! Whoever calls it takes room on the disk, and in time that of earlier files. So it is for programs of this
//! host, and for whoever has shown a password or a certificate; one at a time, and not at any pace.

use hyper::{
    HeaderMap, Method, Request, StatusCode,
    header::{ALLOW, HeaderValue, ORIGIN, RETRY_AFTER},
};
use tokio::{
    sync::Mutex,
    time::{Duration, Instant, timeout},
};

use crate::{
    recording::{NoLookBack, Written},
    untrusted::Untrusted,
};

pub(super) const PATH: &str = "/look-back";
/// Shortest time between two files.
const PACE: Duration = Duration::from_secs(10);
/// How long to wait for the file: less than the client has to wait for the response.
const PATIENCE: Duration = Duration::from_secs(8);

const FORBIDDEN: &str = "POST /look-back is for programs of this host, as localhost or a loopback address, and for whoever has a \
    password or a client certificate of web_config; not for browsers\n";

/// When the last one began; locked while one is being written.
#[derive(Default)]
pub(super) struct LookBacks(Mutex<Option<Instant>>);

impl LookBacks {
    /// The status, the text and further headers of the response.
    pub(super) async fn respond<B>(
        &self,
        request: &Request<B>,
        is_allowed: bool,
        write: impl FnOnce() -> Result<Written, NoLookBack>,
    ) -> (StatusCode, String, HeaderMap) {
        let none = HeaderMap::new();
        if *request.method() != Method::POST {
            let allow = [(ALLOW, HeaderValue::from_static("POST"))].into_iter().collect();
            return (StatusCode::METHOD_NOT_ALLOWED, "POST only\n".to_owned(), allow);
        }
        // Any page can make a browser send a POST anywhere, with the credentials that it has for there.
        let is_of_browser =
            request.headers().contains_key(ORIGIN) || request.headers().contains_key("sec-fetch-site");
        if is_of_browser || !is_allowed {
            return (StatusCode::FORBIDDEN, FORBIDDEN.to_owned(), none);
        }
        let Ok(mut last) = self.0.try_lock() else {
            return (StatusCode::TOO_MANY_REQUESTS, "one is being written\n".to_owned(), none);
        };
        if let Some(wait) = last.and_then(|last| PACE.checked_sub(last.elapsed())) {
            let seconds = wait.as_secs() + 1;
            let later = [(RETRY_AFTER, HeaderValue::from(seconds))].into_iter().collect();
            let text = format!("one was written just now; the next one in {seconds} s\n");
            return (StatusCode::TOO_MANY_REQUESTS, text, later);
        }
        let written = match write() {
            Ok(written) => written,
            Err(reason) => {
                let status = match reason {
                    NoLookBack::NotKept => StatusCode::CONFLICT,
                    NoLookBack::Busy => StatusCode::SERVICE_UNAVAILABLE,
                };
                return (status, format!("{reason}\n"), none);
            }
        };
        // Whether or not the client waits for the end.
        *last = Some(Instant::now());
        let (status, text) = match timeout(PATIENCE, written).await {
            Ok(Ok(Ok(path))) => (StatusCode::OK, Untrusted::from(&*path).to_string()),
            Ok(Ok(Err(error))) => {
                (StatusCode::INTERNAL_SERVER_ERROR, format!("cannot write records: {error}"))
            }
            Ok(Err(_)) => (StatusCode::SERVICE_UNAVAILABLE, "the daemon ends".to_owned()),
            Err(_) => {
                let text = "the disk takes its time; standard error will name the file".to_owned();
                (StatusCode::GATEWAY_TIMEOUT, text)
            }
        };
        (status, text + "\n", none)
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, io};

    use tokio::{sync::oneshot, time::advance};

    use super::*;

    fn post() -> Request<()> {
        Request::post(PATH).body(()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn one_at_a_time_and_not_at_any_pace() {
        let (tell, written) = oneshot::channel();
        let (fails, failed) = oneshot::channel();
        fails.send(Err(io::ErrorKind::StorageFull.into())).unwrap();
        // Nobody ever answers.
        let (_hangs, hanging) = oneshot::channel();
        let answers = RefCell::new(vec![
            Err(NoLookBack::NotKept),
            Err(NoLookBack::Busy),
            Ok(written),
            Ok(failed),
            Ok(hanging),
        ]);
        let (look_backs, request) = (LookBacks::default(), post());
        let ask = || look_backs.respond(&request, true, || answers.borrow_mut().remove(0));
        assert_eq!(ask().await.0, StatusCode::CONFLICT);
        assert_eq!(ask().await.0, StatusCode::SERVICE_UNAVAILABLE);

        let second = async {
            let refused = ask().await.0;
            tell.send(Ok("/a".into())).unwrap();
            refused
        };
        let ((first, named, _), second) = tokio::join!(ask(), second);
        assert_eq!((first, second), (StatusCode::OK, StatusCode::TOO_MANY_REQUESTS));
        assert_eq!(named, "/a\n");

        advance(PACE / 2).await;
        let (status, _, headers) = ask().await;
        assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(headers[RETRY_AFTER], "6");
        advance(PACE / 2 + Duration::from_millis(1)).await;
        let (status, text, _) = ask().await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(text.starts_with("cannot write records: "), "{text}");
        advance(PACE + Duration::from_millis(1)).await;
        let begin = Instant::now();
        assert_eq!(ask().await.0, StatusCode::GATEWAY_TIMEOUT);
        assert_eq!(begin.elapsed(), PATIENCE);
    }

    #[tokio::test]
    async fn whoever_is_not_allowed_gets_nothing_written() {
        let write = || panic!("nobody may ask");
        assert_eq!(LookBacks::default().respond(&post(), false, write).await.0, StatusCode::FORBIDDEN);
    }
}
