//! Finds every file on this host that may contain a TLS library, now and later, each once by its true inode, and says
//! when it is gone. What is in it, [`crate::tls`]'s inspection says.
//!
//! Three sources: the standard [`places`], a [`source::Sweep`] over what all processes have mapped, and in between the
//! [`watch`] for new mappings, which looks only at processes that mapped something unknown.

mod iterator;
pub(crate) mod ld_cache;
mod ledger;
pub(crate) mod maps;
mod names;
mod open;
mod places;
mod source;
pub(crate) mod watch;

use std::{
    collections::{HashMap, VecDeque},
    fs::File,
    io,
    ops::Range,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

pub use self::iterator::Iterator as KernelIterator;
use self::{
    ledger::Ledger,
    places::Places,
    source::{Source, Sweep},
    watch::{Alias, Heard, Watch},
};
use crate::tls::reader::{ReadError, Reader, UntrustedFile};

/// How often all processes are looked through, when new mappings are watched: for what the watch cannot tell, above all
/// the end of processes.
pub const SWEEP: Duration = Duration::from_secs(30);
/// The same where they cannot be watched.
const SWEEP_UNWATCHED: Duration = Duration::from_secs(2);
/// Not more often than this, whatever was lost.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);

/// How long one [`Discovery::poll`] works; one portion may take it beyond that.
const SLICE: Duration = Duration::from_millis(5);
/// New mappings that wait to be looked at. What does not fit, the next sweep finds.
const MAX_WAITING: usize = 4096;

/// A file, by its file system and number there. Not what `stat` says under an overlay, but the file below.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    /// Device of the file system, as `stat` encodes it.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// Tells apart files that had the same number one after the other; 0 where the kernel does not say.
    pub generation: u32,
}

/// An executable mapping of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// The process.
    pub pid: u32,
    /// Addresses.
    pub range: Range<u64>,
    /// The file.
    pub id: FileId,
    /// It is the program that the process executes, no library.
    pub main: bool,
}

/// A file that may contain a TLS library.
#[derive(Debug)]
pub struct Found {
    /// Which one.
    pub id: FileId,
    /// The file itself.
    pub file: UntrustedFile,
    /// Whose it is.
    pub owner: u32,
    /// For people: its path as the process sees it.
    pub shown: PathBuf,
    /// A process that has it mapped; `None`: it stands in a standard place, or the process has ended already.
    pub pid: Option<u32>,
}

/// A path that leads to exactly this file, for uprobes too, as long as it is open.
#[must_use]
pub fn path_of(file: &File) -> PathBuf {
    open::again(file)
}

/// What has changed.
#[derive(Debug)]
pub enum News {
    /// A file that was not known before.
    Found(Found),
    /// No process has it mapped any more, and it stands in no standard place. When one does again, it is told as found.
    Unused(FileId),
    /// It was rewritten in place, and is told as found once more.
    Rewritten(FileId),
    /// The file system of what would be told as found does not answer.
    Unanswered(FileId, PathBuf),
}

/// The search.
#[derive(Debug)]
pub struct Discovery {
    source: Source,
    watch: Option<Watch>,
    shortfalls: Vec<String>,
    ledger: Ledger,
    places: Places,
    /// Files by the watch's names for them; begins anew with each sweep, since such a name may come to mean another.
    aliases: HashMap<Alias, FileId>,
    waiting: VecDeque<Heard>,
    reader: Reader,
    /// Files that may still be told of in this poll.
    room: usize,
    sweep: Option<Sweep>,
    every: Duration,
    began: Option<Instant>,
    /// Something was lost or did not fit: sweep again soon.
    again: bool,
    settled: bool,
    missed: usize,
    overlooked: usize,
}

impl Discovery {
    /// Begins to listen; everything else is done by [`Discovery::poll`]. Sweeps come `every` so often ([`SWEEP`]).
    #[must_use]
    pub fn new(iterator: Result<KernelIterator, String>, every: Duration) -> Self {
        let mut shortfalls = Vec::new();
        let source = iterator.map_or_else(
            |reason| {
                shortfalls.push(format!(
                    "mapped files are told apart by /proc/PID/maps, which from Linux 6.8 on counts a library once for \
                     every overlay file system: {reason}"
                ));
                Source::Maps
            },
            Source::Iterator,
        );
        // Before the first sweep, so that nothing falls between the two.
        let watch = Watch::start().inspect_err(|error| {
            shortfalls.push(format!(
                "libraries that come into use are found only every {} s, not at once: the kernel does not tell of new \
                 mappings ({error})",
                SWEEP_UNWATCHED.as_secs()
            ));
        });
        let every = if watch.is_ok() { every } else { every.min(SWEEP_UNWATCHED) };
        Self {
            source,
            watch: watch.ok(),
            shortfalls,
            ledger: Ledger::default(),
            places: Places::default(),
            aliases: HashMap::new(),
            waiting: VecDeque::new(),
            reader: Reader::default(),
            room: 0,
            sweep: None,
            every,
            began: None,
            again: false,
            settled: false,
            missed: 0,
            overlooked: 0,
        }
    }

