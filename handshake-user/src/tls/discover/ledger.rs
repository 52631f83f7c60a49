//! Which processes use which file, over the sweeps of the host. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::file::FileId;

/// The most files that are remembered. A host uses hundreds of different programs and libraries.
pub(super) const MAX_FILES: usize = 16_384;
/// The most files that are reported as found, of one user other than root and of all of them together.
const MAX_PER_USER: usize = 1024;
const MAX_NON_ROOT: usize = 4096;

/// The files that have been seen and are still in use.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    files: HashMap<FileId, Entry>,
    /// The number of the current sweep, or of the last one.
    sweep: u64,
}

#[derive(Debug)]
struct Entry {
    /// Its owner, if it was reported as found; otherwise the file is of no interest.
    reported: Option<u32>,
    /// It is of no interest because no library has its name. It may still be a program.
    is_set_aside: bool,
    /// The sweep in which it was last seen.
    seen: u64,
    /// Its processes, each with the sweep in which it was last seen. Empty unless it was reported.
    users: BTreeMap<u32, u64>,
}

impl Ledger {
    /// Notes that a process has mapped the file. Returns whether the file is known.
    pub(super) fn note(&mut self, id: FileId, pid: u32) -> bool {
        let Some(entry) = self.files.get_mut(&id) else { return false };
        entry.seen = self.sweep;
        if entry.reported.is_some() {
            entry.users.insert(pid, self.sweep);
        }
        true
    }

    /// Whether the file is known.
    #[must_use]
    pub(super) fn knows(&self, id: FileId) -> bool {
        self.files.contains_key(&id)
    }

    /// Whether no more files can be remembered. Files of no interest are dropped first: any user can map any
    /// number of them, and examining them again costs little.
    pub(super) fn is_full(&mut self) -> bool {
        if self.files.len() >= MAX_FILES {
            self.files.retain(|_, entry| entry.reported.is_some());
        }
        self.files.len() >= MAX_FILES
    }

    /// Whether one more file of this user may be reported as found.
    #[must_use]
    pub(super) fn has_room_for(&self, owner: u32) -> bool {
        let others = || self.files.values().filter_map(|entry| entry.reported).filter(|owner| *owner != 0);
        owner == 0
            || (others().filter(|other| *other == owner).count() < MAX_PER_USER
                && others().count() < MAX_NON_ROOT)
    }

    /// Remembers a new file, with its owner if it is reported as found.
    pub(super) fn add(&mut self, id: FileId, reported: Option<u32>, pid: Option<u32>) {
        let users = pid.filter(|_| reported.is_some()).map(|pid| (pid, self.sweep)).into_iter().collect();
        self.files.insert(id, Entry { reported, is_set_aside: false, seen: self.sweep, users });
    }

    /// Remembers a new file that is of no interest unless it is a program: anybody can map one as a library.
    pub(super) fn set_aside(&mut self, id: FileId) {
        let entry = Entry { reported: None, is_set_aside: true, seen: self.sweep, users: BTreeMap::new() };
        self.files.insert(id, entry);
    }

    /// Whether the file was set aside.
    #[must_use]
    pub(super) fn is_set_aside(&self, id: FileId) -> bool {
        self.files.get(&id).is_some_and(|entry| entry.is_set_aside)
    }

    /// Forgets a file. Returns whether it was reported as found.
    pub(super) fn remove(&mut self, id: FileId) -> bool {
        self.files.remove(&id).is_some_and(|entry| entry.reported.is_some())
    }

    /// Begins a sweep.
    pub(super) fn begin_sweep(&mut self) {
        self.sweep += 1;
    }

    /// Ends a sweep that has not shown all processes: nothing is concluded from what it did not show.
    pub(super) const fn abandon_sweep(&mut self) {
        self.sweep -= 1;
    }

    /// Ends a sweep over all processes. Returns the reported files that are no longer used. A file must be
    /// missing from two sweeps: a process can be forked with a PID that the current one has already passed.
    pub(super) fn end_sweep(&mut self, standing: &HashSet<FileId>) -> Vec<FileId> {
        let sweep = self.sweep;
        let mut gone = Vec::new();
        self.files.retain(|id, entry| {
            entry.users.retain(|_, seen| *seen + 1 >= sweep);
            let keep = entry.seen + 1 >= sweep || standing.contains(id);
            if !keep && entry.reported.is_some() {
                gone.push(*id);
            }
            keep
        });
        gone
    }

