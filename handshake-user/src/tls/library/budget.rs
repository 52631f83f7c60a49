//! How many files there may be that do not stand in the system's own places, and their probes, taken together.
//!
//! The kernel takes 85 to 100 ms to let go of a probe, one after the other, also when the program is killed. Whoever makes files
//! without end must not make the end of this program last for minutes.

use std::collections::HashMap;

/// Of one user other than root: 5 s. Node.js with OpenSSL inside takes 27, a shared library about ten.
const MAX_PER_USER: usize = 48;
/// Of all users other than root, with however many ids (`/etc/subuid` gives 65,536 to each): 10 s.
const MAX_NON_ROOT: usize = 96;
/// Of root: in images of containers, where root need not be the host's. Some 70 images; together with all others
/// about the 90 s that systemd waits for the end.
const MAX_ROOT: usize = 768;

/// Files, and the probes that are attached, those that are being let go of among them.
#[derive(Debug, Default)]
pub struct Budget {
    of: HashMap<u32, usize>,
}

impl Budget {
    /// Whether a user's files may have so many more.
    #[must_use]
    pub fn fits(&self, owner: u32, more: usize) -> bool {
        let most = if owner == 0 { MAX_ROOT } else { MAX_PER_USER };
        self.of(owner) + more <= most && (owner == 0 || self.of_others() + more <= MAX_NON_ROOT)
    }

    /// Whether there would be room for so many more of a user if another user's files gave way.
    #[must_use]
    pub fn would_help(&self, other: u32, owner: u32, more: usize) -> bool {
        other == owner || (owner != 0 && other != 0 && self.of(owner) + more <= MAX_PER_USER)
    }

    /// There is one more.
    pub fn add(&mut self, owner: u32) {
        *self.of.entry(owner).or_default() += 1;
    }

    /// One is gone.
    pub fn remove(&mut self, owner: u32) {
        if let Some(probes) = self.of.get_mut(&owner) {
            *probes -= 1;
            if *probes == 0 {
                self.of.remove(&owner);
            }
        }
    }

    fn of(&self, owner: u32) -> usize {
        self.of.get(&owner).copied().unwrap_or(0)
    }

    fn of_others(&self) -> usize {
        self.of.iter().filter(|(owner, _)| **owner != 0).map(|(_, probes)| probes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_has_more_than_their_share_and_all_get_theirs_back() {
        let mut budget = Budget::default();
        let mut fill = |owner| {
            let mut count = 0;
            while budget.fits(owner, 1) {
                budget.add(owner);
                count += 1;
            }
            count
        };
        assert_eq!([1000, 1001, 1002, 0].map(&mut fill), [48, 48, 0, MAX_ROOT]);
        assert!(budget.would_help(1000, 1002, 10), "there is no room for all of them");
        assert!(!budget.would_help(1001, 1000, 1), "it has too many of its own");
        assert!(budget.would_help(1000, 1000, 1));
        assert!(!budget.would_help(0, 1000, 1) && !budget.would_help(1000, 0, 1));
        for _ in 0..48 {
            budget.remove(1000);
        }
        assert!(budget.fits(1002, 48) && !budget.fits(1002, 49));
        assert_eq!(budget.of.len(), 2, "who has none is forgotten");
    }
}
