//! Finds every file on this host that may hold a TLS library, now and later, each once by its inode, and
//! reports when it is no longer used. Whether it does hold one is decided by
//! [`crate::tls::library::inspect`].
//!
//! There are three sources: the [`standard_paths`], a [`source::Sweep`] over the mappings of all processes,
//! and between sweeps the [`watch`] for new mappings, which leads only to processes that mapped an unknown
//! file.

mod elsewhere;
mod file;
pub(crate) mod ld_cache;
mod ledger;
pub(crate) mod maps;
mod names;
mod open;
mod source;
mod standard_paths;
mod vma_iterator;
pub(crate) mod watch;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fs::File,
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use self::{
    elsewhere::Namespaces,
    ledger::Ledger,
    open::Opened,
    source::{MappingSource, Sweep},
    standard_paths::StandardPaths,
    watch::{Alias, NewMapping, Watch},
};
pub use self::{
    file::{FileId, Found, Mapped},
    vma_iterator::{IteratorError, VmaIterator},
};
use crate::tls::reader::{ReadError, Reader, UntrustedFile};

/// The interval of sweeps if new mappings are watched. They find what the watch cannot show, above all that
/// processes have ended.
pub const SWEEP: Duration = Duration::from_secs(30);
/// The interval of sweeps if new mappings cannot be watched.
const SWEEP_UNWATCHED: Duration = Duration::from_secs(2);
/// The shortest interval of sweeps, after events were lost.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);

/// How long one [`Discovery::poll`] works; the last portion may exceed it.
const SLICE: Duration = Duration::from_millis(5);
/// New mappings that wait to be examined. The next sweep finds what does not fit.
const MAX_WAITING: usize = 4096;
/// Files that wait for the next look for namespaces. The next run of their programs leads to those that do
/// not fit.
const MAX_SOUGHT: usize = 64;
/// Stands for the file systems of other mount namespaces, for the reader.
const ELSEWHERE: u64 = u64::MAX;
/// Stand for all processes and for some, for the reader of processes.
const ALL: u64 = u64::MAX;
const SOME: u64 = u64::MAX - 1;
/// Processes that are asked for their mappings at once: a thread that waits for another loses milliseconds on
/// a busy host.
const AT_ONCE: usize = 64;

/// A path that resolves to exactly this file while it is open, also for uprobes.
#[must_use]
pub fn path_of(file: &File) -> PathBuf {
    open::again(file)
}

/// A change in the set of files.
#[derive(Debug)]
pub enum DiscoveryEvent {
    /// A new file.
    Found(Found),
    /// No process has it mapped any more, and it has no standard path. It is reported as found again once
    /// that changes.
    Unused(FileId),
    /// It was rewritten in place, and is reported as found again.
    Rewritten(FileId),
    /// It would be reported as found, but its file system does not answer.
    Unanswered(FileId, PathBuf),
}

/// The search.
#[derive(Debug)]
pub struct Discovery {
    source: Arc<MappingSource>,
    watch: Option<Watch>,
    shortfalls: Vec<String>,
    ledger: Ledger,
    standard_paths: StandardPaths,
    /// Files by the watch's names for them. Cleared with each sweep, since a name may be reused for another
    /// file.
    aliases: HashMap<Alias, FileId>,
    waiting: VecDeque<NewMapping>,
    namespaces: Namespaces,
    /// Mappings of ended processes whose files were in none of the namespaces at that time: theirs may be
    /// newer than the last look for namespaces.
    sought: VecDeque<(Instant, NewMapping)>,
    /// Files that are at their paths in none of the namespaces. Cleared with each sweep.
    lost: HashSet<Alias>,
    reader: Reader,
    processes: Reader,
    /// The last sweep has not shown all processes, because one of them did not answer.
    one_by_one: bool,
    /// The most files to report in this poll.
    room: usize,
    sweep: Option<Sweep>,
    every: Duration,
    began: Option<Instant>,
    /// Something was lost or did not fit, so the next sweep is to come soon.
    again: bool,
    settled: bool,
    missed: usize,
    overlooked: usize,
}

