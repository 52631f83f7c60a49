//! The TLS libraries of the host: found, inspected, probed, and let go when nobody uses them any more.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use aya::{Btf, Ebpf, programs::Iter};
use handshake_common::{Library, tls::discover::PROGRAM};

use super::{
    attach::{Attacher, Probed},
    handle::Handle,
    inspect::{Inspection, Refusal, inspect_file},
    queue::{MAX_QUEUED, Queue},
    skipped::{Reason, Skipped},
};
use crate::{
    descriptors,
    kernel::probe::LoadedPrograms,
    tls::discover::{self, Discovery, FileId, Found, KernelIterator, News, SWEEP},
};

/// Files that are kept account of, at the most; what comes beyond is not probed.
const MAX_FILES: usize = 4096;

/// Files without a TLS library that are remembered, so that a program that comes and goes is read once.
const MAX_OTHERS: usize = 16_384;

/// How long a file that nobody uses keeps its probes: what runs every few minutes should be seen from its first handshake
/// on, and letting go of a probe costs the kernel more than a tenth of a second of waiting.
const KEPT: Duration = Duration::from_mins(10);

/// How often it is looked whether probed files are still what they were.
const LOOK_AGAIN: Duration = SWEEP;

/// How often each reason for not probing a file is told.
const TOLD_EVERY: Duration = Duration::from_hours(1);
/// How often a failure to attach is told.
const FAILURE_EVERY: Duration = Duration::from_mins(1);
/// Until a file is tried again for which there was no room, or whose file system did not answer.
const LONG_PAUSE: Duration = Duration::from_mins(1);
/// Until its owner's other files have been looked into, or let go.
const SHORT_PAUSE: Duration = Duration::from_secs(5);
/// Of how many times [`LONG_PAUSE`] the pause is at the most for which there is no room again and again.
const MAX_PAUSES: u32 = 10;
/// Descriptors of programs that are loaded with the first file that needs them.
const PROGRAMS: usize = 6;

/// One file of a library.
#[derive(Debug)]
pub struct File {
    /// As a process sees it.
    pub shown: PathBuf,
    /// What is in it.
    pub inspection: Inspection,
    /// Its probes, or why it has none.
    probed: Result<Option<Probed>, String>,
    handle: Handle,
    /// Whose budget it takes; `None` in the system's own places.
    owner: Option<u32>,
    /// Since when nobody uses it.
    unused: Option<Instant>,
}

impl File {
    /// Whether its handshakes are seen.
    #[must_use]
    pub fn is_covered(&self) -> bool {
        self.inspection.covered && matches!(self.probed, Ok(Some(_)))
    }

    /// Why its handshakes are not seen, or what of them is not; empty when all is well.
    #[must_use]
    pub fn gaps(&self) -> Vec<String> {
        let gaps = self.inspection.gaps.iter().map(|gap| format!("{}: {}", gap.missing, gap.lost));
        self.probed.as_ref().err().cloned().into_iter().chain(gaps).collect()
    }
}

/// Files of each library, by whether they are covered.
pub type Census = BTreeMap<(Library, bool), i64>;

/// A file that is to be tried again.
#[derive(Debug)]
struct PutOff {
    times: u32,
    /// `None`: not before it is found anew.
    until: Option<Instant>,
}

/// Every TLS library that is in use.
pub struct Libraries {
    discovery: Discovery,
    attacher: Attacher,
    /// Found and not looked into yet.
    queue: Queue,
    /// Companions among them: parts that other files use, such as libcrypto.
    files: HashMap<FileId, File>,
    /// Those that nobody uses, in the order of time; one that is used again stays here until its time has come.
    unused: VecDeque<(Instant, FileId)>,
    /// Files in which there is no TLS library.
    others: HashSet<FileId>,
    put_off: HashMap<FileId, PutOff>,
    skipped: Skipped,
    /// When each reason was last told.
    told: HashMap<Reason, Instant>,
    /// When it was last looked whether the probed files are still what they were.
    looked: Option<Instant>,
    /// When a failure to attach was last told.
    failed: Option<Instant>,
    changed: bool,
}

