//! From raw records to stories: what TCP, the library and the wire saw of one connection, put together. Pure: the clock
//! comes from outside.
//!
//! A TLS handshake is told once, when every view that will tell of it has, or has had its time; a closing is told with the
//! handshake that came before it.

pub mod coalesce;
mod hello_fragments;
pub mod merge;
mod pending;
mod recent;

use std::collections::{HashMap, VecDeque};

use handshake_common::{
    Connection, ConnectionFlags, Stage, TlsSource, WirePhase,
    tls::{
        library::session::{self, LibraryHandshake},
        wire::WireHandshake,
    },
};

use self::{
    hello_fragments::HelloFragments,
    pending::{HandshakeView, PartialHandshake, Pending, random},
    recent::Recent,
};
pub use crate::kernel::{probe::WireCoverage, raw_record::RawRecord};
use crate::{
    join::merge::{Fact, merge},
    model::{
        setup::{self, Setup},
        tls::Tls,
    },
};

/// A stage of a connection that ended, and all that was known of the connection by then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionEvent {
    /// The stage that ended.
    pub event: Stage,
    /// The connection. Where its socket is not known, only the process, and a number of the session's in `id`.
    pub connection: Connection,
    /// Whether the connection is known.
    pub is_joined: bool,
    /// Its TLS handshake.
    pub tls: Option<Tls>,
    /// Its setup; for a connection without TLS only at its end, when it is certain that none came.
    pub setup: Option<Setup>,
}

impl ConnectionEvent {
    /// Of a connection alone.
    #[must_use]
    pub fn of(connection: &Connection) -> Self {
        Self {
            event: connection.stage().unwrap_or(Stage::Close),
            connection: *connection,
            is_joined: true,
            tls: None,
            setup: None,
        }
    }
}

/// Which connection: the socket's cookie, and its how-manieth connection.
type Key = (u64, u16);

/// The how-manieth connection of a handshake whose socket is not known.
const NO_SOCKET: u16 = u16::MAX;
/// How long a view waits for the other one that is sure to come. A program may be slow to read the end of its handshake.
const VIEW_TIMEOUT_NS: u64 = 1_000_000_000;
/// How long a library without a socket waits for the wire, which has seen its ClientHello, to tell how it ended.
const UNFINISHED_TIMEOUT_NS: u64 = 60_000_000_000;
/// How long a view waits for another one that may come: a library whose socket is not known.
const OPTIONAL_VIEW_TIMEOUT_NS: u64 = 200_000_000;
/// Connections remembered for their closing; each takes some hundred bytes. The oldest give way.
const MAX_REMEMBERED: usize = 65_536;

/// Puts stories together.
#[derive(Debug, Default)]
pub struct Joiner {
    /// What is seen on the wire.
    wire: WireCoverage,
    /// Bytes of handshakes that go on.
    hello_fragments: HelloFragments,
    /// Handshakes of which the other view has not told yet, and closings that wait for them.
    pending: Pending,
    /// Handshakes that were told, for the closing of their connection.
    told: HashMap<Key, Tls>,
    /// In the order in which they came.
    order: VecDeque<Key>,
    /// Those that the wire alone told of, for a library without a socket that tells of them late.
    wire_only: Recent,
    forgotten: u64,
    disagreements: [u64; Fact::ALL.len()],
}

impl Joiner {
    /// With what the wire shows, it is known how long to wait for it, and who spoke no TLS.
    #[must_use]
    pub fn new(wire: WireCoverage) -> Self {
        Self { wire, ..Self::default() }
    }

    /// Takes a raw record in and tells what is complete by it.
    pub fn take(&mut self, raw: &RawRecord<'_>, now_ns: u64, tell: &mut impl FnMut(&ConnectionEvent)) {
        match raw {
            RawRecord::Connection(connection) if connection.stage() == Some(Stage::Close) => {
                self.closing(connection, now_ns, tell);
            }
            RawRecord::Connection(connection) => tell(&ConnectionEvent::of(connection)),
            RawRecord::LibraryHandshake(handshake) => self.library(handshake, now_ns, tell),
            RawRecord::WireHandshake(wire_handshake) => self.wire_handshake(wire_handshake, now_ns, tell),
            RawRecord::HelloFragment(fragment, bytes) => self.hello_fragments.add(fragment, bytes),
        }
    }

