//! From raw records to events: joins what TCP, the TLS library and the wire saw of one connection, and judges
//! what it means. Pure: the clock comes from outside.
//!
//! A TLS handshake is reported once, when every view that can still report it has done so or has timed out; a
//! close is reported with the handshake that preceded it.
//!
//! [`view`] reads one view of a handshake, [`merge()`] makes one of two, `setup` counts round trips, `build`
//! writes the [`ConnectionEvent`]; [`journal`] keeps events until their connection ends, [`advice`] says what
//! would save time.

pub mod advice;
pub(crate) mod build;
mod failure;
mod hello_fragments;
pub mod journal;
pub mod merge;
mod pending;
mod setup;
pub mod view;

use handshake_common::{
    Connection, ConnectionFlags, Stage, TlsSource, WirePhase,
    tls::{
        library::session::{self, LibraryHandshake},
        wire::WireHandshake,
    },
};

use self::{
    build::Joined,
    hello_fragments::HelloFragments,
    merge::{Fact, merge},
    pending::{HandshakeView, Key, NO_SOCKET, PartialHandshake, Pending, Random, random},
    view::TlsView,
};
use crate::{
    bounded_map::BoundedMap,
    event::ConnectionEvent,
    host::Context,
    kernel::{probe::WireCoverage, raw_record::RawRecord},
};

