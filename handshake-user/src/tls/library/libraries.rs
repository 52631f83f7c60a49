//! The TLS libraries of the host: found, inspected, probed, and detached when no process uses them any more.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use aya::{Btf, Ebpf};
use handshake_common::Library;

use super::{
    attach::{AttachError, Attacher, Probed},
    handle::Handle,
    inspect::{InspectError, Inspection, inspect_file},
    queue::{MAX_QUEUED, Queue},
    skipped::{Reason, Skipped},
};
use crate::{
    bounded_map::BoundedMap,
    descriptors,
    kernel::probe::{LoadedPrograms, UprobeLinks},
    tls::discover::{self, Discovery, DiscoveryEvent, FileId, Found, SWEEP, VmaIterator},
};

/// The most files that are tracked. Further ones are not probed.
const MAX_FILES: usize = 4096;

/// The most files without a TLS library that are remembered, so that a program that is started often is read
/// once.
const MAX_OTHERS: usize = 16_384;

/// How long an unused file keeps its probes: a program that runs every few minutes should be observed from
/// its first handshake on, and to detach a probe the kernel waits for a tenth of a second or more.
const KEPT: Duration = Duration::from_mins(10);

/// How often probed files are checked for changes.
const CHECK_EVERY: Duration = SWEEP;

/// How often each reason for not probing a file is logged.
const LOG_EVERY: Duration = Duration::from_hours(1);
/// How often a failure to attach is logged.
const FAILURE_EVERY: Duration = Duration::from_mins(1);
/// Until a file is retried that was over a limit, or whose file system did not answer.
const LONG_PAUSE: Duration = Duration::from_mins(1);
/// Until a file is retried whose owner's other files are to be inspected, or detached, first.
const SHORT_PAUSE: Duration = Duration::from_secs(5);
/// The longest pause of a file that is over a limit again and again, as a multiple of [`LONG_PAUSE`].
const MAX_PAUSES: u32 = 10;
/// Descriptors of the eBPF programs that are loaded with the first file that needs them.
const PROGRAMS: usize = 6;

/// One file of a library.
#[derive(Debug)]
pub struct File {
    /// Its path as a process sees it.
    pub shown: PathBuf,
    /// What it holds.
    pub inspection: Inspection,
    /// Its probes, or why it has none.
    probed: Result<Option<Probed>, AttachError>,
    handle: Handle,
    /// The user whose budget it counts against. `None` if it has a standard path.
    owner: Option<u32>,
    /// Since when no process uses it.
    unused: Option<Instant>,
}

impl File {
    /// Whether its handshakes are observed.
    #[must_use]
    pub fn is_covered(&self) -> bool {
        self.inspection.covered && matches!(self.probed, Ok(Some(_)))
    }

    /// Why its handshakes are not observed, or which of their facts are missing; empty if all are observed.
    #[must_use]
    pub fn gaps(&self) -> Vec<String> {
        let gaps = self.inspection.gaps.iter().map(|gap| format!("{}: {}", gap.missing, gap.lost));
        self.probed.as_ref().err().map(ToString::to_string).into_iter().chain(gaps).collect()
    }
}

/// The number of files of each library, by whether they are covered.
pub type LibraryCounts = BTreeMap<(Library, bool), i64>;

/// A file that is to be retried.
#[derive(Debug)]
struct Retry {
    times: u32,
    /// `None` if not before it is found again.
    until: Option<Instant>,
}

/// Every TLS library that is in use.
pub struct Libraries {
    discovery: Discovery,
    attacher: Attacher,
    /// Found, and not inspected yet.
    queue: Queue,
    /// Includes companions: files that are used by those of a library, such as libcrypto.
    files: HashMap<FileId, File>,
    /// Unused files by the time since when. One that is used again keeps its entry until that is due.
    unused: VecDeque<(Instant, FileId)>,
    /// Files without a TLS library.
    others: BoundedMap<FileId, ()>,
    retries: BoundedMap<FileId, Retry>,
    skipped: Skipped,
    /// When each reason was last logged.
    logged: HashMap<Reason, Instant>,
    /// When probed files were last checked for changes.
    checked: Option<Instant>,
    /// When a failure to attach was last logged.
    failed: Option<Instant>,
    /// When it was last logged that probing is held up.
    held_up: Option<Instant>,
    changed: bool,
}

