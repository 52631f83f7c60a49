//! The records of the last while, in memory.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Encoded parts, the oldest first.
#[derive(Debug)]
pub(super) struct LookBack {
    parts: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    keep: Duration,
    most: usize,
}

impl LookBack {
    /// Keeps parts for this long, and at most so many bytes of them.
    pub(super) const fn new(keep: Duration, most: usize) -> Self {
        Self { parts: VecDeque::new(), bytes: 0, keep, most }
    }

    /// Adds a part, and forgets what is too old or too much.
    pub(super) fn add(&mut self, now: Instant, part: Vec<u8>) {
        self.bytes += part.len();
        self.parts.push_back((now, part));
        while let Some((since, oldest)) = self.parts.front() {
            if self.bytes <= self.most && now.duration_since(*since) <= self.keep {
                break;
            }
            self.bytes -= oldest.len();
            self.parts.pop_front();
        }
    }

    /// The parts not older than asked for, the oldest first.
    pub(super) fn parts(&self, now: Instant) -> impl Iterator<Item = &[u8]> {
        let young = move |since: &Instant| now.duration_since(*since) <= self.keep;
        self.parts.iter().filter(move |(since, _)| young(since)).map(|(_, part)| &**part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_old_or_too_much_is_forgotten() {
        let mut look_back = LookBack::new(Duration::from_mins(1), 10);
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let kept = |look_back: &LookBack, now| look_back.parts(now).map(<[u8]>::to_vec).collect::<Vec<_>>();
        look_back.add(at(0), vec![0; 4]);
        look_back.add(at(10), vec![1; 4]);
        assert_eq!(kept(&look_back, at(10)), [[0; 4], [1; 4]]);
        look_back.add(at(20), vec![2; 4]);
        assert_eq!(kept(&look_back, at(20)), [[1; 4], [2; 4]], "10 bytes have no room for three");
        look_back.add(at(75), vec![3; 1]);
        assert_eq!(kept(&look_back, at(75)), [vec![2; 4], vec![3; 1]]);
        assert_eq!(kept(&look_back, at(90)), [[3; 1]], "nothing came to push the older one out");
        look_back.add(at(91), vec![4; 11]);
        assert!(kept(&look_back, at(91)).is_empty(), "larger than all that may be kept");
        assert_eq!(look_back.bytes, 0);
    }
}
