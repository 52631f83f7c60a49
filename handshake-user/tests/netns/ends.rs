//! The records of both ends of one connection, and what must hold for all of them.

use std::process;

use serde_json::Value;

use crate::{record::Record, testbed::packet::Side};

/// How many `open` and `close` records each end should report.
#[derive(Clone, Copy)]
pub(crate) struct Expect {
    pub(crate) client: (usize, usize),
    pub(crate) server: (usize, usize),
}

impl Expect {
    pub(crate) const BOTH: Self = Self { client: (1, 1), server: (1, 1) };
    /// The client's attempt failed, so there is nothing to close.
    pub(crate) const CLIENT_FAILED: Self = Self { client: (1, 0), server: (0, 0) };

    pub(crate) fn of(&self, side: Side) -> (usize, usize) {
        match side {
            Side::Client => self.client,
            Side::Server => self.server,
        }
    }
}

/// The records of both ends of one connection.
pub(crate) struct Ends {
    pub(crate) client: Vec<Record>,
    pub(crate) server: Vec<Record>,
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
        let tls = self.all(side).iter().find(|record| record.is_event("tls") || record.get("tls").is_some());
        assert!(tls.is_none(), "TLS of the {side:?}: {}", tls.unwrap());
    }

    #[track_caller]
    fn only(&self, side: Side, event: &str) -> &Record {
        let mut found = self.all(side).iter().filter(|record| record.is_event(event));
        let record = found.next().unwrap_or_else(|| panic!("no {event} record of the {side:?}"));
        assert!(found.next().is_none(), "more than one {event} record of the {side:?}");
        record
    }

    /// The `close` record repeats the sections of the `open` record, and adds when it was accepted.
    #[track_caller]
    pub(crate) fn check_consistent(&self, side: Side) {
        let (open, close) = (self.open(side), self.close(side));
        assert_eq!(open.id(), close.id(), "the id differs between records");
        assert_eq!(opening(open), opening(close), "the `open` section differs between records");
        open.assert_unknown("open.accept_wait_us");
        open.assert_unknown("close");
        // Each end of these scenarios belongs to a single process; a server's opening names the one that
        // listens, which may serve by others.
        let is_certain = open.get("process.by").is_none_or(|by| by != "listener");
        if let (true, Some(before), Some(after)) =
            (is_certain, open.get("process.pid"), close.get("process.pid"))
        {
            assert_eq!(before, after, "the process differs between records");
        }
    }

    /// The tests' own sockets belong to the test process: for the client that is known, for the server it may
    /// be.
    #[track_caller]
    pub(crate) fn check_own_process(&self) {
        self.open(Side::Client).assert_process(process::id());
        self.open(Side::Server).assert_process_or_unknown(process::id());
    }
}

pub(crate) fn count(records: &[Record], event: &str) -> usize {
    records.iter().filter(|record| record.is_event(event)).count()
}

/// The number of `open`, `tls` and `close` records.
pub(crate) fn counts<'a>(records: impl IntoIterator<Item = &'a Record>) -> [usize; 3] {
    let mut counts = [0; 3];
    for record in records {
        for (count, event) in counts.iter_mut().zip(["open", "tls", "close"]) {
            *count += usize::from(record.is_event(event));
        }
    }
    counts
}

/// What must hold for every record of that side.
#[track_caller]
pub(crate) fn check(record: &Record, side: Side) {
    record.assert_well_formed();
    // Both ends of a simultaneous open dial.
    let role = match side {
        Side::Server if record.get("open.simultaneous").is_none() => "server",
        Side::Server | Side::Client => "client",
    };
    record.assert_one_of_or_unknown("role", &[role]);
    let local = record.end("local").unwrap();
    record.assert_is("family", if local.is_ipv4() { "ipv4" } else { "ipv6" });
}

/// The `open` section without what is known only once the connection is accepted.
pub(crate) fn opening(record: &Record) -> Option<Value> {
    let mut section = record.get("open").cloned();
    section.as_mut().and_then(|section| section.as_object_mut()?.remove("accept_wait_us"));
    section
}
