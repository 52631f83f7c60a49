//! From events to files, through a thread of its own.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::thread::CapabilitySet;
use thiserror::Error;
use tokio::sync::oneshot;

use super::{
    file::{Encoding, RecordFile},
    folder::Folder,
    look_back::LookBack,
};
use crate::{
    event::ConnectionEvent,
    privileges,
    untrusted::{self, Untrusted, say},
};

/// Lines of one part of the file, bytes.
const BATCH: usize = 64 << 10;
/// Longest time that a line waits for others.
const WAIT: Duration = Duration::from_secs(1);
/// Batches that wait for the disk: 16 MiB.
const QUEUE: usize = 256;
/// How often an error of the disk is reported.
const SAY_AGAIN: Duration = Duration::from_mins(1);

/// Where records go.
#[derive(Debug)]
pub struct Target(Kind);

#[derive(Debug)]
enum Kind {
    File(RecordFile, Encoding),
    Folder(Folder),
    /// Memory, and where it is written to when asked for.
    LookBack(LookBack, Folder),
}

impl Target {
    /// A file of this name; compressed if that ends with `.gz`.
    ///
    /// # Errors
    /// When it exists, or cannot be made.
    pub fn file(path: &Path) -> io::Result<Self> {
        Ok(Self(Kind::File(RecordFile::create(path)?, Encoding::of(path))))
    }

    /// Files in a folder.
    #[must_use]
    pub const fn folder(folder: Folder) -> Self {
        Self(Kind::Folder(folder))
    }

    /// Memory: what came in the last `keep`, at most so many bytes, and written to a file of the folder by
    /// [`Recorder::write_look_back`].
    #[must_use]
    pub const fn look_back(keep: Duration, bytes: usize, folder: Folder) -> Self {
        Self(Kind::LookBack(LookBack::new(keep, bytes), folder))
    }

    fn take(&mut self, lines: Vec<u8>) -> io::Result<usize> {
        let encoding = if let Kind::File(_, encoding) = self.0 { encoding } else { Encoding::Gzip };
        let part = encoding.encode(lines)?;
        let bytes = part.len();
        match &mut self.0 {
            Kind::File(file, _) => file.append(&part)?,
            Kind::Folder(folder) => folder.append(&part)?,
            Kind::LookBack(look_back, _) => look_back.add(Instant::now(), part),
        }
        Ok(bytes)
    }

    /// Writes what is in memory. Returns where.
    fn write_look_back(&mut self) -> io::Result<PathBuf> {
        match &mut self.0 {
            Kind::File(..) | Kind::Folder(_) => Err(io::Error::other(NoLookBack::NotKept)),
            Kind::LookBack(look_back, folder) => folder.write(look_back.parts(Instant::now())),
        }
    }
}

/// What became of the records so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Records that were written, or are in memory.
    pub written: u64,
    /// Their bytes, compressed.
    pub bytes: u64,
    /// Records that were dropped because the disk did not keep up.
    pub dropped_queue: u64,
    /// Records that were dropped because writing failed.
    pub dropped_disk: u64,
}

#[derive(Debug, Default)]
struct Shared {
    written: AtomicU64,
    bytes: AtomicU64,
    dropped_queue: AtomicU64,
    dropped_disk: AtomicU64,
    /// The last error of the disk.
    error: Mutex<Option<io::Error>>,
}

#[derive(Debug, Default)]
struct Batch {
    lines: Vec<u8>,
    records: u64,
    since: Option<Instant>,
}

#[derive(Debug)]
enum Message {
    Batch(Batch),
    WriteLookBack(oneshot::Sender<io::Result<PathBuf>>),
}

/// The file that the records of the last while are in, once they are. Whoever does not want to know drops it.
pub type Written = oneshot::Receiver<io::Result<PathBuf>>;

/// Why the records of the last while are not written to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NoLookBack {
    /// They are not kept in memory.
    #[error("set `records` and `look_back` to keep the records of the last while")]
    NotKept,
    /// Too much waits for the disk.
    #[error("the disk does not keep up")]
    Busy,
}

