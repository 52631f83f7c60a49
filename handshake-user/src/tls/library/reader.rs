//! Reads what may never answer: a file system whose server is gone, or is a stranger's program.
//!
//! A thread that waits for such a file cannot be called back. It is left behind, another one takes its place, and until it has
//! come back nothing more is asked of that file system.

use std::{
    sync::mpsc::{self, RecvTimeoutError, SyncSender},
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::tls::library::inspect::Refusal;

/// How long is waited for one piece of work; longer than an inspection may take that goes on.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Threads that are left behind at the same time; beyond that nothing is read at all.
const MAX_STUCK: usize = 4;

type Work = Box<dyn FnOnce() + Send>;

struct Thread {
    work: SyncSender<Work>,
    handle: JoinHandle<()>,
}

/// The thread that reads, and those that were left behind, each with the file system that did not answer.
pub struct Reader {
    current: Option<Thread>,
    stuck: Vec<(u64, JoinHandle<()>)>,
    patience: Duration,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("stuck", &self.stuck.len()).finish_non_exhaustive()
    }
}

impl Default for Reader {
    fn default() -> Self {
        Self { current: None, stuck: Vec::new(), patience: TIMEOUT }
    }
}

impl Reader {
    /// Does a piece of work on a file of that file system (`st_dev`).
    ///
    /// # Errors
    /// [`Refusal::Timeout`] when it takes too long, or another one on that file system still does. [`Refusal::Unreadable`] when
    /// it panics, or no thread can be had.
    pub fn run<T: Send + 'static>(
        &mut self,
        device: u64,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        self.stuck.retain(|(_, thread)| !thread.is_finished());
        if self.stuck.len() >= MAX_STUCK || self.stuck.iter().any(|(stuck, _)| *stuck == device) {
            return Err(Refusal::Timeout);
        }
        let thread = match self.current.take() {
            Some(thread) => thread,
            None => start().map_err(|_| Refusal::Unreadable)?,
        };
        let (send, receive) = mpsc::sync_channel(1);
        // Nobody listens any more when it took too long.
        let work = Box::new(move || drop(send.send(work())));
        thread.work.send(work).map_err(|_| Refusal::Unreadable)?;
        match receive.recv_timeout(self.patience) {
            Ok(result) => {
                self.current = Some(thread);
                Ok(result)
            }
            Err(RecvTimeoutError::Timeout) => {
                self.stuck.push((device, thread.handle));
                Err(Refusal::Timeout)
            }
            Err(RecvTimeoutError::Disconnected) => Err(Refusal::Unreadable),
        }
    }
}

/// A thread that ends with the sender of its work.
fn start() -> std::io::Result<Thread> {
    let (send, receive) = mpsc::sync_channel::<Work>(1);
    let body = move || receive.into_iter().for_each(|work| work());
    let handle = thread::Builder::new().name("read".to_owned()).spawn(body)?;
    Ok(Thread { work: send, handle })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_answers_is_left_behind_and_the_rest_is_read() {
        let mut reader = Reader { patience: Duration::from_millis(50), ..Reader::default() };
        assert_eq!(reader.run(1, || 7), Ok(7));
        let (answer, question) = mpsc::channel::<()>();
        assert_eq!(reader.run(1, move || question.recv().is_ok()), Err(Refusal::Timeout));
        assert_eq!(reader.run(1, || 7), Err(Refusal::Timeout), "the same file system is not asked again");
        assert_eq!(reader.run(2, || 7), Ok(7));
        drop(answer);
        while !reader.stuck[0].1.is_finished() {
            thread::yield_now();
        }
        assert_eq!(reader.run(1, || 7), Ok(7), "it has answered");
        assert!(reader.stuck.is_empty());
    }

    #[test]
    fn threads_left_behind_are_bounded() {
        let mut reader = Reader { patience: Duration::from_millis(10), ..Reader::default() };
        let answers: Vec<_> = (0..MAX_STUCK as u64)
            .map(|device| {
                let (answer, question) = mpsc::channel::<()>();
                assert_eq!(reader.run(device, move || question.recv().is_ok()), Err(Refusal::Timeout));
                answer
            })
            .collect();
        assert_eq!(reader.run(99, || 7), Err(Refusal::Timeout));
        assert!(reader.current.is_none());
        drop(answers);
    }

    #[test]
    fn a_panic_is_no_end_of_the_program() {
        let mut reader = Reader::default();
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| ()));
        assert_eq!(reader.run(1, || panic!("of a hostile file")), Err::<(), _>(Refusal::Unreadable));
        std::panic::set_hook(hook);
        assert_eq!(reader.run(1, || 7), Ok(7));
    }
}
