//! Files of records in a folder: a new one from time to time, the oldest deleted.

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use super::file::RecordFile;

/// Longest time that one file is written to.
const FILE_AGE: Duration = Duration::from_hours(1);
/// How many files of the largest size the folder has room for: so much is lost when the oldest is deleted.
const FILES: u64 = 16;
/// Files of one second.
const MAX_SAME: u32 = 1000;

/// What the folder may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all files.
    pub bytes: u64,
    /// Age of a file's last record. `None`: any.
    pub age: Option<Duration>,
}

impl Limits {
    /// Bytes of the largest file.
    #[must_use]
    pub const fn of_a_file(self) -> u64 {
        self.bytes / FILES
    }
}

/// A folder with files that this program names. Files of other names are not touched.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    limits: Limits,
    /// The one that is written to, its path, and since when.
    current: Option<(RecordFile, PathBuf, Instant)>,
}

impl Folder {
    /// Makes the folder if it is not there, and tries to make a file in it.
    ///
    /// # Errors
    /// When it is not.
    pub fn open(path: &Path, limits: Limits) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        let folder = Self { path: path.to_owned(), limits, current: None };
        let (_, trial, _) = folder.create(SystemTime::now())?;
        fs::remove_file(trial)?;
        Ok(folder)
    }

    /// Appends to the current file, or to a new one if that is large or old enough.
    ///
    /// # Errors
    /// When the disk is full, or fails; then nothing of the part is kept.
    pub(super) fn append(&mut self, part: &[u8]) -> io::Result<()> {
        let largest = self.limits.of_a_file().max(1);
        let fits = |(file, _, since): &(RecordFile, PathBuf, Instant)| {
            let is_small = file.len() == 0 || file.len().saturating_add(part.len() as u64) <= largest;
            is_small && since.elapsed() < FILE_AGE
        };
        if !self.current.as_ref().is_some_and(fits) {
            self.current = None;
            self.prune(largest)?;
            self.current = Some(self.create(SystemTime::now())?);
        }
        let Some((file, ..)) = &mut self.current else { return Ok(()) };
        file.append(part)
    }

    /// A new file with these parts. Returns its path.
    ///
    /// # Errors
    /// When the disk is full, or fails.
    pub(super) fn write<'a>(&mut self, parts: impl Iterator<Item = &'a [u8]>) -> io::Result<PathBuf> {
        self.prune(0)?;
        let (mut file, path, _) = self.create(SystemTime::now())?;
        for part in parts {
            file.append(part)?;
        }
        Ok(path)
    }

    /// A file that is named by the time, so that names sort as the records do.
    fn create(&self, now: SystemTime) -> io::Result<(RecordFile, PathBuf, Instant)> {
        let time = compact(now);
        for number in 1..=MAX_SAME {
            let number = if number == 1 { String::new() } else { format!("_{number}") };
            let path = self.path.join(format!("{PREFIX}{time}{number}{SUFFIX}"));
            match RecordFile::create(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                created => return Ok((created?, path, Instant::now())),
            }
        }
        Err(ErrorKind::AlreadyExists.into())
    }

    /// Deletes the oldest files until there is room for so many bytes, and those that are too old.
    fn prune(&self, room: u64) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            if meta.is_file() && is_ours(&entry.file_name().to_string_lossy()) {
                files.push((meta.modified()?, entry.path(), meta.len()));
            }
        }
        files.sort();
        let mut total: u64 = files.iter().map(|(_, _, len)| len).sum();
        let now = SystemTime::now();
        for (modified, path, len) in files {
            // A clock that was set back makes no file old.
            let age = now.duration_since(modified).unwrap_or_default();
            let is_old = self.limits.age.is_some_and(|limit| age > limit);
            if !is_old && total.saturating_add(room) <= self.limits.bytes {
                continue;
            }
            match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => total = total.saturating_sub(len),
            }
        }
        Ok(())
    }
}

const PREFIX: &str = "handshake-";
const SUFFIX: &str = ".jsonl.gz";