    /// The processes that use a file.
    pub(super) fn users(&self, id: FileId) -> impl Iterator<Item = u32> {
        self.files.get(&id).into_iter().flat_map(|entry| entry.users.keys().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIBRARY: FileId = FileId { dev: 1, ino: 2, generation: 3 };

    #[test]
    fn file_unseen_in_two_sweeps_is_returned_once() {
        let mut ledger = Ledger::default();
        let nothing = HashSet::new();
        assert!(!ledger.note(LIBRARY, 7));
        ledger.add(LIBRARY, Some(0), Some(7));
        ledger.begin_sweep();
        assert!(ledger.note(LIBRARY, 8));
        assert!(ledger.end_sweep(&nothing).is_empty());
        assert_eq!(ledger.users(LIBRARY).collect::<Vec<_>>(), [7, 8]);
        ledger.begin_sweep();
        assert!(ledger.end_sweep(&nothing).is_empty());
        assert_eq!(ledger.users(LIBRARY).collect::<Vec<_>>(), [8], "the other was not seen for two sweeps");
        ledger.begin_sweep();
        assert_eq!(ledger.end_sweep(&nothing), [LIBRARY]);
        assert!(!ledger.knows(LIBRARY));
        ledger.begin_sweep();
        assert!(ledger.end_sweep(&nothing).is_empty());
    }

    #[test]
    fn sweep_that_did_not_show_all_processes_takes_nothing_away() {
        let nothing = HashSet::new();
        let mut ledger = Ledger::default();
        ledger.begin_sweep();
        ledger.add(LIBRARY, Some(0), Some(7));
        assert!(ledger.end_sweep(&nothing).is_empty());
        for _ in 0..5 {
            ledger.begin_sweep();
            ledger.abandon_sweep();
        }
        ledger.begin_sweep();
        assert!(ledger.end_sweep(&nothing).is_empty(), "missing from one sweep");
        ledger.begin_sweep();
        assert_eq!(ledger.end_sweep(&nothing), [LIBRARY]);
    }

    #[test]
    fn file_at_a_standard_path_stays_without_users() {
        let mut ledger = Ledger::default();
        ledger.add(LIBRARY, Some(0), None);
        let standing = HashSet::from([LIBRARY]);
        for _ in 0..5 {
            ledger.begin_sweep();
            assert!(ledger.end_sweep(&standing).is_empty());
        }
        ledger.begin_sweep();
        assert_eq!(ledger.end_sweep(&HashSet::new()), [LIBRARY]);
    }

    #[test]
    fn uninteresting_files_leave_room_for_others() {
        let mut ledger = Ledger::default();
        ledger.add(LIBRARY, Some(0), Some(7));
        for ino in 0..MAX_FILES as u64 {
            ledger.add(FileId { ino: 1000 + ino, ..LIBRARY }, None, None);
        }
        assert!(!ledger.is_full());
        assert!(ledger.knows(LIBRARY));
        let mut inodes = 1000..;
        let mut fill = |owner| {
            while ledger.has_room_for(owner) {
                ledger.add(FileId { ino: inodes.next().unwrap(), ..LIBRARY }, Some(owner), None);
            }
        };
        (1000..1010).for_each(&mut fill);
        assert_eq!(ledger.files.len(), 1 + MAX_NON_ROOT);
        assert!(ledger.has_room_for(0) && !ledger.is_full());
    }

    #[test]
    fn unreported_file_is_not_returned() {
        let mut ledger = Ledger::default();
        ledger.add(LIBRARY, None, Some(7));
        assert_eq!(ledger.users(LIBRARY).count(), 0);
        for _ in 0..3 {
            ledger.begin_sweep();
            assert!(ledger.end_sweep(&HashSet::new()).is_empty());
        }
        assert!(!ledger.knows(LIBRARY));
        assert!(!ledger.remove(LIBRARY));
    }
}