impl Libraries {
    /// Begins to look for them; everything else is done by [`Libraries::turn`]. The programs that are loaded for them are
    /// added to `programs`.
    ///
    /// # Errors
    /// When the eBPF object lacks what it needs, in words.
    pub fn new(ebpf: &mut Ebpf, btf: &Btf, programs: LoadedPrograms) -> Result<Self, String> {
        let iterator = mappings(ebpf, btf);
        Ok(Self {
            attacher: Attacher::new(ebpf, programs)?,
            discovery: Discovery::new(iterator, SWEEP),
            queue: Queue::default(),
            files: HashMap::new(),
            unused: VecDeque::new(),
            others: HashSet::new(),
            put_off: HashMap::new(),
            skipped: Skipped::default(),
            told: HashMap::new(),
            looked: None,
            failed: None,
            changed: true,
        })
    }

    /// Takes in what has changed on the host, looks into one file, and lets go of one probe: as a rule some milliseconds, up to
    /// some seconds with a large program or many probes. True when there is more to do at once.
    pub fn turn(&mut self, ebpf: &mut Ebpf) -> bool {
        let now = Instant::now();
        // Each that waits is open.
        let room = (descriptors::limit() / 8).min(MAX_QUEUED).saturating_sub(self.queue.len());
        for news in self.discovery.poll(now, room) {
            self.take_in(news, now);
        }
        while self.unused.front().is_some_and(|(since, _)| now.saturating_duration_since(*since) >= KEPT) {
            self.let_go_of_unused();
        }
        self.look_again(now);
        self.try_again(now);
        if let Some(found) = self.queue.pop() {
            self.look_into(ebpf, found, now);
        }
        self.attacher.go_on();
        !self.queue.is_empty() || self.attacher.is_letting_go()
    }

