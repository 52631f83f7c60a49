//! From raw records to stories: what TCP, the library and the wire saw of one connection, put together. Pure: the clock
//! comes from outside.
//!
//! A TLS handshake is told once, when every view that will tell of it has; a closing is told with the handshake that came
//! before it.

use std::collections::{HashMap, VecDeque};

use handshake_common::{
    Connection, Facts, Stage,
    tls::session::{self, Handshake, TlsFacts},
};

use crate::model::{
    setup::{self, Setup},
    tls::Tls,
};

/// A stage of a connection that ended, and all that was known of the connection by then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Story {
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

impl Story {
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

/// What came out of the ring.
#[derive(Clone, Copy, Debug)]
pub enum Raw {
    /// An opening or a closing.
    Connection(Connection),
    /// A TLS handshake, as its library's calls showed it.
    Handshake(Handshake),
}

impl Raw {
    /// Reads a raw record; its first byte tells its kind.
    ///
    /// # Errors
    /// `None` for a shape that this program does not know.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        match Stage::from_code(*bytes.first()?)? {
            Stage::Open | Stage::Close => Connection::from_bytes(bytes).map(Self::Connection),
            Stage::Tls => Handshake::from_bytes(bytes).map(Self::Handshake),
        }
    }
}

/// Which connection: the socket's cookie, and its how-manieth connection.
type Key = (u64, u16);

/// How long a closing waits for the end of a handshake that its socket is still known to have.
const PATIENCE_NS: u64 = 1_000_000_000;
/// Connections remembered for their closing; each takes some hundred bytes. The oldest give way.
const MOST_REMEMBERED: usize = 65_536;

/// Puts stories together.
#[derive(Debug, Default)]
pub struct Assembler {
    /// Handshakes that were told, for the closing of their connection.
    told: HashMap<Key, Tls>,
    /// In the order in which they came.
    order: VecDeque<Key>,
    /// Closings that wait for their handshake, with the time until which they do.
    waiting: VecDeque<(u64, Connection)>,
    /// Whether every TLS handshake of the host is seen, so that a connection without one has none.
    sees_all: bool,
    forgotten: u64,
}

impl Assembler {
    /// With `sees_all`, a connection of which no handshake is told made none.
    #[must_use]
    pub fn new(sees_all: bool) -> Self {
        Self { sees_all, ..Self::default() }
    }

    /// Takes a raw record in and tells what is complete by it.
    pub fn take(&mut self, raw: &Raw, now_ns: u64, tell: &mut impl FnMut(&Story)) {
        match raw {
            Raw::Connection(connection) if connection.stage() == Some(Stage::Close) => {
                if connection.tls_session != 0 {
                    self.waiting.push_back((now_ns.saturating_add(PATIENCE_NS), *connection));
                } else {
                    self.close(connection, tell);
                }
            }
            Raw::Connection(connection) => tell(&Story::of(connection)),
            Raw::Handshake(handshake) => self.handshake(handshake, tell),
        }
    }

    /// Tells what has waited long enough.
    pub fn expire(&mut self, now_ns: u64, tell: &mut impl FnMut(&Story)) {
        while self.waiting.front().is_some_and(|(until, _)| *until <= now_ns) {
            if let Some((_, connection)) = self.waiting.pop_front() {
                self.close(&connection, tell);
            }
        }
    }

    /// Tells all that waits: nothing more comes.
    pub fn finish(&mut self, tell: &mut impl FnMut(&Story)) {
        self.expire(u64::MAX, tell);
    }

    /// How many handshakes were forgotten before their connection closed, for want of room.
    #[must_use]
    pub const fn forgotten(&self) -> u64 {
        self.forgotten
    }

    fn handshake(&mut self, raw: &Handshake, tell: &mut impl FnMut(&Story)) {
        let Handshake { connection, session } = raw;
        let tls = Tls::of_library(session);
        let is_joined = connection.id != 0;
        let mut connection = *connection;
        if connection.pid == 0 {
            (connection.pid, connection.comm, connection.cgroup) =
                (session.pid, session.comm, session.cgroup);
        }
        if !is_joined {
            connection.id = session::key(session.object, session.pid) ^ session.begun_ns;
        }
        let story = Story {
            event: Stage::Tls,
            setup: if is_joined { setup::setup(&connection, Some(&tls)) } else { None },
            connection,
            is_joined,
            tls: Some(tls),
        };
        tell(&story);
        let Story { tls: Some(tls), .. } = story else { return };
        if is_joined {
            self.remember(key(&connection), tls);
            // Its socket was destroyed after the change to CLOSE: the closing has waited for this.
            if session.facts.has(TlsFacts::SOCKET_CLOSED)
                && let Some(at) =
                    self.waiting.iter().position(|(_, waiting)| key(waiting) == key(&connection))
                && let Some((_, closed)) = self.waiting.remove(at)
            {
                self.close(&closed, tell);
            }
        }
    }

