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

/// The process that makes a connection, as far as that is certain: a server's is not before it accepts.
pub(super) fn dialler(connection: &Connection) -> Option<u32> {
    let is_certain = connection.role() == Some(Role::Client) && connection.pid != 0;
    is_certain.then_some(connection.pid)
}

/// Whether a library without a socket may have made the handshake of this connection. A relay (socat)
/// forwards the ClientHello of another process, which it gets through a pipe or a Unix socket.
pub(super) fn may_be_of(dialler: Option<u32>, pid: u32) -> bool {
    pid == 0 || dialler.is_none_or(|dialler| dialler == pid)
}

fn only<'a>(mut keys: impl Iterator<Item = &'a Key>) -> Option<Key> {
    let key = keys.next()?;
    keys.next().is_none().then_some(*key)
}

impl Pending {
    pub(super) fn get(&self, key: Key) -> Option<&PartialHandshake> {
        self.halves.get(&key)
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut PartialHandshake> {
        self.halves.get_mut(&key)
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
    /// exactly one that may be of this process.
    pub(super) fn wire_of(&self, library: &TlsView, pid: u32) -> Option<Key> {
        let keys = self.wire_handshakes.get(&random(library)?)?;
        let view = |key: &&Key| self.halves.get(*key)?.wire.as_ref();
        only(
            keys.iter().filter(|key| view(key).is_some_and(|wire| may_be_of(dialler(&wire.connection), pid))),
        )
    }

    /// Returns the handshake with this ClientHello that a library without a socket reported, if there is
    /// exactly one whose process may have made this connection.
    pub(super) fn library_of(&self, wire: &TlsView, connection: &Connection) -> Option<Key> {
        let dialler = dialler(connection);
        only(self.socketless(wire).filter(|(_, pid)| may_be_of(dialler, *pid)).map(|(key, _)| key))
    }

    /// Returns a handshake with this ClientHello of a library without a socket, in another process than the
    /// one that dials.
    pub(super) fn stranger_of(&self, wire: &TlsView, connection: &Connection) -> Option<Key> {
        let dialler = dialler(connection);
        self.socketless(wire).find(|(_, pid)| !may_be_of(dialler, *pid)).map(|(key, _)| *key)
    }

    /// The handshakes with this ClientHello that libraries without a socket reported, with their processes.
    fn socketless(&self, wire: &TlsView) -> impl Iterator<Item = (&Key, u32)> {
        let keys = random(wire).and_then(|random| self.socketless.get(&random));
        keys.into_iter()
            .flatten()
            .filter_map(|key| Some((key, self.halves.get(key)?.library.as_ref()?.connection.pid)))
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
