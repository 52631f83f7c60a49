//! Who uses which file: pure bookkeeping over sweeps of the host.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::FileId;

/// How many files are kept in mind. A host has hundreds of different programs and libraries at work.
pub const MAX_FILES: usize = 16_384;
/// Of those that are told as found: of one user other than root, and of all of them.
const MAX_PER_USER: usize = 1024;
const MAX_NON_ROOT: usize = 4096;

/// The files that were seen since the start and are still there.
#[derive(Debug, Default)]
pub struct Ledger {
    files: HashMap<FileId, Entry>,
    /// Number of the sweep under way, or of the last one.
    sweep: u64,
}

#[derive(Debug)]
struct Entry {
    /// Whose it is, when it was told as found; otherwise it was looked at and is nothing for us.
    offered: Option<u32>,
    /// In which sweep it was last seen.
    seen: u64,
    /// The processes, and in which sweep each was last seen. Only of what is offered.
    users: BTreeMap<u32, u64>,
}

impl Ledger {
    /// Notes that a process has mapped the file; false when the file is not known yet.
    pub fn note(&mut self, id: FileId, pid: u32) -> bool {
        let Some(entry) = self.files.get_mut(&id) else { return false };
        entry.seen = self.sweep;
        if entry.offered.is_some() {
            entry.users.insert(pid, self.sweep);
        }
        true
    }

    /// Whether the file is known.
    #[must_use]
    pub fn knows(&self, id: FileId) -> bool {
        self.files.contains_key(&id)
    }

    /// Whether there is no room for more files. What was looked at and is nothing for us makes room: anybody can map files without
    /// number, and to look at them once more costs little.
    pub fn is_full(&mut self) -> bool {
        if self.files.len() >= MAX_FILES {
            self.files.retain(|_, entry| entry.offered.is_some());
        }
        self.files.len() >= MAX_FILES
    }

    /// Whether one more file of this user may be told as found.
    #[must_use]
    pub fn has_room_for(&self, owner: u32) -> bool {
        let others = || self.files.values().filter_map(|entry| entry.offered).filter(|owner| *owner != 0);
        owner == 0
            || (others().filter(|other| *other == owner).count() < MAX_PER_USER
                && others().count() < MAX_NON_ROOT)
    }

    /// Keeps a new file in mind; with its owner, when it is told as found.
    pub fn add(&mut self, id: FileId, offered: Option<u32>, pid: Option<u32>) {
        let users = pid.filter(|_| offered.is_some()).map(|pid| (pid, self.sweep)).into_iter().collect();
        self.files.insert(id, Entry { offered, seen: self.sweep, users });
    }

    /// Drops a file; true when it was offered.
    pub fn remove(&mut self, id: FileId) -> bool {
        self.files.remove(&id).is_some_and(|entry| entry.offered.is_some())
    }

    /// A sweep begins.
    pub fn begin_sweep(&mut self) {
        self.sweep += 1;
    }

    /// A sweep has passed over every process: hands back the offered files that nobody uses any more. Once unseen is not
    /// gone: a process can fork behind the sweep's back into a number that it has passed already.
    pub fn end_sweep(&mut self, standing: &HashSet<FileId>) -> Vec<FileId> {
        let sweep = self.sweep;
        let mut gone = Vec::new();
        self.files.retain(|id, entry| {
            entry.users.retain(|_, seen| *seen + 1 >= sweep);
            let keep = entry.seen + 1 >= sweep || standing.contains(id);
            if !keep && entry.offered.is_some() {
                gone.push(*id);
            }
            keep
        });
        gone
    }

    /// The processes that use a file.
    pub fn users(&self, id: FileId) -> impl Iterator<Item = u32> {
        self.files.get(&id).into_iter().flat_map(|entry| entry.users.keys().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIBRARY: FileId = FileId { dev: 1, ino: 2, generation: 3 };

    #[test]
    fn unseen_in_two_sweeps_is_gone_and_said_once() {
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
    fn what_stands_in_a_standard_place_stays_without_users() {
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
    fn files_without_number_leave_room_for_others() {
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
    fn what_was_not_offered_goes_in_silence() {
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