impl Libraries {
    /// Starts the search; everything else is done by [`Libraries::turn`]. The eBPF programs that it loads are
    /// added to `programs`.
    ///
    /// # Errors
    /// If the eBPF object lacks a map.
    pub fn new(
        ebpf: &mut Ebpf,
        btf: &Btf,
        links: UprobeLinks,
        programs: LoadedPrograms,
    ) -> Result<Self, AttachError> {
        let iterator = VmaIterator::load(ebpf, btf);
        Ok(Self {
            attacher: Attacher::new(ebpf, links, programs)?,
            discovery: Discovery::new(iterator, SWEEP),
            queue: Queue::default(),
            files: HashMap::new(),
            unused: VecDeque::new(),
            others: BoundedMap::new(MAX_OTHERS),
            retries: BoundedMap::new(MAX_OTHERS),
            skipped: Skipped::default(),
            logged: HashMap::new(),
            checked: None,
            failed: None,
            held_up: None,
            changed: true,
        })
    }

    /// Takes in the changes on the host, inspects one file, and detaches one probe: usually a few
    /// milliseconds, up to a few seconds for a large program or many probes. Returns whether there is more to
    /// do at once.
    pub fn turn(&mut self, ebpf: &mut Ebpf) -> bool {
        let now = Instant::now();
        // Each file in the queue is open.
        let room = (descriptors::limit() / 8).min(MAX_QUEUED).saturating_sub(self.queue.len());
        for news in self.discovery.poll(now, room) {
            self.take_in(news, now);
        }
        while self.unused.front().is_some_and(|(since, _)| now.saturating_duration_since(*since) >= KEPT) {
            self.detach_unused();
        }
        self.check_files(now);
        self.retry(now);
        if self.is_held_up(now) {
            return false;
        }
        if let Some(found) = self.queue.pop() {
            self.inspect(ebpf, found, now);
        }
        self.attacher.detach_one();
        !self.queue.is_empty() || self.attacher.is_detaching()
    }

    /// Whether no probe must be placed or removed, because the kernel would wait for a process that does not
    /// answer, and this thread with it.
    fn is_held_up(&mut self, now: Instant) -> bool {
        let is_stuck = self.discovery.is_stuck();
        if is_stuck && self.held_up.is_none_or(|logged| now.saturating_duration_since(logged) >= LOG_EVERY) {
            self.held_up = Some(now);
            tracing::warn!(
                "a process does not let its mappings be read, as if it waited for a file system that is gone: until it \
                 does, no TLS library is probed that is not yet, because the kernel would wait for it (ps hangs, too; \
                 a process in state D, and its wait channel in /proc/PID/task/*/stack, show which)"
            );
        }
        is_stuck
    }

    /// How many files await their inspection.
    #[must_use]
    pub const fn queued(&self) -> usize {
        self.queue.len()
    }

    fn take_in(&mut self, news: DiscoveryEvent, now: Instant) {
        match news {
            DiscoveryEvent::Found(found) => {
                if self.others.contains(&found.id) {
                    return;
                }
                if let Some(file) = self.files.get_mut(&found.id) {
                    file.unused = None;
                    file.shown.clone_from(&found.shown);
                    self.changed = true;
                } else if let Err(found) = self.queue.push(found.owner, found) {
                    self.skip(found.id, &found.shown, Reason::QueueFull, now);
                }
            }
            DiscoveryEvent::Rewritten(id) => {
                self.detach(id);
                self.others.remove(&id);
                self.retries.remove(&id);
            }
            DiscoveryEvent::Unused(id) => {
                self.retries.remove(&id);
                let Some(file) = self.files.get_mut(&id) else { return };
                if file.handle.is_deleted() {
                    return self.detach(id);
                }
                file.unused = Some(now);
                self.unused.push_back((now, id));
                self.changed = true;
            }
            DiscoveryEvent::Unanswered(id, shown) => self.skip(id, &shown, Reason::Timeout, now),
        }
    }

