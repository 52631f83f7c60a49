//! One scenario: a link, what it carried, and the tracer's records about it.

use std::{net::SocketAddr, sync::Arc, thread, time::Duration};

use socket2::Socket;

use crate::{
    ends::{self, Ends, Expect, count, counts},
    log::{Log, TimedOut},
    pair::Pair,
    program::machine::patience,
    record::Record,
    testbed::{
        Family, Testbed,
        capture::{Capture, Connection},
        packet::Side,
    },
    tracer::Tracer,
};

pub(crate) const RTT: Duration = Duration::from_millis(50);
/// How long TIME_WAIT may take to end, and to be seen to.
const TIME_WAIT: Duration = Duration::from_secs(90);
/// How long a record may take to arrive.
const TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) const fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

pub(crate) fn pause(count: u64) {
    thread::sleep(ms(count));
}

pub(crate) struct Case {
    pub(crate) bed: Testbed,
    log: Arc<Log>,
}

impl Case {
    pub(crate) fn new() -> Self {
        Self::over(RTT)
    }

    /// Over a link with another delay.
    pub(crate) fn over(rtt: Duration) -> Self {
        Self { log: Tracer::shared(), bed: Testbed::new(rtt) }
    }

    /// Takes the records from another tracer.
    pub(crate) fn listen_to(&mut self, log: Arc<Log>) {
        self.log = log;
    }

    /// A connection opened by a blocking `connect()`.
    pub(crate) fn establish(&self, family: Family) -> Pair {
        self.establish_with(family, |_| (), |_| ())
    }

    pub(crate) fn establish_with(
        &self,
        family: Family,
        prepare_client: impl FnOnce(&Socket),
        prepare_listener: impl FnOnce(&Socket),
    ) -> Pair {
        let (listener, address) = self.bed.listen_on(Side::Server, family, prepare_listener);
        let client = self.bed.socket(Side::Client, family);
        prepare_client(&client);
        client.connect(&address.into()).unwrap();
        Pair::accepted(client, &listener)
    }

    /// The only connection of this testbed.
    #[track_caller]
    pub(crate) fn connection(&self) -> Connection {
        let connections = self.bed.capture().connections();
        assert_eq!(connections.len(), 1, "{connections:?}");
        connections[0]
    }

    /// What the link carried for this connection, once it is quiet.
    pub(crate) fn flow(&self, connection: Connection) -> Capture {
        self.bed.wait_until_quiet();
        self.bed.capture().of(connection)
    }

    /// Waits for the records of this connection, and checks that there are exactly as many as expected and
    /// what must hold for each. That no more arrive later is checked when the tracer has ended.
    #[track_caller]
    pub(crate) fn ends(&self, connection: Connection, expect: Expect) -> Ends {
        let about = self.about(connection);
        let end = |side: Side| {
            let (opens, closes) = expect.of(side);
            let enough =
                |records: &[Record]| count(records, "open") >= opens && count(records, "close") >= closes;
            let waited = self.log.wait_for(patience(TIMEOUT), |record| about.matches(record, side), enough);
            waited.unwrap_or_else(|TimedOut(records)| {
                let found = (count(&records, "open"), count(&records, "close"));
                panic!(
                    "(open, close) records of the {side:?} after {TIMEOUT:?}: {found:?}, not {:?}",
                    expect.of(side)
                )
            });
        };
        end(Side::Client);
        end(Side::Server);
        let end = |side: Side| self.log.matching(|record| about.matches(record, side));
        let ends = Ends { client: end(Side::Client), server: end(Side::Server) };
        for side in [Side::Client, Side::Server] {
            let records = ends.all(side);
            let found = (count(records, "open"), count(records, "close"));
            assert_eq!(found, expect.of(side), "(open, close) records of the {side:?}");
            let seen = counts(records);
            let name = format!("{}, {connection:?}, {side:?}", thread::current().name().unwrap_or("a test"));
            self.log.check_at_end(name, move |all| {
                let found = counts(all.iter().filter(|record| about.matches(record, side)));
                if found == seen {
                    return Ok(());
                }
                Err(format!("(open, tls, close) records: {seen:?} during the test, {found:?} at the end"))
            });
            for record in records {
                ends::check(record, side);
            }
        }
        if let (Some(client), Some(server)) = (ends.client.first(), ends.server.first()) {
            assert_ne!(client.id(), server.id(), "both ends have the same id");
        }
        if expect.client == (1, 1) && expect.server == (1, 1) {
            ends.check_consistent(Side::Client);
            ends.check_consistent(Side::Server);
        }
        assert!(self.log.garbage().is_empty(), "lines that are not JSON: {:?}", self.log.garbage());
        ends
    }

