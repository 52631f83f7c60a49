//! The open connections. Their number is limited; those that keep the server waiting are closed in favour of
//! new ones.

use std::sync::Arc;

use rustix::process::{Resource, getrlimit};
use tokio::{
    task::{AbortHandle, yield_now},
    time::{Duration, Instant, sleep},
};

use super::activity::Activity;

/// Connections at once, if the process may open many files; others wait in the listen queue.
const MAX_CONNECTIONS: usize = 512;
/// How many are closed at a time.
const BATCH: usize = 128;
/// When to try again if none can be closed yet.
const RETRY: Duration = Duration::from_millis(5);

pub(super) struct Connections {
    open: Vec<Connection>,
    most: usize,
}

struct Connection {
    activity: Arc<Activity>,
    task: AbortHandle,
}

impl Connections {
    pub(super) fn new() -> Self {
        // The other descriptors are for the probes, and for the files that a scrape reads.
        let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let most = usize::try_from(files / 4).unwrap_or(usize::MAX).clamp(1, MAX_CONNECTIONS);
        Self { open: Vec::new(), most }
    }

    pub(super) fn add(&mut self, activity: Arc<Activity>, task: AbortHandle) {
        self.open.push(Connection { activity, task });
    }

    /// Whether a new one has to wait until another is closed.
    pub(super) fn is_full(&mut self) -> bool {
        if self.open.len() >= self.most {
            self.open.retain(|connection| !connection.task.is_finished());
        }
        self.open.len() >= self.most
    }

    /// Waits until a new one may be accepted.
    pub(super) async fn room(&mut self) {
        while self.is_full() {
            self.close_some().await;
        }
    }

    /// Closes those that have kept the server waiting longest, or waits a little if none has for long enough.
    pub(super) async fn close_some(&mut self) {
        self.open.retain(|connection| !connection.task.is_finished());
        let now = Instant::now();
        let waits = self.open.iter().map(|connection| connection.activity.waited_for_until());
        let overdue = overdue(waits, now);
        // What they are waited for may have arrived: let every task that can proceed do so first.
        yield_now().await;
        let mut closed = false;
        for (until, index) in overdue {
            let Connection { activity, task } = &self.open[index];
            if activity.waited_for_until() == Some(until) {
                task.abort();
                closed = true;
            }
        }
        // An aborted task closes its descriptor when it is next polled.
        if closed { yield_now().await } else { sleep(RETRY).await }
    }

    pub(super) fn close_all(self) {
        for connection in self.open {
            connection.task.abort();
        }
    }
}

/// Those that are overdue, the longest first: their deadlines and indices.
fn overdue(waits: impl Iterator<Item = Option<Instant>>, now: Instant) -> Vec<(Instant, usize)> {
    let waits = waits.enumerate().filter_map(|(index, until)| Some((until?, index)));
    let mut overdue: Vec<_> = waits.filter(|(until, _)| *until <= now).collect();
    overdue.sort_unstable();
    overdue.truncate(BATCH);
    overdue
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longest_overdue_come_first_and_others_stay() {
        let begin = Instant::now();
        let at = |seconds| Some(begin + Duration::from_secs(seconds));
        let indices = |waits: Vec<Option<Instant>>| -> Vec<usize> {
            overdue(waits.into_iter(), begin + Duration::from_secs(10))
                .into_iter()
                .map(|(_, index)| index)
                .collect()
        };
        assert_eq!(indices(vec![at(3), None, at(11), at(2), at(10)]), [3, 0, 4]);
        assert_eq!(indices(vec![at(1); BATCH + 1]).len(), BATCH);
    }
}
