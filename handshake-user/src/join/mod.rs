//! From raw records to events: joins what TCP, the TLS library and the wire saw of one connection, and judges
//! what it means. Pure: the clock comes from outside.
//!
//! A TLS handshake is reported once, when every view that can still report it has done so or has timed out; a
//! close is reported with the handshake that preceded it.
//!
//! [`view`] reads one view of a handshake, [`merge()`] makes one of two, `setup` counts round trips,
//! `flight` and `stall` say when flights passed and what held them up, `build` writes the
//! [`ConnectionEvent`]; [`journal`] keeps events until their connection ends, [`advice`] says what would save
//! time.

pub mod advice;
pub(crate) mod build;
mod failure;
mod flight;
mod hello_fragments;
pub mod journal;
pub mod merge;
mod pending;
mod setup;
mod stall;
pub mod time_wait;
pub mod view;

use handshake_common::{
    Connection, ConnectionFlags, Library, Stage, TlsSource, WirePhase,
    tcp::open,
    tls::{
        library::session::{self, LibraryHandshake, Session},
        wire::WireHandshake,
    },
};

use self::{
    build::Joined,
    hello_fragments::HelloFragments,
    merge::{Fact, merge},
    pending::{HandshakeView, Key, NO_SOCKET, PartialHandshake, Pending, Random, dialler, may_be_of, random},
    time_wait::{Look, News, TimeWaits, Wanted},
    view::TlsView,
};
use crate::{
    bounded_map::BoundedMap,
    event::{ConnectionEvent, Setup},
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
    /// Their values are the processes that dialled, where those are certain.
    wire_only: BoundedMap<Random, Option<u32>>,
    /// Connections that go on after their socket, if somebody looks at the minisockets.
    time_waits: Option<TimeWaits>,
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
            time_waits: None,
            evicted: 0,
            disagreements: [0; Fact::ALL.len()],
        }
    }

    /// From now on connections are followed to the end of TIME_WAIT, by the looks that [`Joiner::wants_look`]
    /// asks for. `ids_are_cookies`: connections are named by the kernel's cookies.
    pub fn follow_time_wait(&mut self, tick_ns: u64, ids_are_cookies: bool) {
        self.time_waits = Some(TimeWaits::new(tick_ns, ids_are_cookies));
    }

    /// The network namespaces whose minisockets are to be looked at now, if it is time. The answer goes to
    /// [`Joiner::looked`], however long that takes.
    pub fn wants_look(&mut self, now_ns: u64) -> Option<Vec<Wanted>> {
        self.time_waits.as_mut()?.wanted(now_ns)
    }

    /// Takes the minisockets that were seen, after every record that was written by then.
    pub fn looked(
        &mut self,
        look: &Look,
        now_ns: u64,
        context: &mut impl Context,
        mut report: impl FnMut(ConnectionEvent),
    ) {
        let coverage = self.wire;
        if let Some(time_waits) = &mut self.time_waits {
            time_waits.looked(look, now_ns, &mut |news| report(told(&news, coverage).event(context)));
        }
    }

    /// Connections of which it is not known how TIME_WAIT ended, and those that were not followed because too
    /// many are.
    #[must_use]
    pub fn time_wait_losses(&self) -> (u64, u64) {
        self.time_waits.as_ref().map_or((0, 0), |waits| (waits.unknown(), waits.refused()))
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
                if let Some(time_waits) = &mut self.time_waits {
                    time_waits.closed(connection, now_ns);
                }
                self.closed(connection, now_ns, report);
            }
            RawRecord::Connection(connection) => {
                let coverage = self.wire;
                if let Some(time_waits) = &mut self.time_waits {
                    time_waits.opened(connection, &mut |news| report(told(&news, coverage)));
                }
                report(Joined::connection(connection));
            }
            RawRecord::LibraryHandshake(handshake) => self.library(handshake, now_ns, report),
            RawRecord::WireHandshake(handshake) => self.wire(handshake, now_ns, report),
            RawRecord::HelloFragment(fragment, bytes) => self.hello_fragments.add(fragment, bytes),
            RawRecord::Minisocket(step) => {
                let coverage = self.wire;
                if let Some(time_waits) = &mut self.time_waits {
                    time_waits.hooked(step, &mut |news| report(told(&news, coverage)));
                }
            }
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
        let mut tls = TlsView::of_library(session);
        let has_socket = connection.id != 0;
        if may_have_begun_before(&connection, session) {
            if self.wire == WireCoverage::All {
                // Otherwise its ClientHello would have been seen.
                return;
            }
            tls.doubt_beginning();
        }
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
        let at = if has_socket { own } else { self.pending.wire_of(&tls, connection.pid).unwrap_or(own) };
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
                let told = hello.and_then(|hello| self.wire_only.get(&hello));
                if !has_socket && told.is_some_and(|dialler| may_be_of(*dialler, connection.pid)) {
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
        if raw.wire.doubted != 0 {
            return self.doubt(key(&raw.connection));
        }
        let tls = self.hello_fragments.settle(raw, |verdict| TlsView::of_wire(verdict, raw));
        let connection = raw.connection;
        let own = key(&connection);
        if self.reported.contains(&own) {
            // Already reported without the wire, which was too slow.
            return;
        }
        let is_relayed = tls.random.is_none_or(|random| self.hello_fragments.has_one_with(&random));
        if !is_relayed
            && let Some(key) = self.pending.stranger_of(&tls, &connection)
            && let Some(half) = self.pending.take(key)
        {
            // No other connection carries its ClientHello: it has none (a pipe, a Unix socket).
            self.settle(key, half, report);
        }
        let at = match self.pending.get(own) {
            Some(_) => own,
            None => self.pending.library_of(&tls, &connection).unwrap_or(own),
        };
        let library_comes = !connection.tls_session.is_none();
        let wire = Some(HandshakeView { connection, tls });
        match self.pending.take(at) {
            Some(half) if half.wire.is_none() && half.library.is_some() => {
                self.settle(own, PartialHandshake { wire, ..half }, report);
            }
            other => {
                let wait = if library_comes { VIEW_TIMEOUT_NS } else { wait_for_answer(&connection) };
                let half = PartialHandshake { wire, ..other.unwrap_or_default() };
                self.pending.put(own, half, now_ns.saturating_add(wait));
            }
        }
    }

    /// The server answered the client's Finished with what may be an alert: what only the wire saw of the end
    /// is no longer certain. It is too late for a record that is out, but not for the one of the close.
    fn doubt(&mut self, own: Key) {
        if let Some(half) = self.pending.get_mut(own) {
            if let Some(view) = half.wire.as_mut() {
                view.tls.doubt();
            }
        } else if let Some(tls) = self.reported.get_mut(&own).filter(|tls| tls.source == TlsSource::Wire) {
            tls.doubt();
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
                    self.wire_only.insert(random, dialler(&view.connection));
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
                time_wait: None,
            });
        }
        if let Some(closed) = closed {
            self.close(&closed, report);
        }
    }

    fn close(&mut self, connection: &Connection, report: Report<'_>) {
        let tls = self.reported.remove(&key(connection));
        let setup = setup_at_close(connection, tls.as_ref(), self.wire);
        report(Joined { tls: tls.as_ref(), setup, ..Joined::connection(connection) });
        if let (Some(time_waits), Some(tls)) = (&mut self.time_waits, tls) {
            time_waits.had_tls(connection, tls);
        }
    }
}