    /// Waits for what becomes known after the socket of this connection: `late_fin`, or how TIME_WAIT ended.
    #[track_caller]
    pub(crate) fn time_wait(&self, connection: Connection, side: Side, what: &str) -> Record {
        let about = self.about(connection);
        let is_it = |record: &Record| {
            record.is_event("time_wait")
                && about.matches(record, side)
                && record.text("close.time_wait_end").unwrap_or("late_fin") == what
        };
        match self.log.wait_for(TIME_WAIT, is_it, |found| !found.is_empty()) {
            Ok(found) => {
                assert_eq!(found.len(), 1, "{what} is told more than once: {found:?}");
                ends::check(&found[0], side);
                found[0].clone()
            }
            Err(TimedOut(_)) => {
                panic!("no time_wait record of the {side:?} tells {what} within {TIME_WAIT:?}")
            }
        }
    }

    /// The open record with this id, of a connection with these ends.
    #[track_caller]
    pub(crate) fn open_of(&self, connection: Connection, side: Side, id: &str) -> Record {
        let about = self.about(connection);
        let is_it =
            |record: &Record| record.is_event("open") && record.id() == id && about.matches(record, side);
        let found = self.log.wait_for(TIMEOUT, is_it, |found| !found.is_empty());
        found.unwrap_or_else(|TimedOut(_)| panic!("no connection {id} of the {side:?}")).remove(0)
    }

    /// The records like this, none or more.
    pub(crate) fn matching(&self, matches: impl Fn(&Record) -> bool) -> Vec<Record> {
        self.log.matching(matches)
    }

    /// Waits for a record like this.
    #[track_caller]
    pub(crate) fn records_of(&self, matches: impl Fn(&Record) -> bool) -> Vec<Record> {
        let found = self.log.wait_for(patience(TIMEOUT), matches, |records| !records.is_empty());
        found.unwrap_or_else(|TimedOut(_)| panic!("no such record after {TIMEOUT:?}"))
    }

    fn about(&self, connection: Connection) -> About {
        let namespaces = [Side::Client, Side::Server].map(|side| self.bed.namespace(side).inode());
        About { connection, namespaces }
    }
}

/// Identifies one connection of one testbed.
#[derive(Clone, Copy)]
struct About {
    connection: Connection,
    namespaces: [u64; 2],
}

impl About {
    fn matches(&self, record: &Record, side: Side) -> bool {
        record.end("local") == Some(self.connection.end(side))
            && record.end("remote") == Some(self.connection.end(side.other()))
            && record.number("netns").is_none_or(|netns| self.namespaces.contains(&netns))
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        if thread::panicking() {
            let ours = [Family::V4, Family::V6]
                .map(|family| [Side::Client, Side::Server].map(|side| self.bed.address(side, family)));
            let concerns = |record: &Record| {
                let ip = record.end("local").map(|end: SocketAddr| end.ip());
                ip.is_some_and(|ip| ours.as_flattened().contains(&ip))
            };
            eprintln!("records of the tracer:");
            for record in self.log.matching(concerns) {
                eprintln!("  {record}");
            }
            let stderr = self.log.stderr();
            eprintln!("its standard error:\n{stderr}");
        }
    }
}
