//! The TLS libraries of the host: found, inspected, probed, and let go when nobody uses them any more.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    time::Instant,
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

/// One file of a library.
#[derive(Debug)]
pub struct File {
    /// As a process sees it.
    pub shown: PathBuf,
    /// Which library.
    pub library: Library,
    /// Its version, in its own words.
    pub description: Option<String>,
    /// Why its handshakes are not seen, or what of them is not; empty when all is well.
    pub gaps: Vec<String>,
    /// Its handshakes are seen.
    pub covered: bool,
    probed: Option<Probed>,
}

/// Every TLS library that is in use.
pub struct Libraries {
    discovery: Discovery,
    attacher: Attacher,
    files: HashMap<FileId, File>,
    /// Parts that other files use, such as libcrypto: probed, but no library of their own.
    companions: HashMap<FileId, (Inspection, Option<Probed>)>,
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
            companions: HashMap::new(),
            changed: true,
        })
    }

    /// Takes in what has changed on the host; works for some milliseconds, unless a large program is to be inspected.
    pub fn poll(&mut self, ebpf: &mut Ebpf) {
        for news in self.discovery.poll(Instant::now()) {
            match news {
                News::Found(found) => self.found(ebpf, &found),
                News::Gone(id) => {
                    let file = self.files.remove(&id).and_then(|file| file.probed);
                    let companion = self.companions.remove(&id).and_then(|(_, probed)| probed);
                    for probed in file.into_iter().chain(companion) {
                        self.attacher.detach(ebpf, probed);
                    }
                    self.changed = true;
                }
            }
        }
    }

    /// Polls until everything that was there at the start is probed, or it takes too long.
    pub fn settle(&mut self, ebpf: &mut Ebpf, until: Instant) {
        while !self.discovery.is_settled() && Instant::now() < until {
            self.poll(ebpf);
        }
    }

    /// Every file of a library, in the order of its path.
    #[must_use]
    pub fn files(&self) -> Vec<(&File, usize)> {
        let mut files: Vec<_> =
            self.files.iter().map(|(id, file)| (file, self.discovery.users(*id).count())).collect();
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
        for file in self.files.values() {
            *census.entry((file.library, file.covered)).or_default() += 1;
        }
        Some(census)
    }

    /// What this host does not offer to the search.
    #[must_use]
    pub fn shortfalls(&self) -> &[String] {
        self.discovery.shortfalls()
    }

    fn found(&mut self, ebpf: &mut Ebpf, found: &Found) {
        if self.files.len() + self.companions.len() >= MOST_FILES {
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
        let Some(inspection) = inspect(&bytes) else { return };
        drop(bytes);
        let attached = self.attacher.attach(ebpf, &found.path(), &inspection);
        let (probed, failure) = match attached {
            Ok(probed) => (probed, None),
            Err(reason) => (None, Some(reason)),
        };
        tracing::info!(
            path = %found.shown.display(), library = %inspection.library, points = inspection.points.len(),
            failure, "TLS library"
        );
        self.changed = true;
        if inspection.is_companion {
            self.companions.insert(found.id, (inspection, probed));
            return;
        }
        let covered = inspection.covered && probed.is_some();
        let gaps = inspection.gaps.into_iter().map(|gap| format!("{}: {}", gap.missing, gap.lost));
        let file = File {
            shown: found.shown.clone(),
            library: inspection.library,
            description: inspection.description,
            gaps: failure.into_iter().chain(gaps).collect(),
            covered,
            probed,
        };
        self.files.insert(found.id, file);
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
