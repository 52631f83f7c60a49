//! The open connections: there is a most, and who keeps us waiting makes room for who comes.

use std::sync::Arc;

use tokio::{
    task::{AbortHandle, yield_now},
    time::{Duration, Instant, sleep},
};

use super::activity::Activity;

/// Connections at once; more wait in the listen queue.
pub(super) const MOST: usize = 512;
/// How many are closed at a time.
const BATCH: usize = 128;
/// When to look again if nobody can be closed yet.
const AGAIN: Duration = Duration::from_millis(5);

#[derive(Default)]
pub(super) struct Connections(Vec<Connection>);

struct Connection {
    activity: Arc<Activity>,
    task: AbortHandle,
}

impl Connections {
    pub(super) fn add(&mut self, activity: Arc<Activity>, task: AbortHandle) {
        self.0.push(Connection { activity, task });
    }

    /// Whether one more has to wait until another one is closed.
    pub(super) fn is_full(&mut self) -> bool {
        if self.0.len() >= MOST {
            self.0.retain(|connection| !connection.task.is_finished());
        }
        self.0.len() >= MOST
    }

    /// Waits until one more may come.
    pub(super) async fn room(&mut self) {
        while self.is_full() {
            self.close_some().await;
        }
    }

    /// Closes those that have kept us waiting for longest, or waits a little when nobody has for long enough.
    pub(super) async fn close_some(&mut self) {
        self.0.retain(|connection| !connection.task.is_finished());
        let now = Instant::now();
        let waits = self.0.iter().map(|connection| connection.activity.waited_for_until());
        let overdue = overdue(waits, now);
        // What they were waited for may be there already: all tasks that can go on do so first.
        yield_now().await;
        let mut closed = false;
        for (until, index) in overdue {
            let Connection { activity, task } = &self.0[index];
            if activity.waited_for_until() == Some(until) {
                task.abort();
                closed = true;
            }
        }
        // An aborted task lets go of its descriptor when it gets its turn.
        if closed { yield_now().await } else { sleep(AGAIN).await }
    }

    pub(super) fn close_all(self) {
        for connection in self.0 {
            connection.task.abort();
        }
    }
}

/// Those whose time is over, the longest overdue first: until when they were waited for, and their places.
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
    fn the_longest_overdue_go_first_and_others_stay() {
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