    /// What has changed since the last time, with so many files found at the most: each is open. It works for some
    /// milliseconds, unless a file system is slow to answer.
    pub fn poll(&mut self, now: Instant, room: usize) -> Vec<News> {
        self.poll_until(Instant::now() + SLICE, now, room)
    }

    fn poll_until(&mut self, end: Instant, now: Instant, room: usize) -> Vec<News> {
        let mut news = Vec::new();
        self.room = room;
        self.reader.close_discarded();
        self.listen();
        self.follow(end, &mut news);
        let due = self.began.is_none_or(|began| {
            now.saturating_duration_since(began) >= if self.again { SWEEP_PAUSE } else { self.every }
        });
        // Without room it would find nothing.
        if self.sweep.is_none() && room > 0 && (due || (self.again && !self.settled)) {
            self.begin_sweep(now, &mut news);
        }
        // At least one portion in each poll: new mappings could use up every slice.
        while self.sweep.is_some() {
            self.go_on(&mut news);
            if Instant::now() >= end {
                break;
            }
        }
        news
    }

    /// A file that was told as found is to be told once more, if it is still in use then.
    pub fn forget(&mut self, id: FileId) {
        self.ledger.remove(id);
        self.places.forget(id);
        self.aliases.retain(|_, known| *known != id);
        self.again = true;
    }

    /// Whether a file stands in a standard place, which is the system's own.
    #[must_use]
    pub fn is_standing(&self, id: FileId) -> bool {
        self.places.has(id)
    }

    /// What reads files that may never answer.
    pub const fn reader(&mut self) -> &mut Reader {
        &mut self.reader
    }