/// Receives what was joined; the caller turns it into an event.
type Report<'r> = &'r mut dyn FnMut(Joined<'_>);

/// How long a view waits for another that is certain to report: a program may be slow to read the end of its
/// handshake.
const VIEW_TIMEOUT_NS: u64 = 1_000_000_000;
/// How long a library without a socket waits for the wire, which saw its ClientHello, to report the end.
const UNFINISHED_TIMEOUT_NS: u64 = 60_000_000_000;
/// How long a view waits for another that may report: a library whose socket is unknown.
const OPTIONAL_VIEW_TIMEOUT_NS: u64 = 200_000_000;
/// Handshakes kept for the close of their connection, some hundred bytes each. The oldest are evicted.
const MAX_REPORTED: usize = 65_536;
/// Handshakes that only the wire reported, kept for a library that reports late. The oldest are evicted.
const MAX_WIRE_ONLY: usize = 4096;

/// Joins raw records into events.
#[derive(Debug)]
pub struct Joiner {
    /// Which handshakes the wire view sees.
    wire: WireCoverage,
    /// Bytes of handshakes in progress.
    hello_fragments: HelloFragments,
    /// Handshakes that the other view has not reported yet, and closes that wait for them.
    pending: Pending,
    /// Handshakes that were reported, for the close of their connection.
    reported: BoundedMap<Key, TlsView>,
    /// Those that only the wire reported, in case a library without a socket reports them late.
    wire_only: BoundedMap<Random, ()>,
    evicted: u64,
    disagreements: [u64; Fact::ALL.len()],
}

impl Joiner {
    /// The coverage of the wire view decides how long to wait for it, and whether a connection can be said to
    /// use no TLS.
    #[must_use]
    pub fn new(wire: WireCoverage) -> Self {
        Self {
            wire,
            hello_fragments: HelloFragments::default(),
            pending: Pending::default(),
            reported: BoundedMap::new(MAX_REPORTED),
            wire_only: BoundedMap::new(MAX_WIRE_ONLY),
            evicted: 0,
            disagreements: [0; Fact::ALL.len()],
        }
    }

    /// Takes a raw record and reports the events that it completes.
    pub fn take(
        &mut self,
        raw: &RawRecord<'_>,
        now_ns: u64,
        context: &mut impl Context,
        mut report: impl FnMut(ConnectionEvent),
    ) {
        let report: Report<'_> = &mut |joined| report(joined.event(context));
        match raw {
            RawRecord::Connection(connection) if connection.stage() == Some(Stage::Close) => {
                self.closed(connection, now_ns, report);
            }
            RawRecord::Connection(connection) => report(Joined::connection(connection)),
            RawRecord::LibraryHandshake(handshake) => self.library(handshake, now_ns, report),
            RawRecord::WireHandshake(handshake) => self.wire(handshake, now_ns, report),
            RawRecord::HelloFragment(fragment, bytes) => self.hello_fragments.add(fragment, bytes),
        }
    }

    /// Reports what has waited long enough for another view.
    pub fn expire(
        &mut self,
        now_ns: u64,
        context: &mut impl Context,
        mut report: impl FnMut(ConnectionEvent),
    ) {
        while let Some((key, half)) = self.pending.next_due(now_ns) {
            self.settle(key, half, &mut |joined| report(joined.event(context)));
        }
    }

    /// Reports everything that still waits: no more records will come.
    pub fn finish(&mut self, context: &mut impl Context, report: impl FnMut(ConnectionEvent)) {
        self.expire(u64::MAX, context, report);
    }

    /// How many handshakes were evicted before their connection closed.
    #[must_use]
    pub const fn evicted(&self) -> u64 {
        self.evicted
    }

    /// How often the two views of a handshake disagreed on a fact.
    pub fn disagreements(&self) -> impl Iterator<Item = (Fact, u64)> + use<> {
        Fact::ALL.into_iter().zip(self.disagreements)
    }

    /// A library reported a handshake.
    fn library(&mut self, raw: &LibraryHandshake, now_ns: u64, report: Report<'_>) {
        let LibraryHandshake { mut connection, ref session } = *raw;
        if session::is_datagram(session) {
            return;
        }
        let tls = TlsView::of_library(session);
        let has_socket = connection.id != 0;
        connection.take_owner(&Connection {
            pid: session.pid,
            comm: session.comm,
            cgroup: session.cgroup,
            flags: ConnectionFlags::OWNER_HANDSHAKES,
            ..Connection::default()
        });
        if !has_socket {
            connection.id = session::id(session);
            connection.generation = NO_SOCKET;
        }
        let own = key(&connection);
        // Without a socket, the ClientHello identifies the wire's handshake.
        let at = if has_socket { own } else { self.pending.wire_of(&tls).unwrap_or(own) };
        let library = Some(HandshakeView { connection, tls });
        match self.pending.take(at) {
            Some(half) if half.library.is_none() => {
                self.settle(at, PartialHandshake { library, ..half }, report);
            }
            other => {
                if let Some(half) = other {
                    self.settle(at, half, report);
                }
                let half = PartialHandshake { library, ..PartialHandshake::default() };
                // Already reported, for example when a garbage collector frees the session late.
                let hello = half.library.as_ref().and_then(|view| random(&view.tls));
                if !has_socket && hello.is_some_and(|hello| self.wire_only.contains(&hello)) {
                    return;
                }
                let wait = match &half.library {
                    Some(view) if has_socket => {
                        // Already reported without the library, which was too slow.
                        if self.reported.get(&own).is_some_and(|reported| reported.source == TlsSource::Wire)
                        {
                            return;
                        }
                        if view.connection.wire_is(WirePhase::Handshaking) { VIEW_TIMEOUT_NS } else { 0 }
                    }
                    Some(HandshakeView { tls: TlsView { random: Some(random), .. }, .. })
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
                    self.settle(own, half, report);
                } else {
                    self.pending.put(own, half, now_ns.saturating_add(wait));
                }
            }
        }
    }

    /// The wire reported a handshake.
    fn wire(&mut self, raw: &WireHandshake, now_ns: u64, report: Report<'_>) {
        let tls = self.hello_fragments.settle(raw, |verdict| TlsView::of_wire(verdict, raw));
        let connection = raw.connection;
        let own = key(&connection);
        if self.reported.contains(&own) {
            // Already reported without the wire, which was too slow.
            return;
        }
        let at =
            if self.pending.get(own).is_some() { own } else { self.pending.library_of(&tls).unwrap_or(own) };
        let library_comes = !connection.tls_session.is_none();
        let wire = Some(HandshakeView { connection, tls });
        match self.pending.take(at) {
            Some(half) if half.wire.is_none() && half.library.is_some() => {
                self.settle(own, PartialHandshake { wire, ..half }, report);
            }
            other => {
                let wait = if library_comes { VIEW_TIMEOUT_NS } else { OPTIONAL_VIEW_TIMEOUT_NS };
                let half = PartialHandshake { wire, ..other.unwrap_or_default() };
                self.pending.put(own, half, now_ns.saturating_add(wait));
            }
        }
    }

    fn closed(&mut self, connection: &Connection, now_ns: u64, report: Report<'_>) {
        let key = key(connection);
        let library_comes = !connection.tls_session.is_none();
        let waits = self.pending.get(key).map(|half| half.wire.is_some());
        match waits {
            // The connection ended before its handshake did, or right after it.
            _ if library_comes => {
                self.pending.close(key, connection, now_ns.saturating_add(VIEW_TIMEOUT_NS));
            }
            Some(true) => {
                self.pending.close(key, connection, now_ns.saturating_add(OPTIONAL_VIEW_TIMEOUT_NS));
            }
            // The wire would have reported before the close.
            Some(false) => {
                let half = self.pending.take(key).unwrap_or_default();
                self.settle(key, PartialHandshake { closed: Some(*connection), ..half }, report);
            }
            None => self.close(connection, report),
        }
    }

    /// Reports a handshake by the views at hand, and the close that waited for it.
    fn settle(&mut self, key: Key, half: PartialHandshake, report: Report<'_>) {
        let PartialHandshake { library, wire, closed, .. } = half;
        let joined = match (library, wire) {
            (Some(library), Some(wire)) => {
                let (tls, disagreements) = merge(library.tls, wire.tls);
                for fact in disagreements {
                    self.disagreements[fact as usize] += 1;
                }
                let mut connection = wire.connection;
                connection.take_owner(&library.connection);
                Some((connection, tls))
            }
            (None, Some(view)) => {
                if let Some(random) = random(&view.tls) {
                    self.wire_only.insert(random, ());
                }
                Some((view.connection, view.tls))
            }
            (Some(view), None) => Some((view.connection, view.tls)),
            (None, None) => None,
        };
        if let Some((mut connection, tls)) = joined {
            let has_socket = connection.generation != NO_SOCKET;
            if has_socket {
                self.evicted += u64::from(self.reported.insert(key, tls.clone()).is_some());
            } else {
                connection.generation = 0;
            }
            report(Joined {
                stage: Stage::Tls,
                connection: &connection,
                has_socket,
                tls: Some(&tls),
                setup: if has_socket { setup::setup(&connection, Some(&tls)) } else { None },
            });
        }
        if let Some(closed) = closed {
            self.close(&closed, report);
        }
    }

    fn close(&mut self, connection: &Connection, report: Report<'_>) {
        let tls = self.reported.remove(&key(connection));
        let none = self.wire == WireCoverage::All
            && !connection.flags.contains(ConnectionFlags::PREEXISTING)
            && connection.tls_session.is_none()
            && connection.wire_is(WirePhase::Idle);
        let knows = tls.is_some() || none;
        let setup = if knows { setup::setup(connection, tls.as_ref()) } else { None };
        report(Joined { tls: tls.as_ref(), setup, ..Joined::connection(connection) });
    }
}

const fn key(connection: &Connection) -> Key {
    (connection.id, connection.generation)
}

#[cfg(test)]
mod tests;
