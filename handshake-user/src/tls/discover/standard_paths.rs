//! The standard paths: libraries and programs that may come into use at any moment. They are probed in
//! advance, so that the first short-lived client is not missed.

use std::{
    collections::{HashMap, HashSet},
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::{file::FileId, ld_cache, names};
use crate::bounded;

const LD_CACHE: &str = "/etc/ld.so.cache";
/// With a few thousand libraries, it has a quarter of a megabyte.
const MAX_CACHE: u64 = 16 << 20;
/// The directories of the loader itself, for systems without a cache (musl).
const LIBRARY_FOLDERS: &[&str] = &["/lib", "/usr/lib", "/usr/local/lib", "/lib64", "/usr/lib64"];
const PROGRAM_FOLDERS: &[&str] = &["/usr/local/bin", "/usr/bin"];
/// More entries than ever exist there.
const MAX_DIRECTORIES: usize = 1024;
const MAX_ENTRIES: usize = 100_000;

/// What changes when a file is replaced or rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fingerprint {
    dev: u64,
    ino: u64,
    size: u64,
    modified: (i64, i64),
}

impl Fingerprint {
    /// The device of its file system, as `stat` encodes it.
    #[must_use]
    pub(super) fn device(self) -> u64 {
        self.dev
    }
}

/// The files that were found at the standard paths.
#[derive(Debug, Default)]
pub(super) struct StandardPaths {
    files: HashMap<PathBuf, (Fingerprint, FileId)>,
}

/// A path at which a file is new, replaced or rewritten.
#[derive(Debug)]
pub(super) struct Change {
    /// The path.
    pub path: PathBuf,
    /// To be passed to [`StandardPaths::keep`].
    pub fingerprint: Fingerprint,
}

impl StandardPaths {
    /// Looks at these paths again, and returns those that have changed.
    pub(super) fn look(&mut self, paths: Vec<PathBuf>) -> Vec<Change> {
        let mut fingerprints: HashMap<PathBuf, Fingerprint> = paths
            .into_iter()
            .take(MAX_DIRECTORIES)
            .filter_map(|path| {
                let fingerprint = fingerprint(&path)?;
                Some((path, fingerprint))
            })
            .collect();
        self.files.retain(|path, _| fingerprints.contains_key(path));
        fingerprints
            .retain(|path, fingerprint| self.files.get(path).is_none_or(|(known, _)| known != fingerprint));
        fingerprints.into_iter().map(|(path, fingerprint)| Change { path, fingerprint }).collect()
    }

    /// Remembers a change, with the identity of the file. Returns that identity if the file was rewritten in
    /// place: its probes are then in the wrong places.
    pub(super) fn keep(&mut self, change: Change, id: FileId) -> Option<FileId> {
        let old = self.files.insert(change.path, (change.fingerprint, id));
        old.map(|(_, old)| old).filter(|old| *old == id)
    }

    /// Has this file reported as changed by the next look.
    pub(super) fn forget(&mut self, id: FileId) {
        self.files.retain(|_, (_, known)| *known != id);
    }

    /// Whether a file has a standard path.
    #[must_use]
    pub(super) fn has(&self, id: FileId) -> bool {
        self.files.values().any(|(_, known)| *known == id)
    }

    /// All files that have a standard path.
    #[must_use]
    pub(super) fn standing(&self) -> HashSet<FileId> {
        self.files.values().map(|(_, id)| *id).collect()
    }
}

fn fingerprint(path: &Path) -> Option<Fingerprint> {
    let file = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    Some(Fingerprint {
        dev: file.dev(),
        ino: file.ino(),
        size: file.size(),
        modified: (file.mtime(), file.mtime_nsec()),
    })
}

/// The standard paths of files that may hold a TLS library. Some may not exist.
#[must_use]
pub(super) fn standard() -> Vec<PathBuf> {
    let cached = bounded::read(LD_CACHE, MAX_CACHE).map(|cache| ld_cache::paths(&cache)).unwrap_or_default();
    wanted(if cached.is_empty() { in_folders() } else { cached })
}

/// Those of these libraries that may be TLS libraries, and the programs with a library inside.
fn wanted(libraries: impl IntoIterator<Item = PathBuf>) -> Vec<PathBuf> {
    let programs = PROGRAM_FOLDERS
        .iter()
        .flat_map(|folder| names::PROGRAMS.iter().map(move |name| Path::new(folder).join(name)));
    libraries.into_iter().filter(|path| names::is_library(path)).chain(programs).collect()
}

fn in_folders() -> Vec<PathBuf> {
    let entries = LIBRARY_FOLDERS.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten();
    entries.flatten().take(MAX_ENTRIES).map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: FileId = FileId { dev: 1, ino: 2, generation: 3 };
    const OTHER: FileId = FileId { ino: 4, ..ID };

    /// Looks at one path, where exactly one change is expected.
    fn change(places: &mut StandardPaths, path: &Path) -> Change {
        let mut changes = places.look(vec![path.to_owned()]);
        assert_eq!(changes.len(), 1);
        changes.remove(0)
    }

    #[test]
    fn replaced_or_rewritten_file_is_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let (path, new) = (folder.path().join("libssl.so.3"), folder.path().join("new"));
        let mut places = StandardPaths::default();
        assert!(places.look(vec![path.clone()]).is_empty(), "no file yet");

        fs::write(&path, "old").unwrap();
        let first = change(&mut places, &path);
        assert_eq!(places.keep(first, ID), None);
        assert!(places.look(vec![path.clone()]).is_empty(), "nothing has changed");

        fs::write(&new, "another file").unwrap();
        fs::rename(&new, &path).unwrap();
        let replaced = change(&mut places, &path);
        assert_eq!(places.keep(replaced, OTHER), None);
        assert_eq!(places.standing(), HashSet::from([OTHER]));

        fs::write(&path, "the same file with other bytes").unwrap();
        let rewritten = change(&mut places, &path);
        assert_eq!(places.keep(rewritten, OTHER), Some(OTHER));

        fs::remove_file(&path).unwrap();
        assert!(places.look(vec![path]).is_empty());
        assert!(places.standing().is_empty());
    }

    #[test]
    fn standard_paths_are_only_of_possible_tls_libraries() {
        let folder = "/usr/lib/x86_64-linux-gnu";
        let libraries = ["libssl.so.3", "libc.so.6", "libgnutls.so.30", "libssl.a"];
        let found = wanted(libraries.map(|name| Path::new(folder).join(name)));
        let has = |path: &str| found.iter().any(|found| found == Path::new(path));
        assert!(
            has("/usr/lib/x86_64-linux-gnu/libssl.so.3") && has("/usr/lib/x86_64-linux-gnu/libgnutls.so.30")
        );
        assert!(!has("/usr/lib/x86_64-linux-gnu/libc.so.6") && !has("/usr/lib/x86_64-linux-gnu/libssl.a"));
        assert!(
            has("/usr/bin/node"),
            "programs with a library inside, whether they are there or not: {found:?}"
        );
        assert_eq!(found.len(), 2 + PROGRAM_FOLDERS.len() * names::PROGRAMS.len());
    }
}
