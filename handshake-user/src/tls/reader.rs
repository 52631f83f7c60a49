//! Work that may never end: on files whose file system does not answer, because its server is gone or is a
//! program of an untrusted user; on processes that hold their own mappings locked, because they wait for such
//! a file system (`mmap_lock`).
//!
//! A thread that waits so cannot be interrupted. It is left behind and replaced, and until it returns,
//! nothing more is asked of that file system or process. Closing is such work, too: a network or FUSE file
//! system is asked to flush on every `close(2)`.

use std::{
    fs::File,
    ops::Deref,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        mpsc::{self, RecvTimeoutError, SyncSender},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use thiserror::Error;

use crate::privileges;

/// The limit for one piece of work on a file. An inspection that makes progress ends itself before that.
const FILE_TIMEOUT: Duration = Duration::from_secs(15);
/// The limit for one piece of work on a process.
const PROCESS_TIMEOUT: Duration = Duration::from_secs(2);
/// Threads left behind at the same time on account of file systems; beyond that, nothing is read at all.
const MAX_STUCK_FILE_SYSTEMS: usize = 4;
/// The same on account of processes, of which there can be more.
const MAX_STUCK_PROCESSES: usize = 16;

/// Why a piece of work has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ReadError {
    /// It takes too long, or earlier work on the same file system still does.
    #[error("its file system does not answer")]
    Timeout,
    /// It panicked, or no thread could be started.
    #[error("it cannot be read")]
    Failed,
}

/// An open file of an untrusted user. Dropping it closes nothing: that is left to
/// [`Reader::close_discarded`].
#[derive(Debug)]
pub struct UntrustedFile {
    file: Arc<File>,
    device: u64,
    discarded: Weak<Discarded>,
}

/// Files to be closed, each with its file system.
type Discarded = Mutex<Vec<(u64, Arc<File>)>>;

impl UntrustedFile {
    /// Closes it on this thread, which may never return.
    fn close(mut self) {
        self.discarded = Weak::new();
    }
}

impl Deref for UntrustedFile {
    type Target = File;

    fn deref(&self) -> &File {
        &self.file
    }
}

impl Drop for UntrustedFile {
    fn drop(&mut self) {
        if let Some(discarded) = self.discarded.upgrade() {
            let mut discarded = discarded.lock().unwrap_or_else(PoisonError::into_inner);
            discarded.push((self.device, Arc::clone(&self.file)));
        }
    }
}

type Work = Box<dyn FnOnce() + Send>;

struct Thread {
    work: SyncSender<Work>,
    handle: JoinHandle<()>,
}

/// The thread that does the work, and those left behind, each with the file system (`st_dev`) or process that
/// did not answer.
pub struct Reader {
    current: Option<Thread>,
    stuck: Vec<(u64, JoinHandle<()>)>,
    discarded: Arc<Discarded>,
    timeout: Duration,
    max_stuck: usize,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("stuck", &self.stuck.len()).finish_non_exhaustive()
    }
}

impl Reader {
    /// For work on files.
    #[must_use]
    pub fn of_files() -> Self {
        Self::new(FILE_TIMEOUT, MAX_STUCK_FILE_SYSTEMS)
    }

    /// For work on processes.
    #[must_use]
    pub fn of_processes() -> Self {
        Self::new(PROCESS_TIMEOUT, MAX_STUCK_PROCESSES)
    }

    fn new(timeout: Duration, max_stuck: usize) -> Self {
        Self { current: None, stuck: Vec::new(), discarded: Arc::default(), timeout, max_stuck }
    }

    /// Whether work that took too long has not ended yet.
    pub fn is_stuck(&mut self) -> bool {
        self.stuck.retain(|(_, thread)| !thread.is_finished());
        !self.stuck.is_empty()
    }

    /// Does a piece of work on a file of this file system, or on this process.
    ///
    /// # Errors
    /// [`ReadError::Timeout`] if it takes too long, or earlier work on the same still does;
    /// [`ReadError::Failed`] if it panics, or no thread can be started.
    pub fn run<T: Send + 'static>(
        &mut self,
        of: u64,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ReadError> {
        if self.is_stuck()
            && (self.stuck.len() >= self.max_stuck || self.stuck.iter().any(|(stuck, _)| *stuck == of))
        {
            return Err(ReadError::Timeout);
        }
        let thread = match self.current.take() {
            Some(thread) => thread,
            None => start().map_err(|_| ReadError::Failed)?,
        };
        // Without a buffer, a result that comes too late is dropped by the thread that sends it: it may hold
        // an open file.
        let (send, receive) = mpsc::sync_channel(0);
        let work = Box::new(move || drop(send.send(work())));
        thread.work.send(work).map_err(|_| ReadError::Failed)?;
        match receive.recv_timeout(self.timeout) {
            Ok(result) => {
                self.current = Some(thread);
                Ok(result)
            }
            Err(RecvTimeoutError::Timeout) => {
                self.stuck.push((of, thread.handle));
                Err(ReadError::Timeout)
            }
            Err(RecvTimeoutError::Disconnected) => Err(ReadError::Failed),
        }
    }

