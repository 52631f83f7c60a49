//! From records to a collector, through a thread of its own.

use std::{
    cell::Cell,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use flate2::{Compression, write::GzEncoder};
use hyper::body::Bytes;
use prost::Message as _;
use rustix::thread::CapabilitySet;
use tokio::{
    runtime,
    sync::mpsc,
    time::{sleep, timeout},
};

use super::{
    client::{Answer, Client},
    own::OwnConnections,
    queue::{Queue, Request},
    sampling::Sampling,
    spans::{self, Common},
    target::Target,
};
use crate::{event::ConnectionEvent, privileges, untrusted::Untrusted};

/// Records of one request.
const BATCH: usize = 512;
/// Longest time that a record waits for others.
const WAIT: Duration = Duration::from_secs(1);
/// Batches that wait to be made requests of: as many connections as a full ring has, which are taken at once.
const BATCHES: usize = 48;
/// Bytes of requests that wait to be sent.
const QUEUE: usize = 16 << 20;
/// Before the second attempt. It doubles with each, up to the limit; half of it is chance.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A request that nobody took for this long is dropped, lest it be what the collector chokes on.
const PATIENCE: Duration = Duration::from_mins(5);
/// How long what waits is still sent at the end.
const FAREWELL: Duration = Duration::from_secs(2);
/// How often trouble is reported.
const SAY_AGAIN: Duration = Duration::from_mins(1);

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
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

impl TraceExporter {
    /// Starts the thread. It gives up all its capabilities.
    ///
    /// # Errors
    /// When that is not possible.
    pub fn start(target: Target, sampling: Sampling) -> io::Result<Self> {
        let (batches, records) = mpsc::channel(BATCHES);
        let shared = Arc::<Shared>::default();
        let own = Arc::<OwnConnections>::default();
        // One thread for names, which may wait long for an answer.
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(1)
            .thread_name("otlp-names")
            .build()?;
        let (its, common, compresses) = (Arc::clone(&shared), target.common.clone(), target.compresses);
        let client = Client::new(target, Arc::clone(&own));
        let thread = thread::Builder::new().name("otlp".to_owned()).spawn(move || {
            privileges::keep(CapabilitySet::empty());
            runtime.block_on(work(client, records, common, compresses, &its));
            // The thread that asks for names may still wait.
            runtime.shutdown_background();
        })?;
        Ok(Self {
            sampling,
            own,
            batch: Vec::new(),
            since: None,
            batches,
            sampled: 0,
            left_out: 0,
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
        if spans::count(event) == 0 {
            return;
        }
        let state = self.sampling.keeps(event);
        if spans::makes_trace(event) {
            *(if state.is_some() { &mut self.sampled } else { &mut self.left_out }) += 1;
        }
        let Some(state) = state else { return };
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
        let Self { sampled, left_out, shared, .. } = self;
        Counts {
            sampled: *sampled,
            left_out: *left_out,
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
    mut client: Client,
    mut batches: mpsc::Receiver<Vec<Chosen>>,
    common: Common,
    compresses: bool,
    shared: &Shared,
) {
    let queue = Queue::new(QUEUE);
    let make = async {
        while let Some(batch) = batches.recv().await {
            if batch.is_empty() {
                continue;
            }
            let spans = batch.iter().map(|(event, _)| spans::count(event)).sum();
            let body = body(&batch, &common, compresses);
            shared.dropped(Loss::QueueFull, queue.push(Request { body, spans }));
        }
        queue.close();
    };
    // What is being sent.
    let at_hand = Cell::new(0);
    let mut send = std::pin::pin!(async {
        let mut log = Log::default();
        while let Some(Request { body, spans }) = queue.pop().await {
            at_hand.set(spans);
            let (taken, lost) = deliver(&mut client, &body, spans, &mut log).await;
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

fn body(batch: &[Chosen], common: &Common, compresses: bool) -> Bytes {
    let request = spans::request(batch, common);
    if !compresses {
        return request.encode_to_vec().into();
    }
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    // Into memory it can always be written.
    let _ = io::Write::write_all(&mut encoder, &request.encode_to_vec());
    encoder.finish().unwrap_or_default().into()
}

/// Sends a request until somebody takes it, or for long enough. Returns how many of its spans were taken, and
/// what became of the others.
async fn deliver(client: &mut Client, body: &Bytes, spans: u64, log: &mut Log) -> (u64, Option<Loss>) {
    let begin = tokio::time::Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        let asked = match client.post(body).await {
            Ok(Answer::Taken { rejected, message }) => {
                let rejected = rejected.min(spans);
                if rejected > 0 || message.is_some() {
                    let message = message.unwrap_or_default();
                    log.say(&format_args!(
                        "the collector rejected {rejected} of {spans} spans: {message:.200}"
                    ));
                }
                return (spans - rejected, (rejected > 0).then_some(Loss::Rejected));
            }
            Ok(Answer::Unconfirmed) => {
                log.say(&"the endpoint does not answer as a collector does: is it one?");
                return (0, Some(Loss::Unconfirmed));
            }
            Ok(Answer::Refused(status)) => {
                log.say(&format_args!("the collector refused them: {status}"));
                return (0, Some(Loss::Refused));
            }
            Ok(Answer::Later(status, asked)) => {
                log.say(&format_args!("the collector cannot take them now: {status}"));
                asked
            }
            Err(trouble) => {
                log.say(&Untrusted::from(trouble.to_string()));
                None
            }
        };
        let wait = next_pause(pause, fastrand::f64()).max(asked.unwrap_or_default());
        if begin.elapsed() + wait > PATIENCE {
            return (0, Some(Loss::Expired));
        }
        sleep(wait).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Half of it for certain, and the other half by chance, 0 to 1: collectors of many hosts are not to be asked
/// by all at once.
fn next_pause(pause: Duration, chance: f64) -> Duration {
    pause / 2 + (pause / 2).mul_f64(chance)
}

/// Reports trouble now and then.
#[derive(Default)]
struct Log(Option<Instant>);

impl Log {
    fn say(&mut self, what: &dyn std::fmt::Display) {
        if self.0.is_none_or(|said| said.elapsed() >= SAY_AGAIN) {
            self.0 = Some(Instant::now());
            tracing::warn!("connections are not exported: {what}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pause_is_half_certain_and_half_chance() {
        let pause = Duration::from_secs(8);
        let pauses = [0.0, 0.5, 1.0].map(|chance| next_pause(pause, chance).as_secs());
        assert_eq!(pauses, [4, 6, 8]);
    }

    #[test]
    fn losses_are_counted_each_in_its_place() {
        for (place, loss) in Loss::ALL.into_iter().enumerate() {
            assert_eq!(loss as usize, place);
        }
    }
}
