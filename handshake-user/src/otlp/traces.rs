//! From records to a collector as traces, through a thread of its own.

use std::{
    cell::Cell,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use hyper::body::Bytes;
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

use super::{
    attributes::Common,
    delivery::{self, Attempt, Delivery, FAREWELL},
    own::OwnConnections,
    queue::{Queue, Request},
    sampling::Sampling,
    spans,
    target::{Signal, Target},
};
use crate::event::ConnectionEvent;

/// Records of one request.
const BATCH: usize = 512;
/// Longest time that a record waits for others.
const WAIT: Duration = Duration::from_secs(1);
/// Batches that wait to be made requests of: as many connections as a full ring has, which are taken at once.
const BATCHES: usize = 48;
/// Bytes of requests that wait to be sent.
const QUEUE: usize = 16 << 20;
/// A request that nobody took for this long is dropped, lest it be what the collector chokes on.
const PATIENCE: Duration = Duration::from_mins(5);

/// Why spans were not exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The collector did not keep up, or is not there.
    QueueFull,
    /// No attempt of five minutes succeeded.
    Expired,
    /// The collector will not take the request.
    Refused,
    /// It took the request without them.
    Rejected,
    /// It answered with success, but not in the way of OTLP. It may have taken them.
    Unconfirmed,
    /// The program ended.
    Ended,
}

impl Loss {
    /// Every reason.
    pub const ALL: [Self; 6] =
        [Self::QueueFull, Self::Expired, Self::Refused, Self::Rejected, Self::Unconfirmed, Self::Ended];

    /// The name in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::Expired => "expired",
            Self::Refused => "refused",
            Self::Rejected => "rejected",
            Self::Unconfirmed => "unconfirmed",
            Self::Ended => "ended",
        }
    }
}

/// What became of the connections so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections that were chosen to be exported.
    pub sampled: u64,
    /// Connections that were not.
    pub left_out: u64,
    /// Spans of those that were chosen.
    pub spans: u64,
    /// Spans that the collector has taken.
    pub exported: u64,
    /// Spans that it has not, in the order of [`Loss::ALL`].
    pub dropped: [u64; Loss::ALL.len()],
}

#[derive(Debug, Default)]
struct Shared {
    exported: AtomicU64,
    dropped: [AtomicU64; Loss::ALL.len()],
}

impl Shared {
    fn dropped(&self, loss: Loss, spans: u64) {
        self.dropped[loss as usize].fetch_add(spans, Relaxed);
    }
}

/// A record, and the `tracestate` of its spans.
type Chosen = (ConnectionEvent, String);

/// Takes records, and passes them on to the thread that sends them.
#[derive(Debug)]
pub struct TraceExporter {
    sampling: Sampling,
    own: Arc<OwnConnections>,
    batch: Vec<Chosen>,
    since: Option<Instant>,
    batches: mpsc::Sender<Vec<Chosen>>,
    sampled: u64,
    left_out: u64,
    spans: u64,
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

impl TraceExporter {
    /// Starts the thread. It gives up all its capabilities.
    ///
    /// # Errors
    /// When that is not possible.
    pub(super) fn start(target: Target, sampling: Sampling, own: Arc<OwnConnections>) -> io::Result<Self> {
        let (batches, records) = mpsc::channel(BATCHES);
        let shared = Arc::<Shared>::default();
        let (its, common, compresses) = (Arc::clone(&shared), target.common.clone(), target.compresses);
        let delivery = Delivery::new(Signal::Traces, target, Arc::clone(&own));
        let thread = delivery::start("otlp", move || work(delivery, records, common, compresses, its))?;
        Ok(Self {
            sampling,
            own,
            batch: Vec::new(),
            since: None,
            batches,
            sampled: 0,
            left_out: 0,
            spans: 0,
            shared,
            thread,
        })
    }

    /// Whether the event is of one of the exporter's own connections; to be asked before it is redacted.
    #[must_use]
    pub fn is_own(&self, event: &ConnectionEvent) -> bool {
        self.own.has(event)
    }