    /// Whether everything that was there at the start has been told.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.settled
    }

    /// The processes that have a file mapped that was told as found, as far as is known: one that has ended stays
    /// for up to two sweeps.
    pub fn users(&self, id: FileId) -> impl Iterator<Item = u32> {
        self.ledger.users(id)
    }

    /// What this host does not offer to the search, and what follows from that; for people.
    #[must_use]
    pub fn shortfalls(&self) -> &[String] {
        &self.shortfalls
    }

    /// Mappings of the last sweep whose files could not be looked at, mostly for want of a capability, or for which there
    /// was no room. Processes of other users take `CAP_SYS_PTRACE`, `CAP_DAC_READ_SEARCH` and `CAP_CHECKPOINT_RESTORE`.
    #[must_use]
    pub fn overlooked(&self) -> usize {
        self.overlooked
    }

    fn listen(&mut self) {
        let Some(watch) = &mut self.watch else { return };
        let own = std::process::id();
        let (ledger, aliases, waiting) = (&mut self.ledger, &self.aliases, &mut self.waiting);
        let mut overflow = false;
        let lost = watch.listen(|heard| {
            // Our own mappings are those of `identify`.
            if heard.pid == own || aliases.get(&heard.alias).is_some_and(|id| ledger.note(*id, heard.pid)) {
                return;
            }
            if waiting.len() < MAX_WAITING {
                waiting.push_back(heard);
            } else {
                overflow = true;
            }
        });
        self.again |= lost || overflow;
    }

    /// Looks at the processes that have mapped something unknown.
    fn follow(&mut self, end: Instant, news: &mut Vec<News>) {
        let mut process: Option<(u32, Vec<Mapped>)> = None;
        while Instant::now() < end
            && let Some(heard) = self.waiting.pop_front()
        {
            if self.aliases.get(&heard.alias).is_some_and(|id| self.ledger.note(*id, heard.pid)) {
                continue;
            }
            let (_, mapped) = match process.take() {
                Some(same) if same.0 == heard.pid => process.insert(same),
                _ => {
                    let mapped = self.source.of(heard.pid);
                    for mapped in &mapped {
                        self.look(mapped, news);
                    }
                    process.insert((heard.pid, mapped))
                }
            };
            let id = match mapped.iter().find(|mapped| mapped.range.contains(&heard.at)) {
                Some(mapped) => Some(mapped.id),
                // It has ended already. Its next like should not be missed.
                None if mapped.is_empty() => self.look_by_name(&heard, news),
                None => None,
            };
            if let Some(id) = id.filter(|id| self.ledger.knows(*id)) {
                self.aliases.insert(heard.alias, id);
            }
        }
    }

    fn begin_sweep(&mut self, now: Instant, news: &mut Vec<News>) {
        self.began = Some(now);
        (self.again, self.missed) = (false, 0);
        self.ledger.begin_sweep();
        for change in self.places.look(places::standard()) {
            let Ok((file, owner)) = open::regular(&change.path) else { continue };
            let file = self.reader.adopt(change.stamp.device(), file);
            let Some(id) = self.source.identify(&file) else { continue };
            if !self.has_room(news) {
                break;
            }
            // Under the name that its users will show.
            let shown = open::path_of_open(&file).unwrap_or_else(|_| change.path.clone());
            if self.places.keep(change, id).is_some() && self.ledger.remove(id) {
                news.push(News::Rewritten(id));
            }
            if !self.ledger.knows(id) {
                self.offer(Found { id, file, owner, shown, pid: None }, news);
            }
        }
        match self.source.sweep() {
            Ok(sweep) => self.sweep = Some(sweep),
            Err(error) => tracing::warn!(%error, "cannot look through the processes of this host"),
        }
    }

    /// One more portion of the sweep under way.
    fn go_on(&mut self, news: &mut Vec<News>) {
        if let Some(portion) = self.sweep.as_mut().and_then(Sweep::next) {
            for mapped in &portion {
                self.look(mapped, news);
            }
            return;
        }
        self.sweep = None;
        news.extend(self.ledger.end_sweep(&self.places.standing()).into_iter().map(News::Unused));
        self.aliases.clear();
        self.overlooked = self.missed;
        self.settled |= !self.again;
    }

    fn look(&mut self, mapped: &Mapped, news: &mut Vec<News>) {
        if self.ledger.note(mapped.id, mapped.pid) || !self.has_room(news) {
            return;
        }
        let shown = match open::path_of(mapped) {
            Ok(shown) => shown,
            Err(error) => {
                self.missed += usize::from(error.kind() != io::ErrorKind::NotFound);
                return;
            }
        };
        if !mapped.main && !names::is_library(&shown) {
            self.ledger.add(mapped.id, None, None);
            return;
        }
        let opened = {
            let (mapped, shown) = (mapped.clone(), shown.clone());
            self.reader.run(mapped.id.dev, move || open::mapped(&mapped, &shown))
        };
        let (file, owner) = match opened {
            Ok(Ok((file, owner))) => (self.reader.adopt(mapped.id.dev, file), owner),
            Err(refusal) => {
                if refusal == ReadError::Timeout {
                    self.ledger.add(mapped.id, None, None);
                    news.push(News::Unanswered(mapped.id, shown));
                }
                return;
            }
            Ok(Err(error)) => {
                tracing::debug!(pid = mapped.pid, path = %shown.display(), %error, "cannot open what it has mapped");
                self.missed += 1;
                return;
            }
        };
        // The process may have mapped something else there meanwhile.
        if matches!(self.source, Source::Iterator(_)) && self.source.identify(&file) != Some(mapped.id) {
            self.missed += 1;
            return;
        }
        self.offer(Found { id: mapped.id, file, owner, shown, pid: Some(mapped.pid) }, news);
    }

    /// Where only a name is left: the file of this name in our own root directory, whichever it is.
    fn look_by_name(&mut self, heard: &Heard, news: &mut Vec<News>) -> Option<FileId> {
        let path: &Path = &heard.path;
        if !(names::is_library(path) || names::is_program(path)) || !self.has_room(news) {
            return None;
        }
        let opened = {
            let path = path.to_owned();
            self.reader.run(heard.alias.device(), move || open::regular(&path))
        };
        let (file, owner) = opened.ok()?.ok()?;
        let file = self.reader.adopt(heard.alias.device(), file);
        let id = self.source.identify(&file)?;
        if !self.ledger.knows(id) {
            self.offer(Found { id, file, owner, shown: path.to_owned(), pid: None }, news);
        }
        heard.alias.may_be(id).then_some(id)
    }

    /// Whether one more file can be told of; if not, a sweep will come back to it.
    fn has_room(&mut self, news: &[News]) -> bool {
        if self.ledger.is_full() {
            self.missed += 1;
            return false;
        }
        let room = news.len() < self.room;
        self.again |= !room;
        room
    }

    fn offer(&mut self, found: Found, news: &mut Vec<News>) {
        if !self.ledger.has_room_for(found.owner) {
            self.missed += 1;
            return;
        }
        self.ledger.add(found.id, Some(found.owner), found.pid);
        news.push(News::Found(found));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sweep_advances_when_new_mappings_use_up_every_slice() {
        let mut discovery = Discovery::new(Err("not in this test".to_owned()), SWEEP);
        let processes = std::fs::read_dir("/proc").unwrap().count();
        // The first poll begins the sweep, the last one ends it; some processes come while it goes on.
        for _ in 0..2 * processes + 100 {
            let now = Instant::now();
            discovery.poll_until(now, now, 1024);
            if discovery.is_settled() {
                return;
            }
        }
        panic!("the sweep does not end");
    }
}
