//! The settings that would save time, over all connections of a session.

use std::{collections::BTreeMap, time::Duration};

use super::text::{duration, wrap};
use crate::{
    event::ConnectionEvent,
    join::advice::{Advice, Setting, advise},
};

/// Columns that text keeps to.
const WIDTH: usize = 96;

/// What each setting would have saved. Settings are a closed list, so their number is bounded.
#[derive(Debug, Default)]
pub struct Savings {
    settings: BTreeMap<Setting, Total>,
}

/// What a setting would have saved.
#[derive(Clone, Copy, Debug, Default)]
pub struct Total {
    /// Of how many connections.
    pub connections: u64,
    /// Round trips.
    pub round_trips: u64,
    /// Time, where it is known.
    pub time: Duration,
    /// Connections whose lost time is unknown.
    pub untimed: u64,
}

impl Total {
    /// The time lost, in a few characters: at least what is known of it.
    #[must_use]
    pub fn lost(&self) -> String {
        match (self.untimed, self.time) {
            (0, time) => duration(Some(time)),
            (_, Duration::ZERO) => "?".to_owned(),
            (_, time) => format!("≥ {}", duration(Some(time))),
        }
    }
}

impl Savings {
    /// Adds a connection, by its last record.
    pub fn add(&mut self, record: &ConnectionEvent) {
        for Advice { setting, round_trips, time } in advise(record) {
            let total = self.settings.entry(setting).or_default();
            total.connections += 1;
            total.round_trips += u64::from(round_trips);
            total.time = total.time.saturating_add(time.unwrap_or_default());
            total.untimed += u64::from(time.is_none());
        }
    }

    /// The settings, the one that saves most time first.
    #[must_use]
    pub fn totals(&self) -> Vec<(Setting, Total)> {
        let mut totals: Vec<_> = self.settings.iter().map(|(&setting, &total)| (setting, total)).collect();
        totals
            .sort_by_key(|(_, total)| std::cmp::Reverse((total.time, total.round_trips, total.connections)));
        totals
    }

    /// One setting a line, the one that saves most time first; empty if nothing can be saved.
    #[must_use]
    pub fn render(&self) -> String {
        if self.settings.is_empty() {
            return String::new();
        }
        let mut text = format!(
            "{:>10}  {:>11}  {:>11}  SETTING THAT SAVES IT\n",
            "TIME LOST", "ROUND TRIPS", "CONNECTIONS"
        );
        for (setting, total) in self.totals() {
            let time = total.lost();
            let line = format!(
                "{time:>10}  {:>11}  {:>11}  {}; {}",
                total.round_trips,
                total.connections,
                setting.text(),
                setting.detail()
            );
            text.push_str(&hang(&line));
            text.push('\n');
        }
        text
    }
}

/// Wraps the words behind the columns.
fn hang(line: &str) -> String {
    const COLUMNS: usize = 10 + 2 + 11 + 2 + 11 + 2;
    let start = line.char_indices().nth(COLUMNS).map_or(line.len(), |(at, _)| at);
    let (columns, words) = line.split_at(start);
    let words = wrap(words, WIDTH - COLUMNS, 0).replace('\n', &format!("\n{}", " ".repeat(COLUMNS)));
    format!("{columns}{words}")
}

#[cfg(test)]
mod tests {
    use handshake_common::{Role, TlsClass, TlsVersion};

    use super::*;
    use crate::event::testing::{opened, with_tls};

    #[test]
    fn nothing_to_save_renders_nothing() {
        assert_eq!(Savings::default().render(), "");
    }

    #[test]
    fn sorted_by_time_and_unknown_times_marked() {
        let mut savings = Savings::default();
        for _ in 0..3 {
            savings.add(&with_tls(Role::Client, TlsVersion::Tls12, TlsClass::Full));
        }
        savings.add(&with_tls(Role::Client, TlsVersion::Tls13, TlsClass::HelloRetry));
        let mut untimed = opened(Role::Client);
        untimed.open.as_mut().unwrap().rtt = None;
        savings.add(&untimed);
        insta::assert_snapshot!(savings.render());
    }
}
