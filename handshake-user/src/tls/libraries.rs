//! The TLS libraries of the host: found, inspected, probed, and let go when nobody uses them any more.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use aya::{Btf, Ebpf, programs::Iter};
use handshake_common::{Library, tls::mapping};
use memmap2::Mmap;

use super::{
    attach::{Attacher, Probed},
    discover::{Discovery, FileId, Found, KernelIterator, News, SWEEP},
    inspect::{Inspection, inspect},
};

/// Files that are kept account of, at the most; what comes beyond is not probed.
const MOST_FILES: usize = 4096;

/// Files without a TLS library that are remembered, so that a program that comes and goes is read once.
const MOST_OTHERS: usize = 16_384;

/// How long a file that nobody uses keeps its probes: what runs every few minutes should be seen from its first handshake
/// on, and letting go of a probe costs the kernel more than a tenth of a second of waiting.
const KEPT: Duration = Duration::from_mins(10);

/// One file of a library.
#[derive(Debug)]
pub struct File {
    /// As a process sees it.
    pub shown: PathBuf,
    /// What is in it.
    pub inspection: Inspection,
    /// Its probes, or why it has none.
    probed: Result<Option<Probed>, String>,
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

/// Every TLS library that is in use.
pub struct Libraries {
    discovery: Discovery,
    attacher: Attacher,
    /// Companions among them: parts that other files use, such as libcrypto.
    files: HashMap<FileId, File>,
    /// Those that nobody uses, in the order of time; one that is used again stays here until its time has come.
    unused: VecDeque<(Instant, FileId)>,
    /// Files in which there is no TLS library.
    others: HashSet<FileId>,
    changed: bool,
}

impl Libraries {
    /// Begins to look for them; everything else is done by [`Libraries::poll`].
    ///
    /// # Errors
    /// When the eBPF object lacks what it needs, in words.
    pub fn new(ebpf: &mut Ebpf, btf: &Btf) -> Result<Self, String> {
        let iterator = mappings(ebpf, btf);
        Ok(Self {
            attacher: Attacher::new(ebpf)?,
            discovery: Discovery::new(iterator, SWEEP),
            files: HashMap::new(),
            unused: VecDeque::new(),
            others: HashSet::new(),
            changed: true,
        })
    }

    /// Takes in what has changed on the host; works for some milliseconds, unless a large program is to be inspected.
    pub fn poll(&mut self, ebpf: &mut Ebpf) {
        let now = Instant::now();
        for news in self.discovery.poll(now) {
            match news {
                News::Found(found) => self.found(ebpf, &found),
                News::Rewritten(id) => {
                    self.let_go(id);
                    self.others.remove(&id);
                }
                News::Unused(id) => {
                    let Some(file) = self.files.get_mut(&id) else { continue };
                    file.unused = Some(now);
                    self.unused.push_back((now, id));
                    self.changed = true;
                }
            }
        }
        while self.unused.front().is_some_and(|(since, _)| now.saturating_duration_since(*since) >= KEPT) {
            self.let_go_of_oldest();
        }
    }

    /// Polls until everything that was there at the start is probed, or it takes too long.
    pub fn settle(&mut self, ebpf: &mut Ebpf, until: Instant) {
        while !self.discovery.is_settled() && Instant::now() < until {
            self.poll(ebpf);
        }
    }

    /// Lets go of the file that nobody has used for longest, if it still is so; false when there is none.
    fn let_go_of_oldest(&mut self) -> bool {
        let Some((since, id)) = self.unused.pop_front() else { return false };
        if self.files.get(&id).is_some_and(|file| file.unused == Some(since)) {
            self.let_go(id);
        }
        true
    }

    fn let_go(&mut self, id: FileId) {
        let Some(file) = self.files.remove(&id) else { return };
        tracing::info!(path = %file.shown.display(), "a TLS library is let go");
        if let Ok(Some(probed)) = file.probed {
            self.attacher.detach(probed);
        }
        self.changed = true;
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

    /// How many files of each library there are, by whether they are covered; `None` when nothing has changed since
    /// it was asked last.
    pub fn census(&mut self) -> Option<BTreeMap<(Library, bool), i64>> {
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
        Some(census)
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

    fn found(&mut self, ebpf: &mut Ebpf, found: &Found) {
        if self.others.contains(&found.id) {
            return;
        }
        if let Some(file) = self.files.get_mut(&found.id) {
            file.unused = None;
            file.shown.clone_from(&found.shown);
            self.changed = true;
            return;
        }
        while (self.files.len() >= MOST_FILES || self.attacher.is_full()) && self.let_go_of_oldest() {}
        if self.files.len() >= MOST_FILES {
            tracing::warn!(path = %found.shown.display(), "too many TLS libraries: this one is not probed");
            return;
        }
        // SAFETY: the map is only read. A file that is cut short meanwhile would end the program with SIGBUS; programs
        // and libraries that are executed cannot be written to (ETXTBSY), or are replaced as a whole.
        let bytes = match unsafe { Mmap::map(&found.file) } {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::debug!(path = %found.shown.display(), %error, "cannot be read");
                return;
            }
        };
        let Some(inspection) = inspect(&bytes) else {
            if self.others.len() >= MOST_OTHERS {
                self.others.clear();
            }
            self.others.insert(found.id);
            return;
        };
        drop(bytes);
        let probed = self.attacher.attach(ebpf, &found.path(), &inspection);
        let (path, library) = (found.shown.display(), inspection.library);
        match &probed {
            Ok(_) => tracing::info!(%path, %library, points = inspection.points.len(), "TLS library"),
            Err(error) => tracing::warn!(%path, %library, error, "a TLS library is not probed"),
        }
        self.files.insert(found.id, File { shown: found.shown.clone(), inspection, probed, unused: None });
        self.pair(found.shown.parent());
        self.changed = true;
    }
}

/// Loads the iterator over the mappings of this host.
///
/// # Errors
/// When this kernel cannot run it, with the reason.
pub(crate) fn mappings(ebpf: &mut Ebpf, btf: &Btf) -> Result<KernelIterator, String> {
    match ebpf.program_mut(mapping::PROGRAM).map(<&mut Iter>::try_from) {
        Some(Ok(program)) => KernelIterator::load(program, btf),
        _ => Err("the eBPF object lacks the program".to_owned()),
    }
}
