//! How many files and links of probes, counted together, there may be of files without a standard path.
//!
//! The kernel takes 85 to 100 ms to detach a single probe, one after the other, and some 50 ms for a link of
//! many when the process is killed. A user who creates files without end must not delay the exit of this
//! process for minutes.

use std::collections::HashMap;

/// Of one user other than root: 5 s at most. Node.js with its OpenSSL takes 27 single probes, a shared
/// library about ten, or four links.
const MAX_PER_USER: usize = 48;
/// Of all users other than root, however many IDs they have (`/etc/subuid` gives 65,536 to each): 10 s.
const MAX_NON_ROOT: usize = 96;
/// Of root: files in container images, whose root need not be that of the host. Enough for about 70 images;
/// together with all others, about the 90 s that systemd waits for a service to stop.
const MAX_ROOT: usize = 768;

/// Files and links of probes by owner, including those that are being detached.
#[derive(Debug, Default)]
pub struct Budget {
    of: HashMap<u32, usize>,
}

impl Budget {
    /// Whether the files of a user may have this many more.
    #[must_use]
    pub fn fits(&self, owner: u32, more: usize) -> bool {
        let most = if owner == 0 { MAX_ROOT } else { MAX_PER_USER };
        self.of(owner) + more <= most && (owner == 0 || self.of_others() + more <= MAX_NON_ROOT)
    }

    /// Whether detaching files of `other` would make room for this many more of `owner`.
    #[must_use]
    pub fn would_help(&self, other: u32, owner: u32, more: usize) -> bool {
        other == owner || (owner != 0 && other != 0 && self.of(owner) + more <= MAX_PER_USER)
    }

    /// Adds one file or link.
    pub fn add(&mut self, owner: u32) {
        *self.of.entry(owner).or_default() += 1;
    }

    /// Removes one file or link.
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
    fn budget_is_limited_per_user_and_restored() {
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
        assert!(budget.would_help(1000, 1002, 10), "the limit of all users is reached");
        assert!(!budget.would_help(1001, 1000, 1), "its own limit is reached");
        assert!(budget.would_help(1000, 1000, 1));
        assert!(!budget.would_help(0, 1000, 1) && !budget.would_help(1000, 0, 1));
        for _ in 0..48 {
            budget.remove(1000);
        }
        assert!(budget.fits(1002, 48) && !budget.fits(1002, 49));
        assert_eq!(budget.of.len(), 2, "users without probes are not kept");
    }
}
