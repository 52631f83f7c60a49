//! What happened of late, beyond what the metrics keep: the host's counts at regular times, and connections
//! in groups. Pure; time is passed in, of a clock that never goes back.

use std::{sync::Arc, time::Duration};

use handshake_common::{Stage, totals::Totals};

use super::history::{Counts, Handshakes, History, SPAN};
use crate::{
    aggregate::{Aggregate, Grouping, Limits, Recent, Span},
    event::ConnectionEvent,
    output::rows::{Column, Row, Scope, rows},
};

/// Slow connections, and failed ones, that are shown.
const NOTABLE: usize = 16;
/// Groups of each kind: each may have some kilobytes of durations for every sixth of the window.
const GROUPS: usize = 32;
/// Open connections that may still move to another group.
const PLACED: usize = 4_096;

/// What happened of late.
#[derive(Debug)]
pub struct Lately {
    all_records: bool,
    by: [Aggregate; 2],
    handshakes: Handshakes,
    history: History,
}

impl Lately {
    /// Nothing yet.
    #[must_use]
    pub fn new(now: Duration) -> Self {
        let by = |grouping, notable| {
            let span = Span::of(SPAN);
            let limits =
                Limits { groups: GROUPS, recent: 0, notable, placed: PLACED, span, ..Limits::default() };
            Aggregate::new(grouping, limits, now)
        };
        Self {
            all_records: false,
            by: [by(Grouping::Process, NOTABLE), by(Grouping::Service, 0)],
            handshakes: Handshakes::default(),
            history: History::default(),
        }
    }

    /// Whether every connection has records; otherwise only those with TLS have all of theirs.
    pub const fn set_all_records(&mut self, all_records: bool) {
        self.all_records = all_records;
    }

    /// Takes an event.
    pub fn take(&mut self, event: ConnectionEvent, now: Duration) {
        if let (Stage::Tls, Some(tls)) = (event.stage, &event.tls) {
            self.handshakes.count(event.role, tls.outcome);
        }
        // Some connections without TLS have a record for the sake of TIME_WAIT: they stand for no others.
        if self.all_records || event.tls.is_some() {
            let event = Arc::new(event);
            self.by.iter_mut().for_each(|groups| groups.take(&event, now));
        }
    }

    /// Whether it is time for [`Lately::sample`].
    #[must_use]
    pub fn wants_sample(&self, now: Duration) -> bool {
        self.history.is_due(now)
    }

    /// Takes what the kernel side has counted by now.
    pub fn sample(&mut self, totals: &Totals, now: Duration) {
        self.history.add(now, Counts::of(totals, &self.handshakes));
    }

    /// What there is to show now.
    pub fn shown(&mut self, now: Duration) -> Shown {
        let sort = if self.all_records { Column::Openings } else { Column::Tls };
        let groups = self.by.each_mut().map(|aggregate| {
            aggregate.advance(now);
            let table = |scope: Scope| {
                let mut rows = rows(aggregate, scope, sort, false);
                rows.retain(|row| !row.tally.is_empty());
                Table { length: scope.length(aggregate), rows }
            };
            Groups {
                grouping: aggregate.grouping(),
                lately: table(Scope::Window),
                total: table(Scope::Total),
            }
        });
        let connections = |recent: &Recent| recent.iter().cloned().collect();
        let [all, _] = &self.by;
        let (slow, failed) = (connections(all.slow()), connections(all.failed()));
        Shown { all_records: self.all_records, history: self.history.clone(), groups, slow, failed }
    }
}

/// What there is to show.
#[derive(Debug)]
pub struct Shown {
    pub(super) all_records: bool,
    pub(super) history: History,
    pub(super) groups: [Groups; 2],
    pub(super) slow: Vec<Arc<ConnectionEvent>>,
    pub(super) failed: Vec<Arc<ConnectionEvent>>,
}

/// Connections that belong together.
#[derive(Debug)]
pub(super) struct Groups {
    pub(super) grouping: Grouping,
    pub(super) lately: Table,
    pub(super) total: Table,
}

/// Those in which something happened in this time, the busiest first.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) length: Duration,
    pub(super) rows: Vec<Row>,
}

#[cfg(test)]
mod tests {
    use handshake_common::{Role, TlsClass, TlsVersion};

    use super::*;
    use crate::event::testing::{closed, opened, with_tls};

    const BEGAN: Duration = Duration::from_hours(1);

    #[test]
    fn connections_without_tls_are_in_groups_only_where_all_have_records() {
        for (all_records, openings, setups) in [(false, 0, 1), (true, 1, 2)] {
            let mut lately = Lately::new(BEGAN);
            lately.set_all_records(all_records);
            let tls = with_tls(Role::Client, TlsVersion::Tls13, TlsClass::Full);
            for event in [opened(Role::Client), closed(Role::Client), tls] {
                lately.take(event, BEGAN);
            }
            for groups in lately.shown(BEGAN).groups {
                let tallies = || groups.lately.rows.iter().map(|row| &row.tally);
                let counted = (
                    tallies().map(crate::aggregate::Tally::openings).sum::<u64>(),
                    tallies().map(crate::aggregate::Tally::setups).sum::<u64>(),
                );
                assert_eq!(counted, (openings, setups), "{:?}", groups.grouping);
            }
        }
    }

    #[test]
    fn what_is_older_than_five_minutes_is_in_the_total_only() {
        let mut lately = Lately::new(BEGAN);
        lately.take(with_tls(Role::Client, TlsVersion::Tls13, TlsClass::Full), BEGAN);
        let sizes = |shown: &Shown| (shown.groups[0].lately.rows.len(), shown.groups[0].total.rows.len());
        assert_eq!(sizes(&lately.shown(BEGAN)), (1, 1));
        assert_eq!(sizes(&lately.shown(BEGAN + SPAN)), (0, 1));
    }
}
