//! The metrics to a collector, again and again, through a thread of its own.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::SystemTime,
};

use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    attributes::Common,
    delivery::{self, Attempt, Delivery, FAREWELL},
    own::OwnConnections,
    points::{self, Snapshot},
    target::{Signal, Target},
};

/// What became of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The collector took all of it.
    Success,
    /// It took it but for some points.
    Rejected,
    /// It will not take it.
    Refused,
    /// It answered with success, but not in the way of OTLP. It may have taken it.
    Unconfirmed,
    /// It was not delivered before the next one, which counts the same and more.
    Replaced,
}

impl Fate {
    /// Every one.
    pub const ALL: [Self; 5] =
        [Self::Success, Self::Rejected, Self::Refused, Self::Unconfirmed, Self::Replaced];

    /// The name in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Rejected => "rejected",
            Self::Refused => "refused",
            Self::Unconfirmed => "unconfirmed",
            Self::Replaced => "replaced",
        }
    }
}

/// How many exports had each fate, in the order of [`Fate::ALL`].
pub type Fates = [u64; Fate::ALL.len()];

#[derive(Debug, Default)]
struct Shared([AtomicU64; Fate::ALL.len()]);

impl Shared {
    fn had(&self, fate: Fate, exports: u64) {
        self.0[fate as usize].fetch_add(exports, Relaxed);
    }
}

/// The latest, and which one it is.
type Latest = (u64, Option<Arc<Snapshot>>);

/// Takes the metrics, and passes them on to the thread that sends them.
#[derive(Debug)]
pub struct MetricExporter {
    latest: watch::Sender<Latest>,
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

impl MetricExporter {
    /// Starts the thread. It gives up all its capabilities. What counters count begins now.
    ///
    /// # Errors
    /// When that is not possible.
    pub(super) fn start(target: Target, own: Arc<OwnConnections>) -> io::Result<Self> {
        let (latest, snapshots) = watch::channel((0, None));
        let shared = Arc::<Shared>::default();
        let (its, common, compresses) = (Arc::clone(&shared), target.common.clone(), target.compresses);
        let start = SystemTime::now();
        let delivery = Delivery::new(Signal::Metrics, target, own);
        let thread = delivery::start("otlp-metrics", move || {
            work(delivery, snapshots, Requests { start, common, compresses }, its)
        })?;
        Ok(Self { latest, shared, thread })
    }

    /// Takes the metrics of now, in place of those that could not be sent yet. Never waits.
    pub fn take(&self, snapshot: Snapshot) {
        let number = self.latest.borrow().0 + 1;
        self.latest.send_replace((number, Some(Arc::new(snapshot))));
    }

    /// What became of the exports so far.
    #[must_use]
    pub fn fates(&self) -> Fates {
        self.shared.0.each_ref().map(|exports| exports.load(Relaxed))
    }

    /// Waits a little until the latest is sent. Returns whether it was not.
    #[must_use]
    pub fn finish(self) -> bool {
        let Self { latest, shared, thread } = self;
        let taken = latest.borrow().0;
        drop(latest);
        let _ = thread.join();
        shared.0.iter().map(|exports| exports.load(Relaxed)).sum::<u64>() < taken
    }
}

/// What requests are made with.
struct Requests {
    start: SystemTime,
    common: Common,
    compresses: bool,
}

/// Sends the latest as soon as there is one, until there are no more and a little longer.
async fn work(
    delivery: Delivery,
    mut latest: watch::Receiver<Latest>,
    requests: Requests,
    shared: Arc<Shared>,
) {
    let mut end = latest.clone();
    let end = async { while end.changed().await.is_ok() {} };
    let mut send = std::pin::pin!(send(delivery, &mut latest, &requests, &shared));
    tokio::select! {
        () = end => drop(timeout(FAREWELL, &mut send).await),
        () = &mut send => {}
    }
}

async fn send(
    mut delivery: Delivery,
    latest: &mut watch::Receiver<Latest>,
    requests: &Requests,
    shared: &Shared,
) {
    // The fate of all up to this one is known.
    let mut settled = 0;
    while latest.changed().await.is_ok() {
        loop {
            // While an attempt is repeated, what is newer says all of it, too.
            let (number, Some(snapshot)) = latest.borrow_and_update().clone() else { break };
            shared.had(Fate::Replaced, number - 1 - settled);
            settled = number - 1;
            let request = points::request(&snapshot, requests.start, &requests.common);
            let body = delivery::body(&request, requests.compresses);
            let fate = match delivery.attempt(&body, points::count(&snapshot.families)).await {
                Attempt::Taken { rejected: 0 } => Fate::Success,
                Attempt::Taken { .. } => Fate::Rejected,
                Attempt::Refused => Fate::Refused,
                Attempt::Unconfirmed => Fate::Unconfirmed,
                Attempt::Again(wait) => {
                    sleep(wait).await;
                    continue;
                }
            };
            shared.had(fate, 1);
            settled = number;
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fates_are_counted_each_in_its_place() {
        for (place, fate) in Fate::ALL.into_iter().enumerate() {
            assert_eq!(fate as usize, place);
        }
    }
}