    /// Takes a record that is none of its own connections'. Never waits.
    pub fn take(&mut self, event: &ConnectionEvent) {
        let spans = spans::count(event);
        if spans == 0 {
            return;
        }
        let state = self.sampling.keeps(event);
        if spans::makes_trace(event) {
            *(if state.is_some() { &mut self.sampled } else { &mut self.left_out }) += 1;
        }
        let Some(state) = state else { return };
        self.spans += spans;
        self.batch.push((event.clone(), state));
        self.since.get_or_insert_with(Instant::now);
        if self.batch.len() >= BATCH {
            self.pass_on();
        }
    }

    /// Passes on what has waited for long enough. To be called from time to time.
    pub fn turn(&mut self) {
        if self.since.is_some_and(|since| since.elapsed() >= WAIT) {
            self.pass_on();
        }
    }

    /// What became of the connections so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let Self { sampled, left_out, spans, shared, .. } = self;
        Counts {
            sampled: *sampled,
            left_out: *left_out,
            spans: *spans,
            exported: shared.exported.load(Relaxed),
            dropped: shared.dropped.each_ref().map(|spans| spans.load(Relaxed)),
        }
    }

    /// Waits a little until the rest is sent. Returns how many spans could not be.
    #[must_use]
    pub fn finish(mut self) -> u64 {
        self.pass_on();
        let Self { batches, shared, thread, .. } = self;
        drop(batches);
        let _ = thread.join();
        shared.dropped[Loss::Ended as usize].load(Relaxed)
    }

    fn pass_on(&mut self) {
        let batch = std::mem::take(&mut self.batch);
        self.since = None;
        if let Err(error) = self.batches.try_send(batch) {
            let batch = error.into_inner();
            self.shared.dropped(Loss::QueueFull, batch.iter().map(|(event, _)| spans::count(event)).sum());
        }
    }
}

/// Makes requests of batches and sends them, until there are no more batches and a little longer.
async fn work(
    mut delivery: Delivery,
    mut batches: mpsc::Receiver<Vec<Chosen>>,
    common: Common,
    compresses: bool,
    shared: Arc<Shared>,
) {
    let queue = Queue::new(QUEUE);
    let make = async {
        while let Some(batch) = batches.recv().await {
            if batch.is_empty() {
                continue;
            }
            let spans = batch.iter().map(|(event, _)| spans::count(event)).sum();
            let body = delivery::body(&spans::request(&batch, &common), compresses);
            shared.dropped(Loss::QueueFull, queue.push(Request { body, spans }));
        }
        queue.close();
    };
    // What is being sent.
    let at_hand = Cell::new(0);
    let mut send = std::pin::pin!(async {
        while let Some(Request { body, spans }) = queue.pop().await {
            at_hand.set(spans);
            let (taken, lost) = deliver(&mut delivery, &body, spans).await;
            at_hand.set(0);
            shared.exported.fetch_add(taken, Relaxed);
            if let Some(loss) = lost {
                shared.dropped(loss, spans - taken);
            }
        }
    });
    // Sending never ends before the queue is closed.
    tokio::select! {
        () = make => drop(timeout(FAREWELL, &mut send).await),
        () = &mut send => {}
    }
    shared.dropped(Loss::Ended, queue.spans() + at_hand.get());
}

/// Sends a request until somebody takes it, or for long enough. Returns how many of its spans were taken, and
/// what became of the others.
async fn deliver(delivery: &mut Delivery, body: &Bytes, spans: u64) -> (u64, Option<Loss>) {
    let begin = tokio::time::Instant::now();
    loop {
        match delivery.attempt(body, spans).await {
            Attempt::Taken { rejected } => {
                return (spans - rejected, (rejected > 0).then_some(Loss::Rejected));
            }
            Attempt::Refused => return (0, Some(Loss::Refused)),
            Attempt::Unconfirmed => return (0, Some(Loss::Unconfirmed)),
            Attempt::Again(wait) if begin.elapsed() + wait > PATIENCE => {
                delivery.given_up();
                return (0, Some(Loss::Expired));
            }
            Attempt::Again(wait) => sleep(wait).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_counted_each_in_its_place() {
        for (place, loss) in Loss::ALL.into_iter().enumerate() {
            assert_eq!(loss as usize, place);
        }
    }
}
