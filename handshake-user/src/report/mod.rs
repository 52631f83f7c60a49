//! The story of many connections: what was counted of them, and the slowest. Pure; [`text`] and [`html`]
//! show it.

pub mod html;
#[cfg(test)]
mod tests;
pub mod text;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::Arc,
    time::{Duration, SystemTime},
};

use handshake_common::{Outcome, Role, TlsOutcome};
use serde::Serialize;

use crate::{
    aggregate::{Aggregate, Grouping, Limits, Member},
    event::{ConnectionEvent, Tls, micros},
    join::journal::ConnectionJournal,
    output::{
        savings::Savings,
        summary::{Row, Summary},
    },
    untrusted::Untrusted,
};

/// Version of the JSON form; it changes when a field changes its meaning, not when one is added.
const SCHEMA: u32 = 1;
/// How many of the slowest connections are kept whole.
const SLOWEST: usize = 10;
/// Different reasons of failures, and different rows of the inventory. What is beyond them is one row more.
const MAX_ROWS: usize = 200;
/// Characters of a name that is a part of a row.
const MAX_NAME: usize = 64;
/// What the row for everything beyond [`MAX_ROWS`] is called.
const OTHER: &str = "other";

/// A report. Durations are microseconds; what is unknown is absent.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Always [`SCHEMA`].
    pub schema: u32,
    /// Records that were read.
    pub records: u64,
    /// Lines that are no records.
    pub bad_lines: u64,
    /// Files whose compressed data ends too early or is damaged: what follows is missing.
    pub cut_off: u64,
    /// Connections that those records tell of.
    pub connections: u64,
    /// Connections that were still open, more than can be remembered: they are in no count but that of the
    /// records.
    pub forgotten: u64,
    /// Records that a live session lost.
    pub lost: u64,
    /// Whose records they are, by the names of the hosts.
    pub hosts: Vec<HostRecords>,
    /// The time of the earliest record, by the wall clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The time of the latest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Durations by stage and class; those of setups, too.
    pub stages: Vec<Row>,
    /// What happened, by service.
    pub services: Vec<Service>,
    /// Handshakes that failed, by reason, the most frequent first.
    pub failures: Vec<Failure>,
    /// What settings would have saved, the one that saves most time first.
    pub savings: Vec<Saving>,
    /// What completed TLS handshakes negotiated, the most frequent first.
    pub inventory: Vec<Negotiated>,
    /// The connections whose setup (or opening, where that is all that is known) took longest, the slowest
    /// first.
    pub slowest: Vec<ConnectionEvent>,
}

/// What was read of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HostRecords {
    /// Its name; `?` for records that name none.
    pub host: String,
    /// Its records.
    pub records: u64,
    /// Connections that those tell of.
    pub connections: u64,
}

/// What happened to the connections of a service.
#[derive(Clone, Debug, Serialize)]
pub struct Service {
    /// `name:port`, without the name where it is unknown.
    pub service: String,
    /// The role of this host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// Openings that ended, however.
    pub openings: u64,
    /// Openings that failed.
    pub failed: u64,
    /// SYNs (client) or SYN-ACKs (server) that were sent again.
    pub syn_retransmits: u64,
    /// TLS handshakes that ended, however.
    pub tls: u64,
    /// TLS handshakes that failed.
    pub tls_failed: u64,
    /// Half of the setups took no longer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub setup_p50_us: Option<u64>,
    /// 99 % of the setups took no longer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub setup_p99_us: Option<u64>,
    /// Round trips that setups took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub round_trips: Option<u64>,
    /// The fewest that they could have taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub round_trips_possible: Option<u64>,
    /// Connections that a RST ended.
    pub resets: u64,
}

/// Handshakes that failed for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// `TCP` or `TLS`.
    pub layer: &'static str,
    /// The role of this host; `?` is unknown.
    pub role: &'static str,
    /// How it ended, and what is known of why.
    pub reason: String,
    /// How many.
    pub count: u64,
}

/// What one setting would have saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Saving {
    /// What to change.
    pub setting: &'static str,
    /// What else belongs to it.
    pub detail: &'static str,
    /// Of how many connections.
    pub connections: u64,
    /// Round trips.
    pub round_trips: u64,
    /// Time, where it is known.
    pub time_us: u64,
    /// Connections whose lost time is unknown.
    pub untimed: u64,
    /// The time in words.
    #[serde(skip)]
    pub lost: String,
}

