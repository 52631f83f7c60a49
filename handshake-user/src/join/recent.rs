//! The latest handshakes that only the wire reported.

use std::collections::{HashSet, VecDeque};

use super::pending::Random;

/// How many are kept; the oldest are evicted.
const MAX_ENTRIES: usize = 4096;

/// The set of those added last.
#[derive(Debug, Default)]
pub(super) struct Recent {
    set: HashSet<Random>,
    /// In the order in which they came.
    order: VecDeque<Random>,
}

impl Recent {
    pub(super) fn add(&mut self, random: Random) {
        if !self.set.insert(random) {
            return;
        }
        self.order.push_back(random);
        if self.order.len() > MAX_ENTRIES
            && let Some(oldest) = self.order.pop_front()
        {
            self.set.remove(&oldest);
        }
    }

    pub(super) fn contains(&self, random: &Random) -> bool {
        self.set.contains(random)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oldest_is_evicted() {
        let number = |number: usize| {
            let mut random = [0; 32];
            random[..8].copy_from_slice(&number.to_ne_bytes());
            (random, None)
        };
        let mut recent = Recent::default();
        (0..=MAX_ENTRIES).for_each(|each| recent.add(number(each)));
        recent.add(number(MAX_ENTRIES));
        assert!(!recent.contains(&number(0)));
        assert!(recent.contains(&number(1)) && recent.contains(&number(MAX_ENTRIES)));
        assert_eq!((recent.set.len(), recent.order.len()), (MAX_ENTRIES, MAX_ENTRIES));
    }
}