    /// Takes over an open file of this file system, to close it once it is dropped.
    #[must_use]
    pub fn adopt(&self, device: u64, file: File) -> UntrustedFile {
        self.adopt_shared(device, Arc::new(file))
    }

    fn adopt_shared(&self, device: u64, file: Arc<File>) -> UntrustedFile {
        UntrustedFile { file, device, discarded: Arc::downgrade(&self.discarded) }
    }

    /// Closes the files that were dropped. Those on a file system that does not answer stay open until it
    /// does.
    pub fn close_discarded(&mut self) {
        let discarded = std::mem::take(&mut *self.discarded.lock().unwrap_or_else(PoisonError::into_inner));
        for (device, file) in discarded {
            let file = self.adopt_shared(device, file);
            // If it is refused, the work is dropped here, and the file is back among the discarded.
            let _ = self.run(device, move || file.close());
        }
    }
}

/// A thread that ends with the sender of its work.
fn start() -> std::io::Result<Thread> {
    let (send, receive) = mpsc::sync_channel::<Work>(1);
    let body = move || {
        privileges::keep(privileges::LIBRARIES);
        for work in receive {
            work();
        }
    };
    let handle = thread::Builder::new().name("read".to_owned()).spawn(body)?;
    Ok(Thread { work: send, handle })
}

#[cfg(test)]
mod tests {
    use std::{
        io::PipeReader,
        os::fd::{AsFd as _, OwnedFd},
    };

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    #[test]
    fn silent_file_system_does_not_block_others() {
        let mut reader = Reader::new(Duration::from_millis(50), 4);
        assert_eq!(reader.run(1, || 7), Ok(7));
        let (answer, question) = mpsc::channel::<()>();
        assert_eq!(reader.run(1, move || question.recv().is_ok()), Err(ReadError::Timeout));
        assert_eq!(reader.run(1, || 7), Err(ReadError::Timeout), "the same file system is not asked again");
        assert_eq!(reader.run(2, || 7), Ok(7));
        drop(answer);
        while !reader.stuck[0].1.is_finished() {
            thread::yield_now();
        }
        assert_eq!(reader.run(1, || 7), Ok(7), "it has answered");
        assert!(reader.stuck.is_empty());
    }

    #[test]
    fn stuck_threads_are_bounded() {
        let mut reader = Reader::new(Duration::from_millis(10), 4);
        let answers: Vec<_> = (0..4)
            .map(|device| {
                let (answer, question) = mpsc::channel::<()>();
                assert_eq!(reader.run(device, move || question.recv().is_ok()), Err(ReadError::Timeout));
                answer
            })
            .collect();
        assert_eq!(reader.run(99, || 7), Err(ReadError::Timeout));
        assert!(reader.current.is_none());
        drop(answers);
    }

    #[test]
    fn panic_is_an_error() {
        let mut reader = Reader::of_files();
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| ()));
        assert_eq!(reader.run(1, || panic!("on purpose")), Err::<(), _>(ReadError::Failed));
        std::panic::set_hook(hook);
        assert_eq!(reader.run(1, || 7), Ok(7));
    }

    /// Whether the other end of the pipe is closed.
    fn is_closed(end: &PipeReader) -> bool {
        let mut ends = [PollFd::new(end.as_fd(), PollFlags::POLLIN)];
        poll(&mut ends, PollTimeout::ZERO).unwrap();
        ends[0].revents().unwrap().contains(PollFlags::POLLHUP)
    }

    #[test]
    fn dropped_file_is_closed_only_when_its_file_system_answers() {
        let mut reader = Reader::new(Duration::from_millis(50), 4);
        let (end, other) = std::io::pipe().unwrap();
        let file = reader.adopt(1, File::from(OwnedFd::from(other)));
        let (answer, question) = mpsc::channel::<()>();
        assert_eq!(reader.run(1, move || question.recv().is_ok()), Err(ReadError::Timeout));
        // Refused work is dropped where it was refused.
        assert_eq!(reader.run(1, move || drop(file)), Err(ReadError::Timeout));
        assert!(!is_closed(&end), "this thread does not close it");
        reader.close_discarded();
        assert!(!is_closed(&end), "nor while its file system does not answer");
        drop(answer);
        while !reader.stuck[0].1.is_finished() {
            thread::yield_now();
        }
        reader.close_discarded();
        assert!(is_closed(&end));
    }

    #[test]
    fn file_outlives_the_reader() {
        let reader = Reader::of_files();
        let (end, other) = std::io::pipe().unwrap();
        let file = reader.adopt(1, File::from(OwnedFd::from(other)));
        drop(reader);
        assert!(!is_closed(&end));
        drop(file);
        assert!(is_closed(&end), "nobody else is left to close it");
    }
}