/// Completed TLS handshakes with the same result. `?` is unknown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Negotiated {
    /// The role of this host.
    pub role: &'static str,
    /// The version of TLS.
    pub version: &'static str,
    /// The kind of handshake.
    pub class: &'static str,
    /// The cipher suite.
    pub cipher: String,
    /// Whose code made it.
    pub library: &'static str,
    /// How many.
    pub count: u64,
}

/// What is known to be missing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Missing {
    /// Lines that are no records.
    pub bad_lines: u64,
    /// Files of which the rest is missing.
    pub cut_off: u64,
    /// Records that a live session lost.
    pub lost: u64,
}

/// Takes records and makes a report of them.
#[derive(Debug)]
pub struct Collector {
    records: u64,
    /// Records and connections of each host.
    hosts: BTreeMap<String, (u64, u64)>,
    connections: u64,
    period: Option<(SystemTime, SystemTime)>,
    summary: Summary,
    services: Aggregate,
    journal: ConnectionJournal,
    savings: Savings,
    failures: BTreeMap<(&'static str, &'static str, String), u64>,
    /// By role, version, class, library and cipher suite.
    inventory: BTreeMap<([&'static str; 4], String), u64>,
    slowest: Vec<(Duration, ConnectionEvent)>,
}

impl Default for Collector {
    fn default() -> Self {
        Self {
            records: 0,
            hosts: BTreeMap::new(),
            connections: 0,
            period: None,
            summary: Summary::default(),
            // Only its totals are shown, so time need not pass.
            services: Aggregate::new(Grouping::Service, Limits::default(), Duration::ZERO),
            journal: ConnectionJournal::awaiting_time_wait(),
            savings: Savings::default(),
            failures: BTreeMap::new(),
            inventory: BTreeMap::new(),
            slowest: Vec::new(),
        }
    }
}

impl Collector {
    /// Takes a record.
    pub fn take(&mut self, record: ConnectionEvent) {
        self.records += 1;
        let (from, to) = self.period.unwrap_or((record.time, record.time));
        self.period = Some((from.min(record.time), to.max(record.time)));
        self.summary.add(&record);
        self.host(&record).0 += 1;
        let record = Arc::new(record);
        self.services.take(&record, Duration::ZERO);
        if let Some(whole) = self.journal.take(Arc::unwrap_or_clone(record)) {
            self.end(whole);
        }
    }

    /// The report.
    #[must_use]
    pub fn finish(mut self, missing: Missing) -> Report {
        for whole in self.journal.finish() {
            self.end(whole);
        }
        let time = |time: SystemTime| humantime::format_rfc3339_micros(time).to_string();
        Report {
            schema: SCHEMA,
            records: self.records,
            bad_lines: missing.bad_lines,
            cut_off: missing.cut_off,
            connections: self.connections,
            forgotten: self.journal.evicted(),
            lost: missing.lost,
            hosts: hosts(self.hosts),
            from: self.period.map(|(from, _)| time(from)),
            to: self.period.map(|(_, to)| time(to)),
            stages: self.summary.rows().collect(),
            services: services(&self.services),
            failures: failures(self.failures),
            savings: savings(&self.savings),
            inventory: inventory(self.inventory),
            slowest: self.slowest.into_iter().map(|(_, record)| record).collect(),
        }
    }

    /// The counts of the host whose record it is.
    fn host(&mut self, record: &ConnectionEvent) -> &mut (u64, u64) {
        let host = record.host.as_ref().map_or_else(|| "?".to_owned(), name);
        let fits = self.hosts.len() < MAX_ROWS || self.hosts.contains_key(&host);
        self.hosts.entry(if fits { host } else { OTHER.to_owned() }).or_default()
    }

    /// Takes a connection that will have no further record.
    fn end(&mut self, whole: ConnectionEvent) {
        self.connections += 1;
        self.host(&whole).1 += 1;
        self.savings.add(&whole);
        self.summary.add_setup(&whole);
        let role = whole.role.map_or("?", |role| role.as_str());
        let opened = whole.open.as_ref().and_then(|open| open.outcome);
        if let Some(outcome) = opened.filter(|&outcome| outcome != Outcome::Established) {
            let reason = outcome.as_str().to_owned();
            count(&mut self.failures, ("TCP", role, reason), |_| ("TCP", role, OTHER.to_owned()));
        }
        if let Some(tls) = &whole.tls {
            let role = tls.role.map_or(role, |role| role.as_str());
            match tls.outcome {
                Some(TlsOutcome::Completed) => {
                    let known = [
                        role,
                        tls.version.map_or("?", |version| version.as_str()),
                        tls.class.map_or("?", |class| class.as_str()),
                        tls.library.map_or("?", |library| library.as_str()),
                    ];
                    let cipher = tls.cipher.as_ref().map_or_else(|| "?".to_owned(), name);
                    count(&mut self.inventory, (known, cipher), |(known, _)| (known, OTHER.to_owned()));
                }
                Some(_) => {
                    count(&mut self.failures, ("TLS", role, why(tls)), |_| ("TLS", role, OTHER.to_owned()));
                }
                None => {}
            }
        }
        let setup = whole.setup.and_then(|setup| setup.duration);
        if let Some(took) = setup.or(whole.open.as_ref().and_then(|open| open.duration)) {
            let place = self.slowest.partition_point(|(other, _)| *other >= took);
            if place < SLOWEST {
                self.slowest.insert(place, (took, whole));
                self.slowest.truncate(SLOWEST);
            }
        }
    }
}

/// Counts a key, or the one that stands for it if there are too many others.
fn count<K: Ord>(counts: &mut BTreeMap<K, u64>, key: K, other: impl FnOnce(K) -> K) {
    let fits = counts.len() < MAX_ROWS || counts.contains_key(&key);
    *counts.entry(if fits { key } else { other(key) }).or_default() += 1;
}

/// Why a TLS handshake failed.
fn why(tls: &Tls) -> String {
    let mut reason = tls.outcome.map_or("?", |outcome| outcome.as_str()).to_owned();
    if let Some(alert) = &tls.alert {
        let from = tls.alert_from.map_or_else(String::new, |role| format!(" from the {role}"));
        let _ = write!(reason, ", alert {}{from}", name(alert));
    }
    if let Some(error) = &tls.error {
        let _ = write!(reason, ", {}", name(error));
    }
    reason
}

/// An untrusted name, cut if it is too long.
fn name(text: &Untrusted) -> String {
    format!("{text:.MAX_NAME$}")
}

fn hosts(counts: BTreeMap<String, (u64, u64)>) -> Vec<HostRecords> {
    let rows = counts.into_iter();
    rows.map(|(host, (records, connections))| HostRecords { host, records, connections }).collect()
}

fn services(aggregate: &Aggregate) -> Vec<Service> {
    let row = |service: String, role, member: &Member| {
        let total = member.activity.total();
        let trips = total.round_trips();
        Service {
            service,
            role,
            openings: total.openings(),
            failed: total.failed(),
            syn_retransmits: total.syn_retransmits(),
            tls: total.handshakes(),
            tls_failed: total.handshakes() - total.shaken(Some(TlsOutcome::Completed)) - total.shaken(None),
            setup_p50_us: total.setup(0.5).map(micros),
            setup_p99_us: total.setup(0.99).map(micros),
            round_trips: trips.map(|trips| trips.taken),
            round_trips_possible: trips.map(|trips| trips.possible),
            resets: total.resets(),
        }
    };
    let mut rows: Vec<_> = aggregate
        .groups()
        .map(|(group, member)| row(group.what.to_string(), group.role.map(Role::as_str), member))
        .collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.openings));
    rows.extend(aggregate.rest().map(|rest| row(OTHER.to_owned(), None, rest)));
    rows
}

fn failures(counts: BTreeMap<(&'static str, &'static str, String), u64>) -> Vec<Failure> {
    let mut rows: Vec<_> = counts
        .into_iter()
        .map(|((layer, role, reason), count)| Failure { layer, role, reason, count })
        .collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.count));
    rows
}

fn savings(savings: &Savings) -> Vec<Saving> {
    let rows = savings.totals().into_iter().map(|(setting, total)| Saving {
        setting: setting.text(),
        detail: setting.detail(),
        connections: total.connections,
        round_trips: total.round_trips,
        time_us: micros(total.time),
        untimed: total.untimed,
        lost: total.lost(),
    });
    rows.collect()
}

fn inventory(counts: BTreeMap<([&'static str; 4], String), u64>) -> Vec<Negotiated> {
    let mut rows: Vec<_> = counts
        .into_iter()
        .map(|(([role, version, class, library], cipher), count)| Negotiated {
            role,
            version,
            class,
            cipher,
            library,
            count,
        })
        .collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.count));
    rows
}