impl Discovery {
    /// Starts to watch for new mappings; everything else is done by [`Discovery::poll`]. `every` is the
    /// interval of sweeps ([`SWEEP`]).
    #[must_use]
    pub fn new(iterator: Result<VmaIterator, IteratorError>, every: Duration) -> Self {
        let mut shortfalls = Vec::new();
        let source = iterator.map_or_else(
            |error| {
                shortfalls.push(format!(
                    "mapped files are told apart by /proc/PID/maps, which from Linux 6.8 on counts a library once for \
                     every overlay file system: {error}"
                ));
                MappingSource::Maps
            },
            MappingSource::Iterator,
        );
        // Started before the first sweep, so that nothing is missed between the two.
        let watch = Watch::start().inspect_err(|error| {
            shortfalls.push(format!(
                "libraries that come into use are found only every {} s, not at once: the kernel does not tell of new \
                 mappings ({error})",
                SWEEP_UNWATCHED.as_secs()
            ));
        });
        let every = if watch.is_ok() { every } else { every.min(SWEEP_UNWATCHED) };
        Self {
            source: Arc::new(source),
            watch: watch.ok(),
            shortfalls,
            ledger: Ledger::default(),
            standard_paths: StandardPaths::default(),
            aliases: HashMap::new(),
            waiting: VecDeque::new(),
            namespaces: Namespaces::default(),
            sought: VecDeque::new(),
            lost: HashSet::new(),
            reader: Reader::of_files(),
            processes: Reader::of_processes(),
            one_by_one: false,
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

    /// The changes since the last call, with at most `room` files found, each of which is open. It works for
    /// a few milliseconds, or longer if a file system is slow to answer.
    pub fn poll(&mut self, now: Instant, room: usize) -> Vec<DiscoveryEvent> {
        self.poll_until(Instant::now() + SLICE, now, room)
    }

    fn poll_until(&mut self, end: Instant, now: Instant, room: usize) -> Vec<DiscoveryEvent> {
        let mut events = Vec::new();
        self.room = room;
        self.reader.close_discarded();
        self.listen();
        self.follow(end, &mut events);
        self.seek(end, &mut events);
        let due = self.began.is_none_or(|began| {
            now.saturating_duration_since(began) >= if self.again { SWEEP_PAUSE } else { self.every }
        });
        // Without room, it would find nothing.
        if self.sweep.is_none() && room > 0 && (due || (self.again && !self.settled)) {
            self.begin_sweep(now, &mut events);
        }
        // At least one portion in each poll: new mappings could use up every slice.
        while self.sweep.is_some() {
            self.advance_sweep(&mut events);
            if Instant::now() >= end {
                break;
            }
        }
        events
    }

    /// Has a file that was reported as found reported again, if it is still in use.
    pub fn forget(&mut self, id: FileId) {
        self.ledger.remove(id);
        self.standard_paths.forget(id);
        self.aliases.retain(|_, known| *known != id);
        self.again = true;
    }

    /// Whether a file has a standard path, which only root can give it.
    #[must_use]
    pub fn is_standing(&self, id: FileId) -> bool {
        self.standard_paths.has(id)
    }

    /// The reader for files that may never answer.
    pub const fn reader(&mut self) -> &mut Reader {
        &mut self.reader
    }

    /// Whether a process does not answer when it is asked for its mappings. The kernel would wait for it to
    /// place or remove a probe in a file that it has mapped (`register_for_each_vma`), and which those are is
    /// not known.
    pub fn is_stuck(&mut self) -> bool {
        self.processes.is_stuck()
    }

    /// Whether every file that was in use at the start has been reported.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.settled
    }

    /// The processes that have mapped a file that was reported as found. One that has ended is listed for up
    /// to two more sweeps.
    pub fn users(&self, id: FileId) -> impl Iterator<Item = u32> {
        self.ledger.users(id)
    }

    /// What the search lacks on this host, and the consequences, for display.
    #[must_use]
    pub fn shortfalls(&self) -> &[String] {
        &self.shortfalls
    }

    /// The number of mappings in the last sweep whose files could not be opened, mostly because a capability
    /// is missing, or were over a limit. Processes of other users require `CAP_SYS_PTRACE`,
    /// `CAP_DAC_READ_SEARCH` and `CAP_CHECKPOINT_RESTORE`.
    #[must_use]
    pub fn overlooked(&self) -> usize {
        self.overlooked
    }

    fn listen(&mut self) {
        let Some(watch) = &mut self.watch else { return };
        let own = std::process::id();
        let (ledger, aliases, waiting) = (&mut self.ledger, &self.aliases, &mut self.waiting);
        let mut overflow = false;
        let lost = watch.listen(|mapping| {
            // This process maps files to identify them.
            if mapping.pid == own || is_known(aliases, ledger, &mapping) {
                return;
            }
            if waiting.len() < MAX_WAITING {
                waiting.push_back(mapping);
            } else {
                overflow = true;
            }
        });
        self.again |= lost || overflow;
    }

    /// Examines the processes that have mapped an unknown file.
    fn follow(&mut self, end: Instant, events: &mut Vec<DiscoveryEvent>) {
        let mut asked: HashMap<u32, Vec<Mapped>> = HashMap::new();
        let mut looked = HashSet::new();
        let mut end = end;
        while Instant::now() < end
            && let Some(mapping) = self.waiting.pop_front()
        {
            if is_known(&self.aliases, &mut self.ledger, &mapping) {
                continue;
            }
            if !asked.contains_key(&mapping.pid) {
                let is_first = asked.is_empty();
                asked = self.mapped_by_each(&self.next_processes(mapping.pid));
                looked.clear();
                // The wait for another thread uses up the slice on a busy host.
                if is_first {
                    end = end.max(Instant::now() + SLICE);
                }
            }
            let mapped = asked.get(&mapping.pid).map_or(&[][..], Vec::as_slice);
            if looked.insert(mapping.pid) {
                for mapped in mapped {
                    self.look(mapped, events);
                }
            }
            let id = mapped.iter().find(|mapped| mapped.range.contains(&mapping.at)).map(|mapped| mapped.id);
            // The process may have ended before or during the look; the next one that maps the same file
            // should not be missed.
            let known = id.filter(|id| self.ledger.knows(*id));
            if let Some(id) = known.or_else(|| self.look_by_path(&mapping, events)) {
                self.aliases.insert(mapping.alias, id);
            }
        }
    }

    /// This process and those that wait to be examined next.
    fn next_processes(&self, first: u32) -> Vec<u32> {
        let mut pids = vec![first];
        for mapping in &self.waiting {
            let is_unknown = !self.aliases.get(&mapping.alias).is_some_and(|id| self.ledger.knows(*id));
            if is_unknown && !pids.contains(&mapping.pid) {
                pids.push(mapping.pid);
            }
            if pids.len() >= AT_ONCE {
                break;
            }
        }
        pids
    }

    fn begin_sweep(&mut self, now: Instant, events: &mut Vec<DiscoveryEvent>) {
        self.began = Some(now);
        (self.again, self.missed) = (false, 0);
        self.ledger.begin_sweep();
        for change in self.standard_paths.look(standard_paths::standard()) {
            let Ok(Opened { file, owner, stat }) = open::regular(&change.path) else { continue };
            let file = self.reader.adopt(change.fingerprint.device(), file);
            let Some(id) = self.source.identify(&file, stat) else { continue };
            if !self.has_room(events) {
                break;
            }
            // The path that its users will show, without symbolic links.
            let shown = open::path_of_open(&file).unwrap_or_else(|_| change.path.clone());
            if self.standard_paths.keep(change, id).is_some() && self.ledger.remove(id) {
                events.push(DiscoveryEvent::Rewritten(id));
            }
            if !self.ledger.knows(id) {
                self.offer(Found { id, file, owner, shown, pid: None }, events);
            }
        }
        match self.source.sweep(self.one_by_one) {
            Ok(sweep) => {
                self.one_by_one = false;
                self.sweep = Some(sweep);
            }
            Err(error) => tracing::warn!(%error, "cannot list the mappings of this host"),
        }
    }

    /// The executable mappings of a process; none if it does not answer.
    fn mapped_by(&mut self, pid: u32) -> Vec<Mapped> {
        let source = Arc::clone(&self.source);
        self.processes.run(pid.into(), move || source.of(pid)).unwrap_or_else(|_| {
            self.one_by_one = true;
            self.missed += 1;
            Vec::new()
        })
    }

    /// The same of several processes.
    fn mapped_by_each(&mut self, pids: &[u32]) -> HashMap<u32, Vec<Mapped>> {
        let (source, some) = (Arc::clone(&self.source), pids.to_vec());
        let each = move || some.into_iter().map(|pid| (pid, source.of(pid))).collect();
        // Whichever it is that does not answer.
        self.processes
            .run(SOME, each)
            .unwrap_or_else(|_| pids.iter().map(|&pid| (pid, self.mapped_by(pid))).collect())
    }

    /// The path of a mapped file.
    fn path_of(&mut self, mapped: &Mapped) -> io::Result<PathBuf> {
        // The process has just been asked for its mappings, and this happens often.
        if !self.processes.is_stuck() {
            return open::path_of(mapped);
        }
        let of_process = mapped.clone();
        let path = self.processes.run(mapped.pid.into(), move || open::path_of(&of_process));
        path.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// The next portion of the current sweep. Returns `None` at the end, and if the sweep fails.
    fn next_portion(&mut self) -> Option<Vec<Mapped>> {
        let mut all = match self.sweep.take()? {
            Sweep::Each(mut pids) => {
                let some: Vec<_> = pids.by_ref().take(AT_ONCE).collect();
                if some.is_empty() {
                    return None;
                }
                self.sweep = Some(Sweep::Each(pids));
                return Some(self.mapped_by_each(&some).into_values().flatten().collect());
            }
            Sweep::All(all) => all,
        };
        match self.processes.run(ALL, move || (vma_iterator::next(&mut all), all)) {
            Ok((Ok(portion), all)) => {
                self.sweep = Some(Sweep::All(all));
                return portion;
            }
            Ok((Err(error), _)) => tracing::warn!(%error, "the pass over the mappings of this host failed"),
            Err(_) => tracing::debug!("a process does not answer"),
        }
        // The rest is for the next sweep.
        (self.one_by_one, self.again) = (true, true);
        None
    }

    /// Examines the next portion of the current sweep.
    fn advance_sweep(&mut self, events: &mut Vec<DiscoveryEvent>) {
        if let Some(portion) = self.next_portion() {
            for mapped in &portion {
                self.look(mapped, events);
            }
            return;
        }
        self.sweep = None;
        if self.one_by_one {
            // What was not shown may be in use.
            self.ledger.abandon_sweep();
        } else {
            let unused = self.ledger.end_sweep(&self.standard_paths.standing());
            events.extend(unused.into_iter().map(DiscoveryEvent::Unused));
        }
        self.aliases.clear();
        self.lost.clear();
        self.overlooked = self.missed;
        self.settled |= !self.again;
    }

    fn look(&mut self, mapped: &Mapped, events: &mut Vec<DiscoveryEvent>) {
        let is_known =
            self.ledger.note(mapped.id, mapped.pid) && !(mapped.main && self.ledger.is_set_aside(mapped.id));
        if is_known || !self.has_room(events) {
            return;
        }
        let shown = match self.path_of(mapped) {
            Ok(shown) => shown,
            Err(error) => {
                self.missed += usize::from(error.kind() != io::ErrorKind::NotFound);
                return;
            }
        };
        if !mapped.main && !names::is_library(&shown) {
            self.ledger.set_aside(mapped.id);
            return;
        }
        let opened = {
            let (mapped, shown) = (mapped.clone(), shown.clone());
            self.reader.run(mapped.id.dev, move || open::mapped(&mapped, &shown))
        };
        let (file, owner, stat) = match opened {
            Ok(Ok(Opened { file, owner, stat })) => (self.reader.adopt(mapped.id.dev, file), owner, stat),
            Err(refusal) => {
                if refusal == ReadError::Timeout {
                    self.ledger.add(mapped.id, None, None);
                    events.push(DiscoveryEvent::Unanswered(mapped.id, shown));
                }
                return;
            }
            Ok(Err(error)) => {
                tracing::debug!(pid = mapped.pid, path = %shown.display(), %error, "cannot open a mapped file");
                self.missed += 1;
                return;
            }
        };
        // The process may have mapped another file there in the meantime.
        if !self.source.is_same(&file, stat, mapped) {
            self.missed += 1;
            return;
        }
        self.offer(Found { id: mapped.id, file, owner, shown, pid: Some(mapped.pid) }, events);
    }

    /// Looks for a mapped file of which only the path is left. Returns its identity if it is known now.
    fn look_by_path(&mut self, mapping: &NewMapping, events: &mut Vec<DiscoveryEvent>) -> Option<FileId> {
        let is_of_interest = names::is_library(&mapping.path) || names::is_program(&mapping.path);
        if !is_of_interest || self.lost.contains(&mapping.alias) || !self.has_room(events) {
            return None;
        }
        let device = mapping.alias.device();
        let open = {
            let mapping = mapping.clone();
            move || elsewhere::here(&mapping)
        };
        let found = self.open_as(device, open, mapping.alias).or_else(|| self.look_elsewhere(mapping));
        let is_sought = || self.sought.iter().any(|(_, sought)| sought.alias == mapping.alias);
        if found.is_none() && self.sought.len() < MAX_SOUGHT && !is_sought() {
            self.sought.push_back((Instant::now(), mapping.clone()));
        }
        self.take(mapping, found?, events)
    }

    /// Looks in the namespaces of now for files that were in none of those that were known.
    fn seek(&mut self, end: Instant, events: &mut Vec<DiscoveryEvent>) {
        if self.sought.is_empty() {
            return;
        }
        self.namespaces.look(Instant::now());
        // At least one in each poll: new mappings could use up every slice.
        while self.has_room(events)
            && let Some((_, mapping)) = self.sought.pop_front_if(|(since, _)| self.namespaces.are_of(*since))
        {
            if is_known(&self.aliases, &mut self.ledger, &mapping) {
                continue;
            }
            let found = self.look_elsewhere(&mapping);
            match found.and_then(|found| self.take(&mapping, found, events)) {
                Some(id) => _ = self.aliases.insert(mapping.alias, id),
                None => _ = self.lost.insert(mapping.alias),
            }
            if Instant::now() >= end {
                break;
            }
        }
    }

    /// Reports the file of this mapping, unless it is known. Returns its identity if it is known now.
    fn take(
        &mut self,
        mapping: &NewMapping,
        (id, file, owner): (FileId, UntrustedFile, u32),
        events: &mut Vec<DiscoveryEvent>,
    ) -> Option<FileId> {
        // By its name it is a program, or it would not have been looked for.
        if !self.ledger.note(id, mapping.pid) || self.ledger.is_set_aside(id) {
            self.offer(Found { id, file, owner, shown: mapping.path.clone(), pid: None }, events);
        }
        self.ledger.knows(id).then_some(id)
    }

    /// The same in the other mount namespaces, none of which is known to be the right one: one that does not
    /// answer must not be held against the device of the mapping.
    fn look_elsewhere(&mut self, mapping: &NewMapping) -> Option<(FileId, UntrustedFile, u32)> {
        let processes = self.namespaces.members();
        let open = {
            let mapping = mapping.clone();
            move || elsewhere::candidates(&mapping, &processes)
        };
        self.open_as(ELSEWHERE, open, mapping.alias)
    }

    /// Opens files, and returns the one that the kernel told of by this name, with its identity and owner.
    fn open_as(
        &mut self,
        device: u64,
        open: impl FnOnce() -> Vec<Opened> + Send + 'static,
        alias: Alias,
    ) -> Option<(FileId, UntrustedFile, u32)> {
        let opened = self.reader.run(device, open).unwrap_or_default();
        let adopt = |Opened { file, owner, stat }| (self.reader.adopt(device, file), owner, stat);
        let files: Vec<_> = opened.into_iter().map(adopt).collect();
        files
            .into_iter()
            .find_map(|(file, owner, stat)| Some((self.source.identify_as(&file, stat, alias)?, file, owner)))
    }

    /// Whether one more file can be reported. If not, a later sweep will find it again.
    fn has_room(&mut self, events: &[DiscoveryEvent]) -> bool {
        if self.ledger.is_full() {
            self.missed += 1;
            return false;
        }
        let room = events.len() < self.room;
        self.again |= !room;
        room
    }

    fn offer(&mut self, found: Found, events: &mut Vec<DiscoveryEvent>) {
        if !self.ledger.has_room_for(found.owner) {
            self.missed += 1;
            return;
        }
        self.ledger.add(found.id, Some(found.owner), found.pid);
        events.push(DiscoveryEvent::Found(found));
    }
}

/// Whether the file is known; the process is noted as a user of it then. One that was set aside may be the
/// program of this process.
fn is_known(aliases: &HashMap<Alias, FileId>, ledger: &mut Ledger, mapping: &NewMapping) -> bool {
    aliases.get(&mapping.alias).is_some_and(|&id| {
        ledger.note(id, mapping.pid) && !(ledger.is_set_aside(id) && names::is_program(&mapping.path))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sweep_advances_when_new_mappings_use_up_every_slice() {
        let mut discovery = Discovery::new(Err(IteratorError::NoProgram), SWEEP);
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