    /// Takes turns until every library that was in use at the start is probed, or the deadline has passed.
    pub fn settle(&mut self, ebpf: &mut Ebpf, until: Instant) {
        while (!self.discovery.is_settled() || !self.queue.is_empty()) && Instant::now() < until {
            self.turn(ebpf);
            // It may be so for long.
            if self.discovery.is_settled() && self.discovery.is_stuck() {
                break;
            }
        }
    }

    /// Detaches the file that has been unused for longest, unless it is used again. Returns whether there was
    /// an entry.
    fn detach_unused(&mut self) -> bool {
        let Some((since, id)) = self.unused.pop_front() else { return false };
        if self.files.get(&id).is_some_and(|file| file.unused == Some(since)) {
            self.detach(id);
        }
        true
    }

    /// The same among the files whose budget would make room for `more` of this owner.
    fn detach_unused_for(&mut self, owner: u32, more: usize) {
        let budget = self.attacher.budget();
        let may_be_detached = |(since, id): &(Instant, FileId)| {
            let file = self.files.get(id).filter(|file| file.unused == Some(*since));
            file.and_then(|file| file.owner).is_some_and(|other| budget.would_help(other, owner, more))
        };
        if let Some(at) = self.unused.iter().position(may_be_detached)
            && let Some((_, id)) = self.unused.remove(at)
        {
            self.detach(id);
        }
    }

    /// How many descriptors would be freed if every file were detached that may be.
    fn reclaimable(&self, is_used: bool) -> usize {
        let may_be_detached = |id: &FileId, file: &File| {
            file.unused.is_some() || (is_used && self.discovery.users(*id).next().is_none())
        };
        let files = self.files.iter().filter(|(id, file)| may_be_detached(id, file));
        let descriptors =
            |file: &File| 1 + file.probed.as_ref().ok().and_then(Option::as_ref).map_or(0, Probed::len);
        self.attacher.detaching() + files.map(|(_, file)| descriptors(file)).sum::<usize>()
    }

    /// Detaches the file that has been unused for longest, or else one that merely has a standard path, which
    /// is probed again when there is room.
    fn detach_any(&mut self, now: Instant) -> bool {
        if self.detach_unused() {
            return true;
        }
        let idle = |id: &FileId| self.discovery.users(*id).next().is_none();
        let standing = self.files.iter().find(|(id, file)| matches!(file.probed, Ok(Some(_))) && idle(id));
        let Some((id, shown)) = standing.map(|(id, file)| (*id, file.shown.clone())) else { return false };
        self.detach(id);
        self.skip(id, &shown, Reason::Descriptors, now);
        true
    }

    fn detach(&mut self, id: FileId) {
        let Some(file) = self.files.remove(&id) else { return };
        file.owner.inspect(|owner| self.attacher.budget_mut().remove(*owner));
        tracing::info!(path = %file.shown.display(), "TLS library detached");
        if let Ok(Some(probed)) = file.probed {
            self.attacher.detach(probed);
        }
        self.changed = true;
    }