/// Whether the handshake may have been under way, or over, when its library was first probed: the connection
/// is older, no ClientHello was seen on it, and only OpenSSL's own state tells which call is the first.
fn may_have_begun_before(connection: &Connection, session: &Session) -> bool {
    connection.flags.contains(ConnectionFlags::PREEXISTING)
        && connection.wire_is(WirePhase::Idle)
        && session::library(session) != Some(Library::OpenSsl)
}

/// The setup, once nothing more can come to it.
fn setup_at_close(connection: &Connection, tls: Option<&TlsView>, wire: WireCoverage) -> Option<Setup> {
    let none = wire == WireCoverage::All
        && !connection.flags.contains(ConnectionFlags::PREEXISTING)
        && connection.shows_no_tls();
    if tls.is_some() || none { setup::setup(connection, tls) } else { None }
}

/// What became known after the socket, with everything that was known before.
fn told<'a>(news: &News<'a>, wire: WireCoverage) -> Joined<'a> {
    let News { connection, tls, time_wait } = *news;
    let setup = setup_at_close(connection, tls, wire);
    Joined {
        stage: Stage::TimeWait,
        tls,
        setup,
        time_wait: Some(time_wait),
        ..Joined::connection(connection)
    }
}

/// How long the wire's view waits for a library that may report, and for the server's answer to the last
/// flight.
fn wait_for_answer(connection: &Connection) -> u64 {
    let round_trip = open::rtt_us(connection).unwrap_or(0).saturating_mul(1000);
    OPTIONAL_VIEW_TIMEOUT_NS.saturating_add(round_trip).min(VIEW_TIMEOUT_NS)
}

const fn key(connection: &Connection) -> Key {
    (connection.id, connection.generation)
}

#[cfg(test)]
mod tests;