/// Takes events, and passes them on to the thread that writes.
#[derive(Debug)]
pub struct Recorder {
    batch: Batch,
    queue: SyncSender<Message>,
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

impl Recorder {
    /// Starts the thread.
    ///
    /// # Errors
    /// When that is not possible.
    pub fn start(target: Target) -> io::Result<Self> {
        let (queue, messages) = sync_channel(QUEUE);
        let shared = Arc::<Shared>::default();
        let its = Arc::clone(&shared);
        let thread = thread::Builder::new().name("recorder".to_owned()).spawn(move || {
            // Root writes into folders of others.
            privileges::keep(CapabilitySet::DAC_OVERRIDE);
            work(target, &messages, &its);
        })?;
        Ok(Self { batch: Batch::default(), queue, shared, thread })
    }

    /// Takes an event. Never waits.
    pub fn record(&mut self, event: &ConnectionEvent) {
        // An event can always be written as JSON.
        let Ok(line) = serde_json::to_string(event) else { return };
        self.batch.lines.extend(untrusted::json(line).as_bytes());
        self.batch.lines.push(b'\n');
        self.batch.records += 1;
        self.batch.since.get_or_insert_with(Instant::now);
        if self.batch.lines.len() >= BATCH {
            self.send();
        }
    }

    /// Passes on what has waited for long enough. To be called from time to time.
    pub fn turn(&mut self) {
        if self.batch.since.is_some_and(|since| since.elapsed() >= WAIT) {
            self.send();
        }
    }

    /// Asks for what is in memory to be written to a file.
    ///
    /// # Errors
    /// When that is not possible now.
    pub fn write_look_back(&mut self) -> Result<Written, NoLookBack> {
        self.send();
        let (tell, written) = oneshot::channel();
        self.queue.try_send(Message::WriteLookBack(tell)).map_err(|_| NoLookBack::Busy)?;
        Ok(written)
    }

    /// What became of the records so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.shared.counts()
    }

    /// Waits until everything is written. Returns what became of it, and the last error.
    #[must_use]
    pub fn finish(mut self) -> (Counts, Option<io::Error>) {
        let last = std::mem::take(&mut self.batch);
        let Self { queue, shared, thread, .. } = self;
        if last.records > 0 {
            // The thread ends only when the queue is gone.
            let _ = queue.send(Message::Batch(last));
        }
        drop(queue);
        let _ = thread.join();
        let error = shared.error.lock().unwrap_or_else(PoisonError::into_inner).take();
        (shared.counts(), error)
    }

    fn send(&mut self) {
        if self.batch.records == 0 {
            return;
        }
        let batch = std::mem::take(&mut self.batch);
        if let Err(
            TrySendError::Full(Message::Batch(batch)) | TrySendError::Disconnected(Message::Batch(batch)),
        ) = self.queue.try_send(Message::Batch(batch))
        {
            self.shared.dropped_queue.fetch_add(batch.records, Relaxed);
        }
    }
}

impl Shared {
    fn counts(&self) -> Counts {
        Counts {
            written: self.written.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            dropped_queue: self.dropped_queue.load(Relaxed),
            dropped_disk: self.dropped_disk.load(Relaxed),
        }
    }
}