    /// Tells what has waited long enough.
    pub fn expire(&mut self, now_ns: u64, tell: &mut impl FnMut(&ConnectionEvent)) {
        while let Some((key, half)) = self.pending.next_due(now_ns) {
            self.settle(key, half, tell);
        }
    }

    /// Tells all that waits: nothing more comes.
    pub fn finish(&mut self, tell: &mut impl FnMut(&ConnectionEvent)) {
        self.expire(u64::MAX, tell);
    }

    /// How many handshakes were forgotten before their connection closed, for want of room.
    #[must_use]
    pub const fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// How often the two views of a handshake told a fact differently.
    pub fn disagreements(&self) -> impl Iterator<Item = (Fact, u64)> + use<> {
        Fact::ALL.into_iter().zip(self.disagreements)
    }

    /// A library has told.
    fn library(&mut self, raw: &LibraryHandshake, now_ns: u64, tell: &mut impl FnMut(&ConnectionEvent)) {
        let LibraryHandshake { mut connection, ref session } = *raw;
        if session::is_datagram(session) {
            return;
        }
        let tls = Tls::of_library(session);
        let is_joined = connection.id != 0;
        if connection.pid == 0 {
            (connection.pid, connection.comm, connection.cgroup) =
                (session.pid, session.comm, session.cgroup);
        }
        if !is_joined {
            connection.id = session::id(session);
            connection.generation = NO_SOCKET;
        }
        let own = key(&connection);
        // Without a socket, the ClientHello tells which handshake of the wire it is.
        let at = if is_joined { own } else { self.pending.wire_of(&tls).unwrap_or(own) };
        let library = Some(HandshakeView { connection, tls });
        match self.pending.take(at) {
            Some(half) if half.library.is_none() => {
                self.settle(at, PartialHandshake { library, ..half }, tell);
            }
            other => {
                if let Some(half) = other {
                    self.settle(at, half, tell);
                }
                let half = PartialHandshake { library, ..PartialHandshake::default() };
                // Such as an object that a garbage collector frees in its own time: it was told already.
                let hello = half.library.as_ref().and_then(|view| random(&view.tls));
                if !is_joined && hello.is_some_and(|hello| self.wire_only.contains(&hello)) {
                    return;
                }
                let wait = match &half.library {
                    Some(view) if is_joined => {
                        // It was told already, because this was too slow.
                        if self.told.get(&own).is_some_and(|told| told.source == TlsSource::Wire) {
                            return;
                        }
                        if view.connection.wire_is(WirePhase::Handshaking) { VIEW_TIMEOUT_NS } else { 0 }
                    }
                    Some(HandshakeView { tls: Tls { random: Some(random), .. }, .. })
                        if self.wire != WireCoverage::None =>
                    {
                        if self.hello_fragments.has_one_with(random) {
                            UNFINISHED_TIMEOUT_NS
                        } else {
                            OPTIONAL_VIEW_TIMEOUT_NS
                        }
                    }
                    _ => 0,
                };
                if wait == 0 {
                    self.settle(own, half, tell);
                } else {
                    self.pending.put(own, half, now_ns.saturating_add(wait));
                }
            }
        }
    }

    /// The wire has told.
    fn wire_handshake(
        &mut self,
        wire_handshake: &WireHandshake,
        now_ns: u64,
        tell: &mut impl FnMut(&ConnectionEvent),
    ) {
        let tls =
            self.hello_fragments.settle(wire_handshake, |verdict| Tls::of_wire(verdict, wire_handshake));
        let connection = wire_handshake.connection;
        let own = key(&connection);
        if self.told.contains_key(&own) {
            // Its library has told of it alone, because this was too slow.
            return;
        }
        let at =
            if self.pending.get(own).is_some() { own } else { self.pending.library_of(&tls).unwrap_or(own) };
        let library_comes = !connection.tls_session.is_none();
        let wire = Some(HandshakeView { connection, tls });
        match self.pending.take(at) {
            Some(half) if half.wire.is_none() && half.library.is_some() => {
                self.settle(own, PartialHandshake { wire, ..half }, tell);
            }
            other => {
                let wait = if library_comes { VIEW_TIMEOUT_NS } else { OPTIONAL_VIEW_TIMEOUT_NS };
                let half = PartialHandshake { wire, ..other.unwrap_or_default() };
                self.pending.put(own, half, now_ns.saturating_add(wait));
            }
        }
    }

