//! Files that wait for inspection. Users take turns, so that one who creates files without end does not delay
//! the files of others.

use std::collections::VecDeque;

use crate::tls::discover::Found;

/// The most files in the queue, each of which is open.
pub const MAX_QUEUED: usize = 256;
/// The most files of one user other than root.
const MAX_PER_USER: usize = 64;

/// The files by their owners, whose turns rotate.
#[derive(Debug)]
pub struct Queue<T = Found> {
    owners: VecDeque<(u32, VecDeque<T>)>,
    length: usize,
    /// The owner whose turn was the last.
    last: Option<u32>,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { owners: VecDeque::new(), length: 0, last: None }
    }
}

impl<T> Queue<T> {
    /// Adds a file of a user.
    ///
    /// # Errors
    /// The file itself, if this user has too many in the queue.
    pub fn push(&mut self, owner: u32, file: T) -> Result<(), T> {
        let files = match self.owners.iter().position(|(known, _)| *known == owner) {
            Some(at) => &mut self.owners[at].1,
            None => &mut self.owners.push_back_mut((owner, VecDeque::new())).1,
        };
        if files.len() >= if owner == 0 { MAX_QUEUED } else { MAX_PER_USER } {
            return Err(file);
        }
        files.push_back(file);
        self.length += 1;
        Ok(())
    }

    /// The next file. Root has every second turn, since other users can have any number of user IDs.
    pub fn pop(&mut self) -> Option<T> {
        let root = self.owners.iter().position(|(owner, _)| *owner == 0).filter(|_| self.last != Some(0));
        let (owner, mut files) = self.owners.remove(root.unwrap_or(0))?;
        self.last = Some(owner);
        let file = files.pop_front();
        if !files.is_empty() {
            self.owners.push_back((owner, files));
        }
        self.length -= usize::from(file.is_some());
        file
    }

    /// The number of files.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.length
    }

    /// Whether there are no files.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_take_turns_and_are_limited() {
        let mut queue = Queue::default();
        let hostile = (0..1000).take_while(|file| queue.push(1000, *file).is_ok()).count();
        assert_eq!(hostile, MAX_PER_USER);
        queue.push(0, 500).unwrap();
        queue.push(0, 501).unwrap();
        queue.push(33, 600).unwrap();
        assert_eq!(queue.len(), MAX_PER_USER + 3);
        let order: Vec<_> = (0..6).filter_map(|_| queue.pop()).collect();
        assert_eq!(order, [500, 0, 501, 600, 1, 2]);
        while queue.pop().is_some() {}
        assert!(queue.is_empty() && queue.owners.is_empty());
    }
}
