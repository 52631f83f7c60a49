//! One scenario: a link, what happened on it, and what the tracer said about it.

use std::{io::Write, net::SocketAddr, process, sync::Arc, thread, time::Duration};

use socket2::Socket;

use crate::{
    record::Record,
    socket,
    testbed::{
        Family, Testbed,
        capture::{Capture, Connection},
        packet::Side,
    },
    tracer::{Log, TimedOut, Tracer},
};

pub(crate) const RTT: Duration = Duration::from_millis(50);
/// Records may come late, but not later than a person would wait.
const TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

pub(crate) fn pause(count: u64) {
    thread::sleep(ms(count));
}

pub(crate) struct Case {
    pub(crate) bed: Testbed,
    log: Arc<Log>,
}

/// An established connection with both its ends in our hands.
pub(crate) struct Pair {
    pub(crate) client: Socket,
    pub(crate) server: Socket,
    pub(crate) connection: Connection,
}

/// How many records each end should give: openings, closings.
#[derive(Clone, Copy)]
pub(crate) struct Expect {
    pub(crate) client: (usize, usize),
    pub(crate) server: (usize, usize),
}

impl Expect {
    pub(crate) const BOTH: Self = Self { client: (1, 1), server: (1, 1) };
    /// The client tried and never got a connection, so that there is nothing to close.
    pub(crate) const CLIENT_FAILED: Self = Self { client: (1, 0), server: (0, 0) };

    fn of(&self, side: Side) -> (usize, usize) {
        match side {
            Side::Client => self.client,
            Side::Server => self.server,
        }
    }
}

/// What the tracer said about both ends of one connection.
pub(crate) struct Ends {
    client: Vec<Record>,
    server: Vec<Record>,
}

impl Case {
    pub(crate) fn new() -> Self {
        Self { log: Tracer::shared(), bed: Testbed::new(RTT) }
    }

    /// The same link, and another tracer.
    pub(crate) fn listen_to(&mut self, log: Arc<Log>) {
        self.log = log;
    }

    /// An ordinary connection, made by an ordinary blocking `connect()`.
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

    /// The only connection of this bed.
    #[track_caller]
    pub(crate) fn connection(&self) -> Connection {
        let connections = self.bed.capture().connections();
        assert_eq!(connections.len(), 1, "{connections:?}");
        connections[0]
    }

    /// What the link carried for this connection, once it carries no more.
    pub(crate) fn flow(&self, connection: Connection) -> Capture {
        self.bed.wait_until_quiet();
        self.bed.capture().of(connection)
    }

    /// Waits for the records of this connection and checks that there are just these, and what must hold for
    /// every record. That no more of them come is looked at when the tracer has ended.
    #[track_caller]
    pub(crate) fn ends(&self, connection: Connection, expect: Expect) -> Ends {
        let about = self.about(connection);
        let end = |side: Side| {
            let (opens, closes) = expect.of(side);
            let enough =
                |records: &[Record]| count(records, "open") >= opens && count(records, "close") >= closes;
            let waited = self.log.wait_for(TIMEOUT, |record| about.is_told_by(record, side), enough);
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
        let end = |side: Side| self.log.matching(|record| about.is_told_by(record, side));
        let ends = Ends { client: end(Side::Client), server: end(Side::Server) };
        for side in [Side::Client, Side::Server] {
            let records = ends.all(side);
            let found = (count(records, "open"), count(records, "close"));
            assert_eq!(found, expect.of(side), "(open, close) records of the {side:?}");
            let seen = counts(records);
            let name = format!("{}, {connection:?}, {side:?}", thread::current().name().unwrap_or("a test"));
            self.log.promise(name, move |all| {
                let found = counts(all.iter().filter(|record| about.is_told_by(record, side)));
                if found == seen {
                    return Ok(());
                }
                Err(format!("(open, tls, close) records were {seen:?} when the test looked, and are {found:?} at the end"))
            });
            for record in records {
                check(record, side);
            }
        }
        if let (Some(client), Some(server)) = (ends.client.first(), ends.server.first()) {
            assert_ne!(client.id(), server.id(), "two ends are two records");
        }
        if expect.client == (1, 1) && expect.server == (1, 1) {
            ends.check_story(Side::Client);
            ends.check_story(Side::Server);
        }
        assert!(self.log.garbage().is_empty(), "no JSON: {:?}", self.log.garbage());
        ends
    }

    fn about(&self, connection: Connection) -> About {
        let namespaces = [Side::Client, Side::Server].map(|side| self.bed.namespace(side).inode());
        About { connection, namespaces }
    }
}

/// One connection of one bed.
#[derive(Clone, Copy)]
struct About {
    connection: Connection,
    namespaces: [u64; 2],
}

impl About {
    fn is_told_by(&self, record: &Record, side: Side) -> bool {
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
            eprintln!("what the tracer said:");
            for record in self.log.matching(concerns) {
                eprintln!("  {record}");
            }
            let stderr = self.log.stderr();
            eprintln!("on its standard error:\n{stderr}");
        }
    }
}