    fn take_in(&mut self, news: News, now: Instant) {
        match news {
            News::Found(found) => {
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
            News::Rewritten(id) => {
                self.let_go(id);
                self.others.remove(&id);
                self.put_off.remove(&id);
            }
            News::Unused(id) => {
                self.put_off.remove(&id);
                let Some(file) = self.files.get_mut(&id) else { return };
                if file.handle.is_deleted() {
                    return self.let_go(id);
                }
                file.unused = Some(now);
                self.unused.push_back((now, id));
                self.changed = true;
            }
            News::Unanswered(id, shown) => self.skip(id, &shown, Reason::Timeout, now),
        }
    }

    /// Does turns until everything that was there at the start is probed, or it takes too long.
    pub fn settle(&mut self, ebpf: &mut Ebpf, until: Instant) {
        while (!self.discovery.is_settled() || !self.queue.is_empty()) && Instant::now() < until {
            self.turn(ebpf);
        }
    }

    /// Lets go of the file that nobody has used for longest, if it still is so; false when there is none.
    fn let_go_of_unused(&mut self) -> bool {
        let Some((since, id)) = self.unused.pop_front() else { return false };
        if self.files.get(&id).is_some_and(|file| file.unused == Some(since)) {
            self.let_go(id);
        }
        true
    }

    /// The same among those whose going makes room for so much of this owner.
    fn let_go_of_unused_for(&mut self, owner: u32, more: usize) {
        let budget = self.attacher.budget();
        let gives_way = |(since, id): &(Instant, FileId)| {
            let file = self.files.get(id).filter(|file| file.unused == Some(*since));
            file.and_then(|file| file.owner).is_some_and(|other| budget.would_help(other, owner, more))
        };
        if let Some(at) = self.unused.iter().position(gives_way)
            && let Some((_, id)) = self.unused.remove(at)
        {
            self.let_go(id);
        }
    }

    /// How many descriptors there would be if everything gave way that may.
    fn reclaimable(&self, is_used: bool) -> usize {
        let gives_way = |id: &FileId, file: &File| {
            file.unused.is_some() || (is_used && self.discovery.users(*id).next().is_none())
        };
        let files = self.files.iter().filter(|(id, file)| gives_way(id, file));
        let descriptors =
            |file: &File| 1 + file.probed.as_ref().ok().and_then(Option::as_ref).map_or(0, Probed::len);
        self.attacher.going() + files.map(|(_, file)| descriptors(file)).sum::<usize>()
    }

    /// Lets go of the file that nobody has used for longest; where there is none, of one that only stands in a standard place. It
    /// is probed again when there is room.
    fn let_go_of_one(&mut self, now: Instant) -> bool {
        if self.let_go_of_unused() {
            return true;
        }
        let idle = |id: &FileId| self.discovery.users(*id).next().is_none();
        let standing = self.files.iter().find(|(id, file)| matches!(file.probed, Ok(Some(_))) && idle(id));
        let Some((id, shown)) = standing.map(|(id, file)| (*id, file.shown.clone())) else { return false };
        self.let_go(id);
        self.skip(id, &shown, Reason::Descriptors, now);
        true
    }

    fn let_go(&mut self, id: FileId) {
        let Some(file) = self.files.remove(&id) else { return };
        file.owner.inspect(|owner| self.attacher.budget_mut().remove(*owner));
        tracing::info!(path = %file.shown.display(), "a TLS library is let go");
        if let Ok(Some(probed)) = file.probed {
            self.attacher.detach(probed);
        }
        self.changed = true;
    }

    /// Counts a file that is not looked into or not probed, tells of it now and then, and puts it off.
    fn skip(&mut self, id: FileId, shown: &Path, reason: Reason, now: Instant) {
        self.skipped.count(reason);
        self.changed = true;
        let is_due =
            self.told.get(&reason).is_none_or(|told| now.saturating_duration_since(*told) >= TOLD_EVERY);
        if is_due && reason != Reason::Unreadable {
            self.told.insert(reason, now);
            tracing::warn!(
                path = %shown.display(),
                "a file that may hold a TLS library is not probed, so its handshakes are seen on the wire alone: {} (told \
                 once an hour; handshake_tls_files_skipped_total counts)",
                reason.text()
            );
        }
        if self.put_off.len() >= MAX_OTHERS {
            self.put_off.clear();
        }
        let put_off = self.put_off.entry(id).or_insert(PutOff { times: 0, until: None });
        put_off.times += 1;
        let pause = match reason {
            // It may be an installation that goes on. Who writes for ever is not waited for.
            Reason::Changed => Some(Duration::from_secs(1 << put_off.times)).filter(|_| put_off.times <= 5),
            Reason::QueueFull => Some(SHORT_PAUSE),
            Reason::ProbeLimit if self.attacher.is_letting_go() => Some(SHORT_PAUSE),
            Reason::ProbeLimit => Some(LONG_PAUSE * put_off.times.min(MAX_PAUSES)),
            Reason::Timeout | Reason::Descriptors | Reason::TableFull => Some(LONG_PAUSE),
            Reason::TooLarge | Reason::Unreadable => None,
        };
        put_off.until = pause.map(|pause| now + pause);
    }

    /// Lets go of files that were written to, to look into them once more, and of those that nobody can use any more.
    fn look_again(&mut self, now: Instant) {
        if self.looked.is_some_and(|looked| now.saturating_duration_since(looked) < LOOK_AGAIN) {
            return;
        }
        self.looked = Some(now);
        let is_over = |file: &File| file.unused.is_some() && file.handle.is_deleted();
        let changed: Vec<_> = self
            .files
            .iter()
            .filter(|(_, file)| file.handle.is_changed() || is_over(file))
            .map(|(id, _)| *id)
            .collect();
        for id in changed {
            self.let_go(id);
            self.discovery.forget(id);
        }
    }

    /// Has those files found once more whose time has come.
    fn try_again(&mut self, now: Instant) {
        for (id, put_off) in &mut self.put_off {
            if put_off.until.is_some_and(|until| until <= now) {
                put_off.until = None;
                self.discovery.forget(*id);
            }
        }
    }

    /// Every file of a library that is in use or stands in a standard place.
    fn in_use(&self) -> impl Iterator<Item = (&FileId, &File)> {
        self.files.iter().filter(|(_, file)| !file.inspection.is_companion && file.unused.is_none())
    }

    /// The same in the order of their paths, with the number of their processes.
    #[must_use]
    pub fn files(&self) -> Vec<(&File, usize)> {
        let mut files: Vec<_> =
            self.in_use().map(|(id, file)| (file, self.discovery.users(*id).count())).collect();
        files.sort_by(|(a, _), (b, _)| a.shown.cmp(&b.shown));
        files
    }

    /// How many files of each library there are, by whether they are covered, and what was skipped; `None` when nothing
    /// has changed since it was asked last.
    pub fn census(&mut self) -> Option<(Census, Skipped)> {
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

    /// What this host does not offer to the search.
    #[must_use]
    pub fn shortfalls(&self) -> &[String] {
        self.discovery.shortfalls()
    }

    /// Tells the library of a folder what only its other file knows, unless there are several that it could be.
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
                tracing::debug!(path = %library.shown.display(), error, "its target cannot be set");
            }
        }
    }

    fn look_into(&mut self, ebpf: &mut Ebpf, found: Found, now: Instant) {
        let Found { id, file, owner, shown, .. } = found;
        // It may have gone into the queue twice.
        if self.files.contains_key(&id) || self.others.contains(&id) {
            return;
        }
        let inspected = self.discovery.reader().run(id.dev, move || {
            // What changes from now on is seen.
            let handle = Handle::new(file).map_err(|_| Refusal::Unreadable)?;
            inspect_file(handle.file()).map(|inspection| inspection.map(|inspection| (handle, inspection)))
        });
        let (handle, inspection) = match inspected.flatten() {
            Ok(Some(inspected)) => inspected,
            Ok(None) => {
                if self.others.len() >= MAX_OTHERS {
                    self.others.clear();
                }
                self.others.insert(id);
                self.put_off.remove(&id);
                return;
            }
            Err(refusal) => {
                tracing::debug!(path = %shown.display(), %refusal, "is not looked into");
                return self.skip(id, &shown, refusal.into(), now);
            }
        };
        let owner = Some(owner).filter(|_| !self.discovery.is_standing(id));
        if let Err(reason) = self.make_room(id, owner, inspection.points.len(), now) {
            return self.skip(id, &shown, reason, now);
        }
        let probed = self.attacher.attach(ebpf, &discover::path_of(handle.file()), owner, &inspection);
        let (path, library) = (shown.display(), inspection.library);
        match &probed {
            Ok(_) => tracing::info!(%path, %library, points = inspection.points.len(), "TLS library"),
            // Anybody can make files that cannot be probed, without end.
            Err(error)
                if self.failed.is_none_or(|told| now.saturating_duration_since(told) >= FAILURE_EVERY) =>
            {
                self.failed = Some(now);
                tracing::warn!(%path, %library, error, "a TLS library is not probed");
            }
            Err(error) => tracing::debug!(%path, %library, error, "a TLS library is not probed"),
        }
        let folder = shown.parent().map(Path::to_owned);
        self.put_off.remove(&id);
        owner.inspect(|owner| self.attacher.budget_mut().add(*owner));
        self.files.insert(id, File { shown, inspection, probed, handle, owner, unused: None });
        self.pair(folder.as_deref());
        self.changed = true;
    }

    /// Makes room for one more file with so many probes. Files that nobody uses give way; to one in use, also those that only
    /// stand in a standard place.
    fn make_room(
        &mut self,
        id: FileId,
        owner: Option<u32>,
        points: usize,
        now: Instant,
    ) -> Result<(), Reason> {
        if let Some(owner) = owner.filter(|owner| !self.attacher.budget().fits(*owner, 1 + points)) {
            // That takes its time, for which others do not wait; what is let go of already may do.
            if !self.attacher.is_letting_go() {
                self.let_go_of_unused_for(owner, 1 + points);
            }
            return Err(Reason::ProbeLimit);
        }
        let is_used = self.discovery.users(id).next().is_some();
        // One more to see what becomes of it.
        let needed = 1 + points + PROGRAMS;
        if descriptors::spare() + self.reclaimable(is_used) < needed {
            return Err(Reason::Descriptors);
        }
        loop {
            let reason = if self.files.len() >= MAX_FILES || self.attacher.is_full() {
                Reason::TableFull
            } else if descriptors::spare() < needed {
                Reason::Descriptors
            } else {
                return Ok(());
            };
            // What is let go of already comes first.
            let gave_way = self.attacher.go_on()
                || if is_used { self.let_go_of_one(now) } else { self.let_go_of_unused() };
            if !gave_way {
                return Err(reason);
            }
        }
    }
}

/// Loads the iterator over the mappings of this host.
///
/// # Errors
/// When this kernel cannot run it, with the reason.
pub(crate) fn mappings(ebpf: &mut Ebpf, btf: &Btf) -> Result<KernelIterator, String> {
    match ebpf.program_mut(PROGRAM).map(<&mut Iter>::try_from) {
        Some(Ok(program)) => KernelIterator::load(program, btf),
        _ => Err("the eBPF object lacks the program".to_owned()),
    }
}
