//! Handshakes that only one view has reported so far, and closes that wait for their handshake.

use std::collections::{BTreeSet, HashMap};

use handshake_common::{Connection, Role};

use super::view::TlsView;

/// Which connection: the socket's cookie, and the ordinal of the connection on that socket.
pub(super) type Key = (u64, u16);

/// The ordinal of a connection whose socket is not known.
pub(super) const NO_SOCKET: u16 = u16::MAX;

/// What one view reported, and what it knew of the connection.
#[derive(Clone, Debug)]
pub(super) struct HandshakeView {
    pub(super) connection: Connection,
    pub(super) tls: TlsView,
}

/// A handshake that waits for its other view.
#[derive(Clone, Debug, Default)]
pub(super) struct PartialHandshake {
    pub(super) library: Option<HandshakeView>,
    pub(super) wire: Option<HandshakeView>,
    /// Reported after the handshake.
    pub(super) closed: Option<Connection>,
    pub(super) until: u64,
}

/// ClientHello.random, and which end of the handshake it is: both may be on this host.
pub(super) type Random = ([u8; 32], Option<Role>);

/// Handshakes by their ClientHello. A relay forwards it unchanged, so several connections may share one.
type ByRandom = HashMap<Random, Vec<Key>>;

/// How many may wait at once; beyond that the first ones due are reported as they are.
const MAX_PENDING: usize = 65_536;

#[derive(Debug, Default)]
pub(super) struct Pending {
    halves: HashMap<Key, PartialHandshake>,
    due: BTreeSet<(u64, Key)>,
    /// Seen on the wire, not yet reported by their library.
    wire_handshakes: ByRandom,
    /// Reported by a library that has no socket.
    socketless: ByRandom,
}

pub(super) fn random(tls: &TlsView) -> Option<Random> {
    Some((tls.random?, tls.role))
}

fn only(by_random: &ByRandom, tls: &TlsView) -> Option<Key> {
    match by_random.get(&random(tls)?)?[..] {
        [key] => Some(key),
        _ => None,
    }
}

impl Pending {
    pub(super) fn get(&self, key: Key) -> Option<&PartialHandshake> {
        self.halves.get(&key)
    }

    pub(super) fn take(&mut self, key: Key) -> Option<PartialHandshake> {
        let half = self.halves.remove(&key)?;
        self.due.remove(&(half.until, key));
        if let Some((by_random, random)) = self.place(key, &half)
            && let Some(keys) = by_random.get_mut(&random)
        {
            keys.retain(|other| *other != key);
            if keys.is_empty() {
                by_random.remove(&random);
            }
        }
        Some(half)
    }

    /// Returns the handshake with this ClientHello that the wire saw and no library has reported, if there is
    /// exactly one.
    pub(super) fn wire_of(&self, library: &TlsView) -> Option<Key> {
        only(&self.wire_handshakes, library)
    }

    /// Returns the handshake with this ClientHello that a library without a socket reported, if there is
    /// exactly one.
    pub(super) fn library_of(&self, wire: &TlsView) -> Option<Key> {
        only(&self.socketless, wire)
    }

    /// Where a handshake is found by its ClientHello: only if its other view may look for it there.
    fn place(&mut self, key: Key, half: &PartialHandshake) -> Option<(&mut ByRandom, Random)> {
        match (&half.library, &half.wire) {
            (None, Some(wire)) => Some((&mut self.wire_handshakes, random(&wire.tls)?)),
            (Some(library), None) if key.1 == NO_SOCKET => {
                Some((&mut self.socketless, random(&library.tls)?))
            }
            _ => None,
        }
    }

    /// Keeps it until then.
    pub(super) fn put(&mut self, key: Key, half: PartialHandshake, until: u64) {
        let half = PartialHandshake { until, ..half };
        if let Some((by_random, random)) = self.place(key, &half) {
            by_random.entry(random).or_default().push(key);
        }
        self.due.insert((until, key));
        self.halves.insert(key, half);
    }

    /// Keeps a close behind its handshake, until then at the latest.
    pub(super) fn close(&mut self, key: Key, connection: &Connection, until: u64) {
        let half = self.take(key).unwrap_or_default();
        let until = if half.until == 0 { until } else { half.until.min(until) };
        self.put(key, PartialHandshake { closed: Some(*connection), ..half }, until);
    }

    /// Returns the next handshake whose time is up, or the first one due if there are too many.
    pub(super) fn next_due(&mut self, now_ns: u64) -> Option<(Key, PartialHandshake)> {
        let &(until, key) = self.due.first()?;
        if until > now_ns && self.halves.len() <= MAX_PENDING {
            return None;
        }
        Some((key, self.take(key)?))
    }
}
