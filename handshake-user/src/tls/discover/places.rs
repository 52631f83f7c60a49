//! The standard places: libraries and programs that may be used at any moment, though nothing maps them yet. They are
//! probed beforehand, so that the first short-lived client is not missed.

use std::{
    collections::{HashMap, HashSet},
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::{FileId, ld_cache, names};
use crate::bounded;

const LD_CACHE: &str = "/etc/ld.so.cache";
/// Of some thousand libraries it has a quarter of a megabyte.
const MAX_CACHE: u64 = 16 << 20;
/// Where there is no cache (musl): the loader's own directories.
const LIBRARY_FOLDERS: &[&str] = &["/lib", "/usr/lib", "/usr/local/lib", "/lib64", "/usr/lib64"];
const PROGRAM_FOLDERS: &[&str] = &["/usr/local/bin", "/usr/bin"];
/// More than are ever there.
const MAX_DIRECTORIES: usize = 1024;
const MAX_ENTRIES: usize = 100_000;

/// By what a file is known to be still the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    dev: u64,
    ino: u64,
    size: u64,
    modified: (i64, i64),
}

impl Stamp {
    /// The device of its file system, as `stat` encodes it.
    #[must_use]
    pub fn device(self) -> u64 {
        self.dev
    }
}

/// What stands there.
#[derive(Debug, Default)]
pub struct Places {
    files: HashMap<PathBuf, (Stamp, FileId)>,
}

/// A file that is new, or another one than before.
#[derive(Debug)]
pub struct Change {
    /// Where.
    pub path: PathBuf,
    /// To be handed back to [`Places::keep`].
    pub stamp: Stamp,
}

impl Places {
    /// Looks again at these paths, and hands back what has changed.
    pub fn look(&mut self, paths: Vec<PathBuf>) -> Vec<Change> {
        let mut stamps: HashMap<PathBuf, Stamp> = paths
            .into_iter()
            .take(MAX_DIRECTORIES)
            .filter_map(|path| {
                let stamp = stamp(&path)?;
                Some((path, stamp))
            })
            .collect();
        self.files.retain(|path, _| stamps.contains_key(path));
        stamps.retain(|path, stamp| self.files.get(path).is_none_or(|(known, _)| known != stamp));
        stamps.into_iter().map(|(path, stamp)| Change { path, stamp }).collect()
    }

    /// Remembers a change under its true identity. Hands back the identity of the file if it was rewritten in place:
    /// what was probed in it is no longer there.
    pub fn keep(&mut self, change: Change, id: FileId) -> Option<FileId> {
        let old = self.files.insert(change.path, (change.stamp, id));
        old.map(|(_, old)| old).filter(|old| *old == id)
    }

    /// What stands there under this identity is to be told again.
    pub fn forget(&mut self, id: FileId) {
        self.files.retain(|_, (_, known)| *known != id);
    }

    /// Whether it stands in a standard place.
    #[must_use]
    pub fn has(&self, id: FileId) -> bool {
        self.files.values().any(|(_, known)| *known == id)
    }

    /// What stands in the standard places now.
    #[must_use]
    pub fn standing(&self) -> HashSet<FileId> {
        self.files.values().map(|(_, id)| *id).collect()
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let file = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    Some(Stamp {
        dev: file.dev(),
        ino: file.ino(),
        size: file.size(),
        modified: (file.mtime(), file.mtime_nsec()),
    })
}

/// The paths of what may be a TLS library in the standard places, some of which may not exist.
#[must_use]
pub fn standard() -> Vec<PathBuf> {
    let cached = bounded::read(LD_CACHE, MAX_CACHE).map(|cache| ld_cache::paths(&cache)).unwrap_or_default();
    wanted(if cached.is_empty() { in_folders() } else { cached })
}

/// Those of these libraries that matter, and programs with a library inside.
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
    fn change(places: &mut Places, path: &Path) -> Change {
        let mut changes = places.look(vec![path.to_owned()]);
        assert_eq!(changes.len(), 1);
        changes.remove(0)
    }

    #[test]
    fn what_is_replaced_or_rewritten_is_told_again() {
        let folder = tempfile::tempdir().unwrap();
        let (path, new) = (folder.path().join("libssl.so.3"), folder.path().join("new"));
        let mut places = Places::default();
        assert!(places.look(vec![path.clone()]).is_empty(), "there is nothing yet");

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
    fn standard_places_hold_only_what_may_be_a_tls_library() {
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