/// The name of a file for records from now on.
#[must_use]
pub fn name_of_now() -> String {
    format!("{PREFIX}{}{SUFFIX}", compact(SystemTime::now()))
}

/// `20261129T001500Z`: ISO 8601 without what a file name had better not have.
fn compact(time: SystemTime) -> String {
    let text = humantime::format_rfc3339_seconds(time).to_string();
    text.chars().filter(|char| !"-:".contains(*char)).collect()
}

fn is_ours(name: &str) -> bool {
    let time = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_suffix(SUFFIX));
    let is_time = |text: &str| {
        text.len() == "20261129T001500Z".len()
            && text.bytes().enumerate().all(|(at, byte)| match at {
                8 => byte == b'T',
                15 => byte == b'Z',
                _ => byte.is_ascii_digit(),
            })
    };
    time.is_some_and(|time| match time.split_once('_') {
        Some((time, number)) => is_time(time) && number.parse::<u32>().is_ok(),
        None => is_time(time),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn set_age(path: &Path, age: Duration) {
        fs::File::open(path).unwrap().set_modified(SystemTime::now() - age).unwrap();
    }

    #[test]
    fn names_are_told_from_those_of_others() {
        assert!(is_ours(&name_of_now()));
        for ours in ["handshake-20261129T001500Z.jsonl.gz", "handshake-20261129T001500Z_2.jsonl.gz"] {
            assert!(is_ours(ours), "{ours}");
        }
        for other in [
            "handshake-.jsonl.gz",
            "handshake-monday.jsonl.gz",
            "handshake-20261129T001500Z.jsonl",
            "handshake-20261129T001500Z_x.jsonl.gz",
            "handshake-20261129t001500Z.jsonl.gz",
        ] {
            assert!(!is_ours(other), "{other}");
        }
    }

    #[test]
    fn folder_keeps_within_its_bytes_and_leaves_other_files_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("notes.txt"), vec![0; 100_000]).unwrap();
        let limits = Limits { bytes: 16_000, age: None };
        let mut records = Folder::open(folder.path(), limits).unwrap();
        for _ in 0..100 {
            records.append(&[b'x'; 600]).unwrap();
            let ours = names(folder.path()).into_iter().filter(|name| is_ours(name));
            let bytes: u64 = ours.map(|name| fs::metadata(folder.path().join(name)).unwrap().len()).sum();
            assert!(bytes <= limits.bytes, "{bytes}");
        }
        let names = names(folder.path());
        assert!((20..=27).contains(&names.len()), "{names:?}");
        assert!(names.contains(&"notes.txt".to_owned()));
        assert!(folder.path().join("notes.txt").exists());
    }

    #[test]
    fn old_files_are_deleted_and_one_beyond_the_limit_is_kept_whole() {
        let folder = tempfile::tempdir().unwrap();
        let old = folder.path().join("handshake-20250101T000000Z.jsonl.gz");
        fs::write(&old, "old").unwrap();
        set_age(&old, Duration::from_hours(48));
        let limits = Limits { bytes: 16_000, age: Some(Duration::from_hours(24)) };
        let mut records = Folder::open(folder.path(), limits).unwrap();
        // Larger than a file is meant to be: whole nevertheless.
        records.append(&[b'x'; 3000]).unwrap();
        records.append(&[b'y'; 10]).unwrap();
        assert!(!old.exists());
        let sizes: Vec<_> = names(folder.path())
            .iter()
            .map(|name| fs::metadata(folder.path().join(name)).unwrap().len())
            .collect();
        assert_eq!(sizes.iter().sum::<u64>(), 3010);
        assert_eq!(sizes.len(), 2, "{sizes:?}");
    }

    #[test]
    fn existing_file_is_never_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let limits = Limits { bytes: 1 << 20, age: None };
        let mut records: Vec<_> = (0..5).map(|_| Folder::open(folder.path(), limits).unwrap()).collect();
        for (number, records) in records.iter_mut().enumerate() {
            records.append(&vec![b'x'; number + 1]).unwrap();
        }
        assert_eq!(names(folder.path()).len(), 5);
    }
}
