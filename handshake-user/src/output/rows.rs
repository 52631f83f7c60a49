//! Groups of connections as a table, of `top` and of the daemon's page: its columns, their values and order.

use std::{cmp::Ordering, time::Duration};

use handshake_common::{TlsClass, TlsOutcome, TlsVersion};

use crate::{
    aggregate::{Aggregate, Group, Grouping, Member, Tally},
    output::text::duration,
};

/// Identifies a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RowId {
    Group(Group),
    /// The groups for which there was no room.
    Rest,
}

/// Which time the numbers are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    Window,
    Total,
}

impl Scope {
    /// What happened in that time.
    pub(crate) fn tally(self, member: &Member) -> Tally {
        match self {
            Self::Window => member.activity.window(),
            Self::Total => member.activity.total().clone(),
        }
    }

    /// How long that is.
    pub(crate) fn length(self, aggregate: &Aggregate) -> Duration {
        match self {
            Self::Window => aggregate.covered(),
            Self::Total => aggregate.age(),
        }
    }
}

/// One group.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) id: RowId,
    pub(crate) name: String,
    role: &'static str,
    /// Openings a second. `None`: not enough time has passed.
    rate: Option<f64>,
    pub(crate) tally: Tally,
}

/// The rows in the order of a column. The rest is always last.
pub(crate) fn rows(aggregate: &Aggregate, scope: Scope, sort: Column, reverse: bool) -> Vec<Row> {
    let length = scope.length(aggregate);
    let row = |id: RowId, member: &Member| {
        let tally = scope.tally(member);
        let (name, role) = match &id {
            RowId::Group(group) => (group.what.to_string(), group.role.map_or("?", |role| role.as_str())),
            RowId::Rest => ("(others)".to_owned(), ""),
        };
        Row { id, name, role, rate: rate(tally.openings(), length), tally }
    };
    let mut rows: Vec<Row> =
        aggregate.groups().map(|(group, member)| row(RowId::Group(group.clone()), member)).collect();
    rows.sort_by(|a, b| {
        let order = sort.compare(a, b);
        if reverse { order.reverse() } else { order }
    });
    rows.extend(aggregate.rest().map(|rest| row(RowId::Rest, rest)));
    rows
}

/// Events a second.
pub(crate) fn rate(count: u64, length: Duration) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "shown with few digits")]
    (length >= Duration::from_secs(1)).then(|| count as f64 / length.as_secs_f64())
}

/// A column, in the order on screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Column {
    Name,
    Role,
    Openings,
    Failed,
    Retransmits,
    Tls,
    TlsFailed,
    Full,
    Resumed,
    Retried,
    Tls13,
    Tls12,
    Older,
    P50,
    P99,
    RoundTrips,
    Resets,
}

impl Column {
    pub(crate) const ALL: [Self; 17] = [
        Self::Name,
        Self::Role,
        Self::Openings,
        Self::Failed,
        Self::Retransmits,
        Self::Tls,
        Self::TlsFailed,
        Self::Full,
        Self::Resumed,
        Self::Retried,
        Self::Tls13,
        Self::Tls12,
        Self::Older,
        Self::P50,
        Self::P99,
        Self::RoundTrips,
        Self::Resets,
    ];

    /// The order in which columns are added while there is room.
    const BY_IMPORTANCE: [Self; 17] = [
        Self::Name,
        Self::Openings,
        Self::Failed,
        Self::P50,
        Self::P99,
        Self::Role,
        Self::Tls,
        Self::Retransmits,
        Self::RoundTrips,
        Self::Resets,
        Self::TlsFailed,
        Self::Tls13,
        Self::Tls12,
        Self::Older,
        Self::Full,
        Self::Resumed,
        Self::Retried,
    ];