    fn closing(&mut self, connection: &Connection, now_ns: u64, tell: &mut impl FnMut(&ConnectionEvent)) {
        let key = key(connection);
        let library_comes = !connection.tls_session.is_none();
        let waits = self.pending.get(key).map(|half| half.wire.is_some());
        match waits {
            // Its end has come before the end of the handshake, or right behind it.
            _ if library_comes => {
                self.pending.close(key, connection, now_ns.saturating_add(VIEW_TIMEOUT_NS));
            }
            Some(true) => {
                self.pending.close(key, connection, now_ns.saturating_add(OPTIONAL_VIEW_TIMEOUT_NS));
            }
            // The wire would have told before the closing.
            Some(false) => {
                let half = self.pending.take(key).unwrap_or_default();
                self.settle(key, PartialHandshake { closed: Some(*connection), ..half }, tell);
            }
            None => self.close(connection, tell),
        }
    }

    /// Tells of a handshake by the views that there are, and of the closing that has waited for it.
    fn settle(&mut self, key: Key, half: PartialHandshake, tell: &mut impl FnMut(&ConnectionEvent)) {
        let PartialHandshake { library, wire, closed, .. } = half;
        let story = match (library, wire) {
            (Some(library), Some(wire)) => {
                let (tls, disagreements) = merge(library.tls, wire.tls);
                for fact in disagreements {
                    self.disagreements[fact as usize] += 1;
                }
                let mut connection = wire.connection;
                if connection.pid == 0 {
                    let known = library.connection;
                    (connection.pid, connection.comm, connection.cgroup) =
                        (known.pid, known.comm, known.cgroup);
                }
                Some((connection, tls))
            }
            (None, Some(view)) => {
                if let Some(random) = random(&view.tls) {
                    self.wire_only.add(random);
                }
                Some((view.connection, view.tls))
            }
            (Some(view), None) => Some((view.connection, view.tls)),
            (None, None) => None,
        };
        if let Some((mut connection, tls)) = story {
            let is_joined = connection.generation != NO_SOCKET;
            if is_joined {
                self.remember(key, tls.clone());
            } else {
                connection.generation = 0;
            }
            tell(&ConnectionEvent {
                event: Stage::Tls,
                setup: if is_joined { setup::setup(&connection, Some(&tls)) } else { None },
                connection,
                is_joined,
                tls: Some(tls),
            });
        }
        if let Some(closed) = closed {
            self.close(&closed, tell);
        }
    }

    fn remember(&mut self, key: Key, tls: Tls) {
        if self.told.insert(key, tls).is_none() {
            self.order.push_back(key);
        }
        while self.told.len() > MAX_REMEMBERED {
            let Some(oldest) = self.order.pop_front() else { break };
            self.forgotten += u64::from(self.told.remove(&oldest).is_some());
        }
        // Connections that closed have left their place in the order.
        if self.order.len() > 2 * MAX_REMEMBERED {
            self.order.retain(|key| self.told.contains_key(key));
        }
    }

    fn close(&mut self, connection: &Connection, tell: &mut impl FnMut(&ConnectionEvent)) {
        let tls = self.told.remove(&key(connection));
        let none = self.wire == WireCoverage::All
            && !connection.flags.has(ConnectionFlags::PREEXISTING)
            && connection.tls_session.is_none()
            && connection.wire_is(WirePhase::Idle);
        let knows = tls.is_some() || none;
        let setup = if knows { setup::setup(connection, tls.as_ref()) } else { None };
        tell(&ConnectionEvent { tls, setup, ..ConnectionEvent::of(connection) });
    }
}

const fn key(connection: &Connection) -> Key {
    (connection.id, connection.generation)
}

#[cfg(test)]
mod tests;
