//! Handshakes of which one view has told, and closings that wait for their handshake.

use std::collections::{BTreeSet, HashMap};

use handshake_common::{Connection, Role};

use super::Key;
use crate::model::tls::Tls;

/// What one view said, and what it knew of the connection.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub(super) connection: Connection,
    pub(super) tls: Tls,
}

/// What waits for the rest of its story.
#[derive(Clone, Debug, Default)]
pub(super) struct Half {
    pub(super) library: Option<View>,
    pub(super) wire: Option<View>,
    /// Told behind the handshake.
    pub(super) closed: Option<Connection>,
    pub(super) until: u64,
}

/// ClientHello.random, and which end of the handshake it is: both may be on this host.
type Random = ([u8; 32], Option<Role>);

/// The most that waits at the same time; beyond it the first ones due are told as they are.
const MOST_PENDING: usize = 65_536;

#[derive(Debug, Default)]
pub(super) struct Pending {
    halves: HashMap<Key, Half>,
    due: BTreeSet<(u64, Key)>,
    randoms: HashMap<Random, Key>,
}

fn random(tls: &Tls) -> Option<Random> {
    Some((tls.random?, tls.role))
}

impl Pending {
    pub(super) fn get(&self, key: Key) -> Option<&Half> {
        self.halves.get(&key)
    }

    pub(super) fn take(&mut self, key: Key) -> Option<Half> {
        let half = self.halves.remove(&key)?;
        self.due.remove(&(half.until, key));
        for view in half.library.iter().chain(&half.wire) {
            if let Some(random) = random(&view.tls)
                && self.randoms.get(&random) == Some(&key)
            {
                self.randoms.remove(&random);
            }
        }
        Some(half)
    }

    /// What waits and has this ClientHello.
    pub(super) fn find(&self, tls: &Tls) -> Option<Key> {
        self.randoms.get(&random(tls)?).copied()
    }

    /// Waits until then.
    pub(super) fn put(&mut self, key: Key, half: Half, until: u64) {
        let half = Half { until, ..half };
        for view in half.library.iter().chain(&half.wire) {
            if let Some(random) = random(&view.tls) {
                self.randoms.insert(random, key);
            }
        }
        self.due.insert((until, key));
        self.halves.insert(key, half);
    }

    /// The closing of a connection whose handshake waits; it does so until then at the most.
    pub(super) fn close(&mut self, key: Key, connection: &Connection, until: u64) {
        let half = self.take(key).unwrap_or_default();
        let until = if half.until == 0 { until } else { half.until.min(until) };
        self.put(key, Half { closed: Some(*connection), ..half }, until);
    }

    /// What has waited long enough, or one too many.
    pub(super) fn next_due(&mut self, now_ns: u64) -> Option<(Key, Half)> {
        let &(until, key) = self.due.first()?;
        if until > now_ns && self.halves.len() <= MOST_PENDING {
            return None;
        }
        Some((key, self.take(key)?))
    }
}
