//! The columns: which of them a terminal has room for, and how wide each is.

use clap::ValueEnum;

use crate::output::text::columns;

/// A column of the table, in the usual order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Column {
    /// When the stage ended, UTC.
    Time,
    /// Name of the host; by itself only where there are several.
    Host,
    /// open, tls or close.
    Stage,
    /// Client or server, of the TCP connection.
    Role,
    /// Name and id.
    Process,
    /// This end.
    Local,
    /// The peer's end.
    Remote,
    /// How the stage ended.
    Result,
    /// Of the stage.
    Duration,
    /// The network's round trip.
    Rtt,
    /// Everything else.
    Details,
}

/// The order in which columns are added while there is room.
const BY_IMPORTANCE: [Column; 11] = [
    Column::Result,
    Column::Duration,
    Column::Remote,
    Column::Host,
    Column::Stage,
    Column::Process,
    Column::Time,
    Column::Rtt,
    Column::Role,
    Column::Details,
    Column::Local,
];

/// Which columns grow, and to which width, while there is room: first come the names, then the rest of the
/// details.
const GROWTH: [(Column, usize); 8] = [
    (Column::Details, 40),
    (Column::Host, 24),
    (Column::Result, 19),
    (Column::Process, 20),
    (Column::Details, 80),
    (Column::Remote, 47),
    (Column::Local, 47),
    (Column::Details, usize::MAX),
];

impl Column {
    /// Its heading.
    pub(super) const fn heading(self) -> &'static str {
        match self {
            Self::Time => "TIME",
            Self::Host => "HOST",
            Self::Stage => "STAGE",
            Self::Role => "ROLE",
            Self::Process => "PROCESS",
            Self::Local => "LOCAL",
            Self::Remote => "REMOTE",
            Self::Result => "RESULT",
            Self::Duration => "DURATION",
            Self::Rtt => "RTT",
            Self::Details => "DETAILS",
        }
    }

    /// Numbers are aligned at the right.
    pub(super) const fn is_number(self) -> bool {
        matches!(self, Self::Duration | Self::Rtt)
    }

    /// The beginning of an address says as much as its end.
    pub(super) const fn is_endpoint(self) -> bool {
        matches!(self, Self::Local | Self::Remote)
    }

    /// The least width that is of use.
    const fn least(self) -> usize {
        match self {
            Self::Time | Self::Host => 12,
            Self::Stage => 5,
            Self::Role => 6,
            Self::Process | Self::Result => 14,
            Self::Local | Self::Remote => 21,
            Self::Duration | Self::Rtt => 9,
            Self::Details => 20,
        }
    }

    /// The usual width where there is room for everything.
    const fn full(self) -> usize {
        match self {
            Self::Process | Self::Host => 20,
            Self::Result => 19,
            Self::Details => usize::MAX,
            other => other.least(),
        }
    }
}

/// The columns with their widths. Without a width there is room for everything.
pub(super) fn layout(chosen: &[Column], width: Option<usize>, has_hosts: bool) -> Vec<(Column, usize)> {
    let usual = |column: &&Column| has_hosts || **column != Column::Host;
    let usual = Column::value_variants().iter().filter(usual).copied();
    let wanted = if chosen.is_empty() { usual.collect() } else { chosen.to_vec() };
    let Some(width) = width else { return wanted.iter().map(|&column| (column, column.full())).collect() };
    let needed = |columns: &[(Column, usize)]| columns.iter().map(|(_, wide)| wide + 1).sum::<usize>();
    let all = wanted.iter().map(|&column| (column, column.least()));
    let mut columns: Vec<_> = if chosen.is_empty() {
        let mut room = width + 1;
        let mut fitting = Vec::new();
        for column in BY_IMPORTANCE.into_iter().filter(|column| wanted.contains(column)) {
            let Some(left) = room.checked_sub(column.least() + 1) else { break };
            room = left;
            fitting.push(column);
        }
        all.filter(|(column, _)| fitting.contains(column)).collect()
    } else {
        all.collect()
    };
    for (grows, most) in GROWTH {
        let spare = (width + 1).saturating_sub(needed(&columns));
        if let Some((_, wide)) = columns.iter_mut().find(|(column, _)| *column == grows) {
            *wide += spare.min(most.saturating_sub(*wide));
        }
    }
    columns
}

/// Cuts a text to so many columns, with `…` for what is left out.
pub(crate) fn cut(text: &str, width: usize, keep_end: bool) -> String {
    if columns(text) <= width {
        return text.to_owned();
    }
    let Some(room) = width.checked_sub(1) else { return String::new() };
    let behind = if keep_end { room / 2 } else { 0 };
    let end = fitting(text.chars().rev(), behind).chars().rev().collect::<String>();
    let start = fitting(text.chars(), room - columns(&end));
    format!("{start}…{end}")
}

/// The characters from the start that fit into so many columns.
fn fitting(text: impl Iterator<Item = char>, width: usize) -> String {
    let mut taken = String::new();
    for character in text {
        taken.push(character);
        if columns(&taken) > width {
            taken.pop();
            break;
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(width: usize) -> Vec<&'static str> {
        layout(&[], Some(width), false).into_iter().map(|(column, _)| column.heading()).collect()
    }

    #[test]
    fn less_important_columns_go_first() {
        assert_eq!(shown(80), ["TIME", "STAGE", "PROCESS", "REMOTE", "RESULT", "DURATION"]);
        assert_eq!(shown(100), ["TIME", "STAGE", "ROLE", "PROCESS", "REMOTE", "RESULT", "DURATION", "RTT"]);
        assert_eq!(shown(120).last(), Some(&"DETAILS"));
        assert_eq!(shown(200).len(), 10);
        assert_eq!(shown(14), ["RESULT"]);
        assert_eq!(shown(1), [""; 0]);
        let with_hosts = layout(&[], Some(80), true);
        assert!(with_hosts.iter().any(|(column, _)| *column == Column::Host), "{with_hosts:?}");
    }

    #[test]
    fn columns_fill_the_terminal_and_no_more() {
        for width in 14..400 {
            let needed: usize = layout(&[], Some(width), false).iter().map(|(_, wide)| wide + 1).sum();
            assert!(needed <= width + 1, "{width}");
            assert!(width < 118 || needed == width + 1, "{width}: the details take the rest");
        }
    }

    #[test]
    fn texts_are_cut_where_it_matters_least() {
        assert_eq!(cut("[2001:db8:1:2:3:4:5:6]:443", 21, true), "[2001:db8:…4:5:6]:443");
        assert_eq!(cut("a long text", 6, false), "a lon…");
        assert_eq!(cut("服务服务", 6, false), "服务…");
        assert_eq!(cut("text", 4, false), "text");
        assert_eq!(cut("text", 0, false), "");
    }
}