impl Pair {
    /// The connection that this client has just made, or is making.
    pub(crate) fn accepted(client: Socket, listener: &Socket) -> Self {
        let (server, address) = listener.accept().unwrap();
        server.set_read_timeout(client.read_timeout().unwrap()).unwrap();
        let connection = Connection {
            client: address.as_socket().unwrap(),
            server: server.local_addr().unwrap().as_socket().unwrap(),
        };
        Self { client, server, connection }
    }

    /// That side first, then the other.
    pub(crate) fn split(self, first: Side) -> (Socket, Socket) {
        match first {
            Side::Client => (self.client, self.server),
            Side::Server => (self.server, self.client),
        }
    }

    /// Sends something both ways, so that neither end is in the quick-acknowledgement mode of its beginning.
    pub(crate) fn talk(&self) {
        for _ in 0..3 {
            for (mut from, to) in [(&self.client, &self.server), (&self.server, &self.client)] {
                from.write_all(b"a line of talk").unwrap();
                socket::await_input(to);
                to.recv(&mut [std::mem::MaybeUninit::uninit(); 64]).unwrap();
            }
        }
    }

    /// The same after a pause.
    pub(crate) fn finish_after(self, count: u64) -> Connection {
        pause(count);
        self.finish()
    }

    /// An ordinary end: the client closes, the server sees it and closes too.
    pub(crate) fn finish(self) -> Connection {
        drop(self.client);
        socket::drain(&self.server);
        drop(self.server);
        self.connection
    }
}

impl Ends {
    pub(crate) fn all(&self, side: Side) -> &[Record] {
        match side {
            Side::Client => &self.client,
            Side::Server => &self.server,
        }
    }

    #[track_caller]
    pub(crate) fn open(&self, side: Side) -> &Record {
        self.only(side, "open")
    }

    #[track_caller]
    pub(crate) fn close(&self, side: Side) -> &Record {
        self.only(side, "close")
    }

    #[track_caller]
    pub(crate) fn tls(&self, side: Side) -> &Record {
        self.only(side, "tls")
    }

    #[track_caller]
    pub(crate) fn assert_no_tls(&self, side: Side) {
        let told = self.all(side).iter().find(|record| record.is_event("tls") || record.get("tls").is_some());
        assert!(told.is_none(), "TLS of the {side:?}: {}", told.unwrap());
    }

    #[track_caller]
    fn only(&self, side: Side, event: &str) -> &Record {
        let mut found = self.all(side).iter().filter(|record| record.is_event(event));
        let record = found.next().unwrap_or_else(|| panic!("no {event} record of the {side:?}"));
        assert!(found.next().is_none(), "more than one {event} record of the {side:?}");
        record
    }

    /// The closing record tells the whole story, so it repeats what the opening record said.
    #[track_caller]
    fn check_story(&self, side: Side) {
        let (open, close) = (self.open(side), self.close(side));
        assert_eq!(open.id(), close.id(), "one connection, one id");
        assert_eq!(open.get("open"), close.get("open"), "the opening, told twice");
        open.assert_unknown("close");
        // All sockets of these scenarios, and of the programs in them, belong to one process an end.
        if let (Some(before), Some(after)) = (open.get("process.pid"), close.get("process.pid")) {
            assert_eq!(before, after, "the process, told twice");
        }
    }

    /// Ordinary sockets of the tests belong to the test process: its own openings are known, its accepted ones
    /// may be.
    #[track_caller]
    pub(crate) fn check_own_process(&self) {
        self.open(Side::Client).assert_process(process::id());
        self.open(Side::Server).assert_process_or_unknown(process::id());
    }
}

fn count(records: &[Record], event: &str) -> usize {
    records.iter().filter(|record| record.is_event(event)).count()
}

/// Records of openings, TLS handshakes and closings.
fn counts<'a>(records: impl IntoIterator<Item = &'a Record>) -> [usize; 3] {
    let mut counts = [0; 3];
    for record in records {
        for (count, event) in counts.iter_mut().zip(["open", "tls", "close"]) {
            *count += usize::from(record.is_event(event));
        }
    }
    counts
}

#[track_caller]
fn check(record: &Record, side: Side) {
    record.assert_well_formed();
    let role = match side {
        Side::Client => "client",
        Side::Server => "server",
    };
    record.assert_one_of_or_unknown("role", &[role]);
    let local = record.end("local").unwrap();
    record.assert_is("family", if local.is_ipv4() { "ipv4" } else { "ipv6" });
}
