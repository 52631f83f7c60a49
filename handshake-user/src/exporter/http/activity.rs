//! What a connection is doing, by when it must make progress, and how long it may keep the server waiting
//! when others want its place.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::{Duration, Instant};

/// From the first byte of a request, or from accept, to the end of its head.
const REQUEST: Duration = Duration::from_secs(5);
/// From the request until the kernel has accepted the whole response. Prometheus, too, waits ten seconds.
const RESPONSE: Duration = Duration::from_secs(10);
/// From accept to the end of the TLS handshake, if there is one.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Between a response and the next request: longer than the usual scrape interval.
const IDLE: Duration = Duration::from_secs(90);
/// From our FIN to the peer's.
const CLOSE: Duration = Duration::from_secs(1);

/// When others want the place: how long a client may keep the server waiting for a request. It follows on the
/// heels of the handshake's last ACK.
const REQUEST_WHEN_CROWDED: Duration = Duration::from_millis(25);
/// The same from accept to the end of a TLS handshake: two round trips with TLS 1.2.
const HANDSHAKE_WHEN_CROWDED: Duration = Duration::from_millis(250);
/// The same for the ACK of what was sent, for the next request, and for the client's FIN.
const ACK_WHEN_CROWDED: Duration = Duration::from_millis(100);

/// Shared by the connection and by the table of all connections.
pub(super) struct Activity(Mutex<State>);

struct State {
    phase: Phase,
    /// Since when the client has been waited for. The bytes of an unfinished request do not count: they are
    /// too easily sent.
    progress: Instant,
    /// When to give the connection up.
    deadline: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// A TLS handshake is in progress.
    Handshaking,
    /// Between two requests.
    Idle,
    /// A request is awaited or incomplete.
    Reading,
    /// The request is complete; nothing has been sent yet.
    Responding,
    /// Part of the response has been sent.
    Sending,
    /// The whole response is in the write buffer.
    Flushing,
    /// A FIN has been sent.
    Closing,
}

impl Activity {
    /// A connection that has just been accepted.
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self(Mutex::new(State { phase: Phase::Reading, progress: now, deadline: now + REQUEST }))
    }

    /// The same where a TLS handshake comes first.
    pub(super) fn handshaking() -> Self {
        let now = Instant::now();
        Self(Mutex::new(State { phase: Phase::Handshaking, progress: now, deadline: now + HANDSHAKE }))
    }

    /// The TLS handshake is complete, and with TLS 1.2 the client may not know it yet.
    pub(super) fn handshaken(&self) {
        self.lock().enter(Phase::Idle, REQUEST);
    }

    /// When to give the connection up.
    pub(super) fn deadline(&self) -> Instant {
        self.lock().deadline
    }

    /// Until when the server waits for the client if others want its place. Returns `None` while the client
    /// waits for the server.
    pub(super) fn waited_for_until(&self) -> Option<Instant> {
        let state = self.lock();
        match state.phase {
            Phase::Responding => None,
            Phase::Handshaking => Some(state.progress + HANDSHAKE_WHEN_CROWDED),
            Phase::Reading => Some(state.progress + REQUEST_WHEN_CROWDED),
            // The end of the response may still be in flight.
            Phase::Idle | Phase::Sending | Phase::Flushing | Phase::Closing => {
                Some(state.progress + ACK_WHEN_CROWDED)
            }
        }
    }

    /// Bytes came in.
    pub(super) fn received(&self) {
        let mut state = self.lock();
        if state.phase == Phase::Idle {
            state.phase = Phase::Reading;
            state.deadline = Instant::now() + REQUEST;
        }
    }

    /// A request is complete.
    pub(super) fn requested(&self) {
        self.lock().enter(Phase::Responding, RESPONSE);
    }

    /// The end of the response is in the write buffer.
    pub(super) fn buffered(&self) {
        let mut state = self.lock();
        if matches!(state.phase, Phase::Responding | Phase::Sending) {
            state.phase = Phase::Flushing;
        }
    }

    /// The kernel took some bytes.
    pub(super) fn sent(&self) {
        let mut state = self.lock();
        match state.phase {
            // However much is exchanged, it must end in time.
            Phase::Handshaking => return,
            // The HTTP layer itself responds to what is not a request.
            Phase::Idle | Phase::Reading => state.enter(Phase::Flushing, RESPONSE),
            Phase::Responding => state.phase = Phase::Sending,
            Phase::Sending | Phase::Flushing | Phase::Closing => {}
        }
        state.progress = Instant::now();
    }

    /// The write buffer is empty.
    pub(super) fn flushed(&self) {
        let mut state = self.lock();
        if state.phase == Phase::Flushing {
            state.enter(Phase::Idle, IDLE);
        }
    }

    /// Our FIN has been sent.
    pub(super) fn closing(&self) {
        let mut state = self.lock();
        if state.phase != Phase::Closing {
            state.enter(Phase::Closing, CLOSE);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn enter(&mut self, phase: Phase, limit: Duration) {
        let now = Instant::now();
        *self = Self { phase, progress: now, deadline: now + limit };
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const STEP: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn request_has_five_seconds_from_accept_or_first_byte() {
        let begin = Instant::now();
        let activity = Activity::new();
        advance(STEP).await;
        activity.received();
        assert_eq!(activity.deadline(), begin + REQUEST, "more bytes do not extend it");
        activity.requested();
        activity.buffered();
        activity.sent();
        activity.flushed();
        assert_eq!(activity.deadline(), begin + STEP + IDLE);
        advance(STEP).await;
        activity.received();
        assert_eq!(activity.deadline(), begin + STEP * 2 + REQUEST);
    }

    #[tokio::test(start_paused = true)]
    async fn slow_reading_is_progress_but_does_not_extend_the_deadline() {
        let begin = Instant::now();
        let activity = Activity::new();
        activity.requested();
        advance(STEP).await;
        activity.sent();
        // The buffer is also empty between two pieces.
        activity.flushed();
        assert_eq!(activity.waited_for_until(), Some(begin + STEP + ACK_WHEN_CROWDED));
        assert_eq!(activity.deadline(), begin + RESPONSE);
        activity.buffered();
        activity.flushed();
        assert_eq!(activity.deadline(), begin + STEP + IDLE);
    }

    #[tokio::test(start_paused = true)]
    async fn handshake_has_five_seconds_whatever_is_exchanged_and_so_has_the_request() {
        let begin = Instant::now();
        let activity = Activity::handshaking();
        advance(STEP).await;
        activity.received();
        activity.sent();
        activity.flushed();
        assert_eq!(activity.deadline(), begin + HANDSHAKE);
        assert_eq!(activity.waited_for_until(), Some(begin + HANDSHAKE_WHEN_CROWDED));
        activity.handshaken();
        assert_eq!(activity.deadline(), begin + STEP + REQUEST);
        advance(STEP).await;
        activity.received();
        assert_eq!(activity.deadline(), begin + STEP * 2 + REQUEST);
    }

    #[tokio::test(start_paused = true)]
    async fn incomplete_request_is_not_progress() {
        let begin = Instant::now();
        let activity = Activity::new();
        advance(STEP).await;
        activity.received();
        assert_eq!(activity.waited_for_until(), Some(begin + REQUEST_WHEN_CROWDED));
        activity.requested();
        assert_eq!(activity.waited_for_until(), None, "now the client waits");
    }
}