    pub(crate) const fn heading(self, grouping: Grouping) -> &'static str {
        match self {
            Self::Name => match grouping {
                Grouping::Process => "PROCESS",
                Grouping::Service => "SERVICE",
                Grouping::Network => "NETWORK",
            },
            Self::Role => "ROLE",
            Self::Openings => "OPEN/S",
            Self::Failed => "FAILED",
            Self::Retransmits => "RETR",
            Self::Tls => "TLS",
            Self::TlsFailed => "TLS ERR",
            Self::Full => "FULL",
            Self::Resumed => "RESUMED",
            Self::Retried => "RETRIED",
            Self::Tls13 => "1.3",
            Self::Tls12 => "1.2",
            Self::Older => "≤1.1",
            Self::P50 => "P50",
            Self::P99 => "P99",
            Self::RoundTrips => "TRIPS",
            Self::Resets => "RST",
        }
    }

    /// What it is, for the help.
    pub(crate) const fn meaning(self) -> &'static str {
        match self {
            Self::Name => "who or what opens or takes the connections",
            Self::Role => "of this host",
            Self::Openings => "TCP openings that ended, a second",
            Self::Failed => "connections whose TCP or TLS handshake failed",
            Self::Retransmits => "SYNs (client) or SYN-ACKs (server) that were sent again",
            Self::Tls => "TLS handshakes that were completed",
            Self::TlsFailed => "TLS handshakes that failed or were abandoned",
            Self::Full => "completed ones by class: in full",
            Self::Resumed => "resumed, with early data or without",
            Self::Retried => "in full after a HelloRetryRequest",
            Self::Tls13 => "completed ones by version: TLS 1.3",
            Self::Tls12 => "TLS 1.2",
            Self::Older => "TLS 1.1 and 1.0",
            Self::P50 => "half of the setups (SYN until the client may send) took at most this",
            Self::P99 => "99 of 100 did (both are at most 1 % too long)",
            Self::RoundTrips => "round trips a setup took / could have taken",
            Self::Resets => "connections that ended by a RST",
        }
    }

    /// Room for the heading, with the sign of the order behind it, and for the numbers.
    pub(crate) const fn width(self) -> usize {
        match self {
            Self::Name => 12,
            Self::Resets => 4,
            Self::Retransmits | Self::Tls | Self::Full | Self::Tls13 | Self::Tls12 | Self::Older => 5,
            Self::Role => 6,
            Self::Openings | Self::Failed | Self::RoundTrips => 7,
            Self::Resumed | Self::Retried | Self::TlsFailed | Self::P50 | Self::P99 => 8,
        }
    }

    pub(crate) const fn is_number(self) -> bool {
        !matches!(self, Self::Name | Self::Role)
    }

    /// The columns for which a screen has room, with their widths; the first takes what is left.
    pub(crate) fn layout(width: usize) -> Vec<(Self, usize)> {
        let mut room = width + 1;
        let mut fitting = Vec::new();
        for column in Self::BY_IMPORTANCE {
            let Some(left) = room.checked_sub(column.width() + 1) else { break };
            room = left;
            fitting.push(column);
        }
        let shown = Self::ALL.into_iter().filter(|column| fitting.contains(column));
        shown.map(|column| (column, column.width() + if column == Self::Name { room } else { 0 })).collect()
    }

    pub(crate) fn text(self, row: &Row) -> String {
        let tally = &row.tally;
        match self {
            Self::Name => row.name.clone(),
            Self::Role => row.role.to_owned(),
            Self::Openings => row.rate.map_or_else(|| "-".to_owned(), per_second),
            Self::P50 => tally.setup(0.5).map_or_else(|| "-".to_owned(), |took| duration(Some(took))),
            Self::P99 => tally.setup(0.99).map_or_else(|| "-".to_owned(), |took| duration(Some(took))),
            Self::RoundTrips => tally.round_trips().map_or_else(
                || "-".to_owned(),
                |trips| {
                    format!(
                        "{:.1}/{:.1}",
                        mean(trips.taken, trips.setups),
                        mean(trips.possible, trips.setups)
                    )
                },
            ),
            _ => count(self.count(tally)),
        }
    }

    /// What a count column counts.
    pub(crate) fn count(self, tally: &Tally) -> u64 {
        let class = |class| tally.class(Some(class));
        let version = |version| tally.version(Some(version));
        match self {
            Self::Openings => tally.openings(),
            Self::Failed => tally.failed() + tally.shaken(Some(TlsOutcome::Failed)),
            Self::Retransmits => tally.syn_retransmits(),
            Self::Tls => tally.shaken(Some(TlsOutcome::Completed)),
            Self::TlsFailed => {
                tally.shaken(Some(TlsOutcome::Failed)) + tally.shaken(Some(TlsOutcome::Abandoned))
            }
            Self::Full => class(TlsClass::Full) + class(TlsClass::FalseStart),
            Self::Resumed => {
                class(TlsClass::Resumed)
                    + class(TlsClass::EarlyDataAccepted)
                    + class(TlsClass::EarlyDataRejected)
            }
            Self::Retried => class(TlsClass::HelloRetry),
            Self::Tls13 => version(TlsVersion::Tls13),
            Self::Tls12 => version(TlsVersion::Tls12),
            Self::Older => version(TlsVersion::Tls11) + version(TlsVersion::Tls10),
            Self::Resets => tally.resets(),
            Self::Name | Self::Role | Self::P50 | Self::P99 | Self::RoundTrips => 0,
        }
    }

    /// Texts from A to Z, numbers the largest first, what is unknown last; then by name.
    fn compare(self, a: &Row, b: &Row) -> Ordering {
        let by_name = (&a.name, a.role).cmp(&(&b.name, b.role));
        let (of_a, of_b) = match self {
            Self::Name => return by_name,
            Self::Role => return a.role.cmp(b.role).then(by_name),
            Self::P50 => (a.tally.setup(0.5), b.tally.setup(0.5)),
            Self::P99 => (a.tally.setup(0.99), b.tally.setup(0.99)),
            Self::RoundTrips => {
                let lost = |row: &Row| {
                    row.tally.round_trips().map(|trips| {
                        Duration::from_secs_f64(mean(trips.taken - trips.possible, trips.setups))
                    })
                };
                (lost(a), lost(b))
            }
            _ => return self.count(&b.tally).cmp(&self.count(&a.tally)).then(by_name),
        };
        of_b.cmp(&of_a).then(by_name)
    }
}

fn mean(sum: u64, of: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "shown with few digits")]
    let mean = sum as f64 / of.max(1) as f64;
    mean
}

/// At most six columns.
pub(crate) fn per_second(rate: f64) -> String {
    match rate {
        0.0 => "0".to_owned(),
        rate if rate < 0.05 => "<0.1".to_owned(),
        rate if rate < 99.95 => format!("{rate:.1}"),
        rate if rate < 99_999.5 => format!("{rate:.0}"),
        rate => format!("{:.0}k", rate / 1e3),
    }
}

/// At most four columns.
pub(crate) fn count(count: u64) -> String {
    match count {
        0..10_000 => count.to_string(),
        10_000..1_000_000 => format!("{}k", count / 1_000),
        1_000_000..1_000_000_000 => format!("{}M", count / 1_000_000),
        _ => format!("{}G", count / 1_000_000_000),
    }
}