    fn remember(&mut self, key: Key, tls: Tls) {
        if self.told.insert(key, tls).is_none() {
            self.order.push_back(key);
        }
        while self.told.len() > MOST_REMEMBERED {
            let Some(oldest) = self.order.pop_front() else { break };
            self.forgotten += u64::from(self.told.remove(&oldest).is_some());
        }
        // Connections that closed have left their place in the order.
        if self.order.len() > 2 * MOST_REMEMBERED {
            self.order.retain(|key| self.told.contains_key(key));
        }
    }

    fn close(&mut self, connection: &Connection, tell: &mut impl FnMut(&Story)) {
        let tls = self.told.remove(&key(connection));
        let knows = tls.is_some() || (self.sees_all && !connection.facts.has(Facts::PREEXISTING));
        let setup = if knows { setup::setup(connection, tls.as_ref()) } else { None };
        tell(&Story { tls, setup, ..Story::of(connection) });
    }
}

const fn key(connection: &Connection) -> Key {
    (connection.id, connection.generation)
}

#[cfg(test)]
mod tests {
    use handshake_common::{Role, TlsOutcome, tls::session::Session};

    use super::*;
    use crate::record::tests::{client, closed_out_of_sight};

    fn handshake(connection: Connection) -> Raw {
        let mut session = Session { pid: 7, object: 0x5000, role: Role::Client.code(), ..Session::default() };
        (session.begun_ns, session.library) = (1_051_000_000, 1);
        session.end(TlsOutcome::Completed, 1_102_000_000);
        Raw::Handshake(Handshake { connection, session })
    }

    fn told(assembler: &mut Assembler, raws: &[Raw], now_ns: u64) -> Vec<Story> {
        let mut stories = Vec::new();
        for raw in raws {
            assembler.take(raw, now_ns, &mut |story| stories.push(story.clone()));
        }
        assembler.expire(now_ns, &mut |story| stories.push(story.clone()));
        stories
    }

    #[test]
    fn the_closing_tells_the_whole_story() {
        let mut assembler = Assembler::new(false);
        let raws = [Raw::Connection(client()), handshake(client()), Raw::Connection(closed_out_of_sight())];
        let stories = told(&mut assembler, &raws, 0);
        assert_eq!(
            stories.iter().map(|story| story.event).collect::<Vec<_>>(),
            [Stage::Open, Stage::Tls, Stage::Close]
        );
        assert_eq!(stories[2].tls, stories[1].tls);
        assert_eq!(stories[2].setup, stories[1].setup);
        assert!(assembler.told.is_empty());
    }

    #[test]
    fn a_closing_waits_for_the_handshake_of_its_socket() {
        let mut assembler = Assembler::new(false);
        let closed = Connection { tls_session: 9, ..closed_out_of_sight() };
        assert_eq!(told(&mut assembler, &[Raw::Connection(closed)], 0), []);
        let Raw::Handshake(mut abandoned) = handshake(client()) else { unreachable!() };
        abandoned.session.facts.set_if(TlsFacts::SOCKET_CLOSED, true);
        let stories = told(&mut assembler, &[Raw::Handshake(abandoned)], 1);
        assert_eq!(stories.len(), 2);
        assert!(stories[1].event == Stage::Close && stories[1].tls.is_some());
        assert_eq!(told(&mut assembler, &[Raw::Connection(closed)], 2), []);
        assert_eq!(told(&mut assembler, &[], 2 + PATIENCE_NS).len(), 1, "but not for ever");
    }

    #[test]
    fn a_handshake_without_a_socket_stands_alone() {
        let mut assembler = Assembler::new(false);
        let [story] = &told(&mut assembler, &[handshake(Connection::default())], 0)[..] else { panic!() };
        assert!(!story.is_joined && story.setup.is_none());
        assert_eq!(story.connection.pid, 7);
        assert_ne!(story.connection.id, 0);
        assert!(assembler.told.is_empty());
    }

    #[test]
    fn only_who_sees_all_can_say_that_there_was_no_tls() {
        for (sees_all, expected) in [(true, Some(1)), (false, None)] {
            let stories = told(&mut Assembler::new(sees_all), &[Raw::Connection(closed_out_of_sight())], 0);
            assert_eq!(stories[0].setup.and_then(|setup| setup.round_trips), expected);
        }
    }

    #[test]
    fn memory_is_bounded_and_what_is_forgotten_is_counted() {
        let mut assembler = Assembler::new(false);
        let most = MOST_REMEMBERED as u64;
        for id in 1..=most + 10 {
            assembler.take(&handshake(Connection { id, ..client() }), 0, &mut |_| ());
        }
        assert_eq!(assembler.told.len(), MOST_REMEMBERED);
        assert_eq!(assembler.forgotten(), 10);
        for id in 1..=most * 2 {
            let closed = Connection { id, ..closed_out_of_sight() };
            assembler.take(&handshake(Connection { id, ..client() }), 0, &mut |_| ());
            assembler.take(&Raw::Connection(closed), 0, &mut |_| ());
        }
        assert!(assembler.order.len() <= 2 * MOST_REMEMBERED + 1);
    }
}
