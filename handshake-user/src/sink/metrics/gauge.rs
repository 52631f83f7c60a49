//! How many connections there are, from the kernel side's counters: what began less what ended.

use handshake_common::{Connection, Facts, Family, Outcome, Role, totals, totals::Totals};
use prometheus::{IntGauge, IntGaugeVec, Opts, Registry};

/// `handshake_connections`.
pub(super) struct Connections {
    gauges: [(Option<Role>, [Option<IntGauge>; 3]); 3],
    /// Connections from before the start: counted once, less those that closed since.
    before: u64,
    /// By role: closings of Fast Open children that never became established.
    unopened: [u64; Role::SLOTS],
}

/// How many connections are in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Census {
    opening: u64,
    established: u64,
    closing: u64,
}

impl Connections {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let family = IntGaugeVec::new(
            Opts::new("handshake_connections", "TCP connections right now, by role and state."),
            &["role", "state"],
        )?;
        registry.register(Box::new(family.clone()))?;
        let gauges = [Some(Role::Client), Some(Role::Server), None].map(|role| {
            let word = role.map_or("unknown", |role| role.as_str());
            let gauge = |state| family.with_label_values(&[word, state]);
            // A server's half-open connections are request sockets, which nothing counts.
            let opening = (role == Some(Role::Client)).then(|| gauge("opening"));
            (role, [opening, Some(gauge("established")), Some(gauge("closing"))])
        });
        Ok(Self { gauges, before: 0, unopened: [0; Role::SLOTS] })
    }

    /// A closing whose opening failed: it left "established" without ever having come there.
    pub(super) fn closed(&mut self, raw: &Connection) {
        if !raw.facts.has(Facts::ESTABLISHED)
            && !raw.facts.has(Facts::PREEXISTING)
            && let Some(count) = self.unopened.get_mut(usize::from(raw.role))
        {
            *count += 1;
        }
    }

    /// So many sockets had a connection when the counters stood so: those that they do not explain were there before.
    pub(super) fn found(&mut self, sockets: u64, totals: &Totals) {
        let followed: u64 = [Role::Client, Role::Server]
            .into_iter()
            .map(|role| self.census(Some(role), totals))
            .map(|census| census.established + census.closing)
            .sum();
        self.before = sockets.saturating_sub(followed) + closed(None, totals);
    }

    /// Sets the gauges.
    pub(super) fn set(&self, totals: &Totals) {
        for (role, gauges) in &self.gauges {
            let Census { opening, established, closing } = self.census(*role, totals);
            for (gauge, count) in gauges.iter().zip([opening, established, closing]) {
                if let Some(gauge) = gauge {
                    gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
                }
            }
        }
    }

    /// What was not seen, because a state change was missed, must not make a number negative.
    fn census(&self, role: Option<Role>, totals: &Totals) -> Census {
        let closing = totals.at(totals::closing(role));
        let established = match role {
            Some(role) => {
                opened(Some(role), Some(Outcome::Established), totals)
                    + self.unopened[usize::from(role.code())]
            }
            None => self.before,
        };
        let ended: u64 = outcomes().map(|outcome| opened(role, outcome, totals)).sum();
        Census {
            opening: totals.at(totals::begun(role)).saturating_sub(ended),
            established: established.saturating_sub(closing),
            closing: closing.saturating_sub(closed(role, totals)),
        }
    }
}

/// Openings that ended in this way, over all families.
fn opened(role: Option<Role>, outcome: Option<Outcome>, totals: &Totals) -> u64 {
    or_unknown(Family::ALL).map(|family| totals.at(totals::opens(role, family, outcome))).sum()
}

/// Closings that ended, over all classes.
fn closed(role: Option<Role>, totals: &Totals) -> u64 {
    use handshake_common::{Initiator, Style};
    or_unknown(Initiator::ALL)
        .flat_map(|initiator| or_unknown(Style::ALL).map(move |style| (initiator, style)))
        .map(|(initiator, style)| totals.at(totals::closes(role, initiator, style)))
        .sum()
}

fn outcomes() -> impl Iterator<Item = Option<Outcome>> {
    or_unknown(Outcome::ALL)
}

/// Every value of a list, and "unknown".
fn or_unknown<T: Copy + 'static>(all: &'static [T]) -> impl Iterator<Item = Option<T>> {
    all.iter().copied().map(Some).chain([None])
}

#[cfg(test)]
pub(super) mod tests {
    use handshake_common::{Initiator, Style};

    use super::*;

    /// What the kernel side would have counted: (slot, count).
    pub(in crate::sink::metrics) fn totals(counts: &[(usize, u64)]) -> Totals {
        let mut cpu = [0; totals::SLOTS];
        for &(slot, count) in counts {
            cpu[slot] += count;
        }
        let mut totals = Totals::ZERO;
        totals.add(&cpu);
        totals
    }

    fn gauges() -> Connections {
        Connections::new(&Registry::new()).unwrap()
    }

    const CLIENT: Option<Role> = Some(Role::Client);
    const V4: Option<Family> = Some(Family::Ipv4);
    const V6: Option<Family> = Some(Family::Ipv6);

    #[test]
    fn what_began_less_what_ended() {
        let totals = totals(&[
            (totals::begun(CLIENT), 10),
            (totals::opens(CLIENT, V4, Some(Outcome::Established)), 4),
            (totals::opens(CLIENT, V6, Some(Outcome::Established)), 2),
            (totals::opens(CLIENT, V4, Some(Outcome::Refused)), 1),
            (totals::opens(CLIENT, V4, None), 1),
            (totals::closing(CLIENT), 3),
            (totals::closes(CLIENT, Some(Initiator::Local), Some(Style::FourSegments)), 1),
            (totals::closes(CLIENT, Some(Initiator::Remote), None), 1),
        ]);
        assert_eq!(gauges().census(CLIENT, &totals), Census { opening: 2, established: 3, closing: 1 });
        assert_eq!(gauges().census(Some(Role::Server), &totals), Census::default());
    }

    #[test]
    fn connections_from_before_are_those_that_the_counters_do_not_explain() {
        let mut gauges = gauges();
        let mut counts = vec![(totals::opens(CLIENT, V4, Some(Outcome::Established)), 3)];
        gauges.found(5, &totals(&counts));
        assert_eq!(gauges.census(None, &totals(&counts)).established, 2);
        counts.extend([(totals::closing(None), 2), (totals::closes(None, Some(Initiator::Local), None), 1)]);
        let census = gauges.census(None, &totals(&counts));
        assert_eq!(census, Census { opening: 0, established: 0, closing: 1 });
    }

    #[test]
    fn nothing_is_negative_when_something_was_missed() {
        let totals = totals(&[(totals::closing(CLIENT), 3), (totals::closes(CLIENT, None, None), 7)]);
        assert_eq!(gauges().census(CLIENT, &totals), Census::default());
    }

    #[test]
    fn a_fast_open_child_that_failed_leaves_no_trace() {
        let server = Some(Role::Server);
        let totals = totals(&[
            (totals::opens(server, V4, Some(Outcome::Established)), 5),
            (totals::opens(server, V4, Some(Outcome::Reset)), 1),
            (totals::closing(server), 1),
            (totals::closes(server, Some(Initiator::Local), Some(Style::ResetReceived)), 1),
        ]);
        let mut gauges = gauges();
        gauges.closed(&Connection { role: Role::Server.code(), ..Connection::default() });
        assert_eq!(gauges.census(server, &totals), Census { opening: 0, established: 5, closing: 0 });
    }
}