/// Writes until the queue is gone.
fn work(mut target: Target, messages: &Receiver<Message>, shared: &Shared) {
    let mut said: Option<Instant> = None;
    for message in messages {
        let result = match message {
            Message::Batch(Batch { lines, records, .. }) => match target.take(lines) {
                Ok(bytes) => {
                    shared.written.fetch_add(records, Relaxed);
                    shared.bytes.fetch_add(bytes as u64, Relaxed);
                    Ok(())
                }
                Err(error) => {
                    shared.dropped_disk.fetch_add(records, Relaxed);
                    Err(error)
                }
            },
            Message::WriteLookBack(tell) => match target.write_look_back() {
                Ok(path) => {
                    say(format_args!("handshake: wrote {}", Untrusted::from(&*path)));
                    // Not everybody waits for it.
                    let _ = tell.send(Ok(path));
                    Ok(())
                }
                Err(error) => {
                    let _ = tell.send(Err(io::Error::new(error.kind(), error.to_string())));
                    Err(error)
                }
            },
        };
        let Err(error) = result else { continue };
        if said.is_none_or(|said| said.elapsed() >= SAY_AGAIN) {
            said = Some(Instant::now());
            tracing::warn!(%error, "cannot write records; they are dropped and counted");
        }
        *shared.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Read as _};

    use flate2::read::MultiGzDecoder;

    use handshake_common::Role;

    use super::{super::Limits, *};
    use crate::event::testing::opened;

    const LIMITS: Limits = Limits { bytes: 1 << 30, age: None };

    /// The lines of whole parts. The last part may be in the middle of being written.
    fn lines(bytes: &[u8]) -> Vec<String> {
        let mut text = Vec::new();
        match MultiGzDecoder::new(bytes).read_to_end(&mut text) {
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof),
            Ok(_) => assert!(text.last().is_none_or(|last| *last == b'\n')),
        }
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        String::from_utf8(text[..whole].to_vec()).unwrap().lines().map(str::to_owned).collect()
    }

    /// With a line for each of these numbers.
    fn record(recorder: &mut Recorder, numbers: std::ops::Range<u16>) {
        for number in numbers {
            let mut event = opened(Role::Client);
            event.local.as_mut().unwrap().port = number;
            recorder.record(&event);
        }
    }

    /// The numbers of the lines.
    fn numbers(bytes: &[u8]) -> Vec<u16> {
        let events = lines(bytes);
        let event = |line: &String| serde_json::from_str::<ConnectionEvent>(line).unwrap();
        events.iter().map(|line| event(line).local.unwrap().port).collect()
    }

    #[test]
    fn every_record_is_in_the_file_once_and_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl.gz");
        let mut recorder = Recorder::start(Target::file(&path).unwrap()).unwrap();
        record(&mut recorder, 1..2001);
        let (counts, error) = recorder.finish();
        assert!(error.is_none(), "{error:?}");
        let bytes = fs::read(&path).unwrap();
        assert_eq!(counts, Counts { written: 2000, bytes: bytes.len() as u64, ..Counts::default() });
        assert_eq!(numbers(&bytes), (1..2001).collect::<Vec<_>>());
        let again = Target::file(&path).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn a_name_without_gz_is_not_compressed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        let mut recorder = Recorder::start(Target::file(&path).unwrap()).unwrap();
        record(&mut recorder, 1..3);
        let _ = recorder.finish();
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 2);
    }

    #[test]
    fn file_can_be_read_while_it_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl.gz");
        let mut recorder = Recorder::start(Target::file(&path).unwrap()).unwrap();
        record(&mut recorder, 1..500);
        let begin = Instant::now();
        loop {
            recorder.turn();
            // Whatever is there are whole lines.
            let read = numbers(&fs::read(&path).unwrap());
            assert_eq!(read, (1..=u16::try_from(read.len()).unwrap()).collect::<Vec<_>>());
            if read.len() == 499 {
                break;
            }
            assert!(begin.elapsed() < WAIT * 10, "{}", read.len());
            thread::sleep(WAIT / 100);
        }
    }

    #[test]
    fn look_back_is_written_when_asked_for_and_not_before() {
        let folder = tempfile::tempdir().unwrap();
        let files =
            || fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
        let target = Target::look_back(WAIT * 100, 1 << 20, Folder::open(folder.path(), LIMITS).unwrap());
        let mut recorder = Recorder::start(target).unwrap();
        record(&mut recorder, 1..100);
        assert!(files().is_empty());
        let written = recorder.write_look_back().unwrap();
        let (counts, error) = recorder.finish();
        assert!(error.is_none(), "{error:?}");
        assert_eq!(counts.written, 99);
        let [file] = &files()[..] else { panic!("{:?}", files()) };
        assert_eq!(&written.blocking_recv().unwrap().unwrap(), file);
        assert_eq!(numbers(&fs::read(file).unwrap()).len(), 99);
    }

    #[test]
    fn what_the_disk_refuses_is_dropped_and_counted() {
        let target = Target(Kind::File(RecordFile::of_full_disk(), Encoding::Gzip));
        let mut recorder = Recorder::start(target).unwrap();
        record(&mut recorder, 1..11);
        let (counts, error) = recorder.finish();
        assert_eq!(counts, Counts { dropped_disk: 10, ..Counts::default() });
        assert_eq!(error.unwrap().kind(), io::ErrorKind::StorageFull);
    }
}