    /// Counts a file that is not inspected or not probed, logs it now and then, and schedules a retry.
    fn skip(&mut self, id: FileId, shown: &Path, reason: Reason, now: Instant) {
        self.skipped.count(reason);
        self.changed = true;
        let is_due =
            self.logged.get(&reason).is_none_or(|logged| now.saturating_duration_since(*logged) >= LOG_EVERY);
        if is_due && reason != Reason::Unreadable {
            self.logged.insert(reason, now);
            tracing::warn!(
                path = %shown.display(),
                "a file that may hold a TLS library is not probed, so its handshakes are seen on the wire alone: {} \
                 (logged once an hour; handshake_tls_files_skipped_total counts)",
                reason.text()
            );
        }
        let times = self.retries.get(&id).map_or(0, |retry| retry.times) + 1;
        let pause = match reason {
            // An installation may be in progress. A file that never stops changing is given up.
            Reason::Changed => Some(Duration::from_secs(1 << times)).filter(|_| times <= 5),
            Reason::QueueFull => Some(SHORT_PAUSE),
            Reason::ProbeLimit if self.attacher.is_detaching() => Some(SHORT_PAUSE),
            Reason::ProbeLimit => Some(LONG_PAUSE * times.min(MAX_PAUSES)),
            Reason::Timeout | Reason::Descriptors | Reason::TableFull => Some(LONG_PAUSE),
            Reason::TooLarge | Reason::Unreadable => None,
        };
        self.retries.insert(id, Retry { times, until: pause.map(|pause| now + pause) });
    }

    /// Detaches files that were written to, to inspect them again, and those that no process can use any
    /// more.
    fn check_files(&mut self, now: Instant) {
        if self.checked.is_some_and(|checked| now.saturating_duration_since(checked) < CHECK_EVERY) {
            return;
        }
        self.checked = Some(now);
        let is_over = |file: &File| file.unused.is_some() && file.handle.is_deleted();
        let changed: Vec<_> = self
            .files
            .iter()
            .filter(|(_, file)| file.handle.is_changed() || is_over(file))
            .map(|(id, _)| *id)
            .collect();
        for id in changed {
            self.detach(id);
            self.discovery.forget(id);
        }
    }

    /// Has the files reported again whose retry is due.
    fn retry(&mut self, now: Instant) {
        for (id, retry) in self.retries.iter_mut() {
            if retry.until.is_some_and(|until| until <= now) {
                retry.until = None;
                self.discovery.forget(*id);
            }
        }
    }

    /// Every file of a library that is in use or has a standard path.
    fn in_use(&self) -> impl Iterator<Item = (&FileId, &File)> {
        self.files.iter().filter(|(_, file)| !file.inspection.is_companion && file.unused.is_none())
    }

    /// The same in the order of their paths, each with the number of its processes.
    #[must_use]
    pub fn files(&self) -> Vec<(&File, usize)> {
        let mut files: Vec<_> =
            self.in_use().map(|(id, file)| (file, self.discovery.users(*id).count())).collect();
        files.sort_by(|(a, _), (b, _)| a.shown.cmp(&b.shown));
        files
    }

    /// How many files of each library there are, by whether they are covered, and what was skipped. Returns
    /// `None` if nothing has changed since the last call.
    pub fn take_counts(&mut self) -> Option<(LibraryCounts, Skipped)> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        let mut census = BTreeMap::new();
        for library in Library::ALL {
            for covered in [true, false] {
                census.insert((*library, covered), 0);
            }
        }
        for (_, file) in self.in_use() {
            *census.entry((file.inspection.library, file.is_covered())).or_default() += 1;
        }
        Some((census, self.skipped))
    }

    /// What the search lacks on this host.
    #[must_use]
    pub fn shortfalls(&self) -> &[String] {
        self.discovery.shortfalls()
    }

    /// Completes the libraries of a directory by what only their companion shows, if there is exactly one.
    fn pair(&mut self, folder: Option<&Path>) {
        let here = |file: &&mut File| file.shown.parent() == folder;
        let (mut companions, mut libraries) = (Vec::new(), Vec::new());
        for file in self.files.values_mut().filter(here) {
            if file.inspection.is_companion { companions.push(&*file) } else { libraries.push(file) }
        }
        let [companion] = companions[..] else { return };
        for library in libraries {
            library.inspection.complete_with(&companion.inspection);
            if let Ok(Some(probed)) = &library.probed
                && let Err(error) = self.attacher.update(probed, &library.inspection)
            {
                tracing::debug!(path = %library.shown.display(), %error, "cannot update its target");
            }
        }
    }

    fn inspect(&mut self, ebpf: &mut Ebpf, found: Found, now: Instant) {
        let Found { id, file, owner, shown, .. } = found;
        // It may have been queued twice.
        if self.files.contains_key(&id) || self.others.contains(&id) {
            return;
        }
        let inspected = self.discovery.reader().run(id.dev, move || {
            // Taken first, so that changes during the inspection are noticed.
            let handle = Handle::new(file).map_err(|_| InspectError::Unreadable)?;
            inspect_file(handle.file()).map(|inspection| inspection.map(|inspection| (handle, inspection)))
        });
        let inspected = inspected.map_err(Reason::from).and_then(|found| found.map_err(Reason::from));
        let (handle, inspection) = match inspected {
            Ok(Some(inspected)) => inspected,
            Ok(None) => {
                self.others.insert(id, ());
                self.retries.remove(&id);
                return;
            }
            Err(reason) => {
                tracing::debug!(path = %shown.display(), reason = reason.text(), "not inspected");
                return self.skip(id, &shown, reason, now);
            }
        };
        let owner = Some(owner).filter(|_| !self.discovery.is_standing(id));
        if let Err(reason) = self.make_room(id, owner, self.attacher.links(&inspection), now) {
            return self.skip(id, &shown, reason, now);
        }
        // Making room can take seconds.
        if handle.is_changed() {
            return self.skip(id, &shown, Reason::Changed, now);
        }
        let probed = self.attacher.attach(ebpf, &discover::path_of(handle.file()), owner, &inspection);
        let (path, library) = (shown.display(), inspection.library);
        match &probed {
            Ok(_) => tracing::info!(%path, %library, points = inspection.points.len(), "TLS library"),
            // Any user can create any number of files that cannot be probed.
            Err(error)
                if self
                    .failed
                    .is_none_or(|logged| now.saturating_duration_since(logged) >= FAILURE_EVERY) =>
            {
                self.failed = Some(now);
                tracing::warn!(%path, %library, %error, "a TLS library is not probed");
            }
            Err(error) => tracing::debug!(%path, %library, %error, "a TLS library is not probed"),
        }
        let folder = shown.parent().map(Path::to_owned);
        self.retries.remove(&id);
        owner.inspect(|owner| self.attacher.budget_mut().add(*owner));
        self.files.insert(id, File { shown, inspection, probed, handle, owner, unused: None });
        self.pair(folder.as_deref());
        self.changed = true;
    }

    /// Makes room for one more file with this number of links. Unused files are detached for it; if it is in
    /// use, so are files that merely have a standard path.
    fn make_room(
        &mut self,
        id: FileId,
        owner: Option<u32>,
        links: usize,
        now: Instant,
    ) -> Result<(), Reason> {
        if let Some(owner) = owner.filter(|owner| !self.attacher.budget().fits(*owner, 1 + links)) {
            // Detaching takes time, for which other files do not wait; what is being detached already may
            // suffice.
            if !self.attacher.is_detaching() {
                self.detach_unused_for(owner, 1 + links);
            }
            return Err(Reason::ProbeLimit);
        }
        let is_used = self.discovery.users(id).next().is_some();
        // One more for the handle of the file.
        let needed = 1 + links + PROGRAMS;
        if descriptors::spare() + self.reclaimable(is_used) < needed {
            return Err(Reason::Descriptors);
        }
        loop {
            self.discovery.reader().close_discarded();
            let reason = if self.files.len() >= MAX_FILES || self.attacher.is_full() {
                Reason::TableFull
            } else if descriptors::spare() < needed {
                Reason::Descriptors
            } else {
                return Ok(());
            };
            // What is being detached already comes first.
            let is_detached = self.attacher.detach_one()
                || if is_used { self.detach_any(now) } else { self.detach_unused() };
            if !is_detached {
                return Err(reason);
            }
        }
    }
}

impl Drop for Libraries {
    fn drop(&mut self) {
        let files = self.files.drain().filter_map(|(_, file)| file.probed.ok().flatten());
        self.attacher.detach_all(files);
    }
}
