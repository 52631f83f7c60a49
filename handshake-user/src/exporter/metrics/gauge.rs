//! How many connections there are, from the kernel side's counters: what began less what ended.

use handshake_common::{
    Family, Outcome, Role,
    totals::{self, Totals},
};
use prometheus::{IntGauge, IntGaugeVec, Opts, Registry};

/// `handshake_connections`.
pub(super) struct Connections {
    gauges: [(Option<Role>, [Option<IntGauge>; 3]); 3],
    /// What the counters have not seen begin: connections from before the start.
    before: Census,
}

/// How many connections are in each state. Below zero: more ended than were seen to begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// SYN sent.
    pub opening: i64,
    /// Established.
    pub established: i64,
    /// From the first FIN on.
    pub closing: i64,
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
        Ok(Self { gauges, before: Census::default() })
    }

    /// Takes the number of sockets found while the counters had these values: those that the counters do not
    /// explain existed before the start.
    pub(super) fn found(&mut self, sockets: &Census, totals: &Totals) {
        self.before = Census::default();
        let mut before = *sockets;
        for role in [Some(Role::Client), Some(Role::Server), None] {
            let seen = self.census(role, totals);
            before.opening -= seen.opening;
            before.established -= seen.established;
            before.closing -= seen.closing;
        }
        self.before = before;
    }

    /// Sets the gauges. What was not seen, because a state change was missed, must not make a number
    /// negative.
    pub(super) fn set(&self, totals: &Totals) {
        for (role, gauges) in &self.gauges {
            let Census { opening, established, closing } = self.census(*role, totals);
            for (gauge, count) in gauges.iter().zip([opening, established, closing]) {
                if let Some(gauge) = gauge {
                    gauge.set(count.max(0));
                }
            }
        }
    }

    /// A connection whose close is counted without a role must count as unknown from its beginning: one from
    /// before the start, or one that was established while the table was full.
    fn census(&self, role: Option<Role>, totals: &Totals) -> Census {
        let at = |slot| signed(totals.at(slot));
        let closing = at(totals::closing(role));
        let established = if role.is_some() {
            opened(role, Some(Outcome::Established), totals) + at(totals::unopened(role))
                - at(totals::unfollowed(role))
        } else {
            let unfollowed = [Some(Role::Client), Some(Role::Server), None].map(totals::unfollowed);
            self.before.established + unfollowed.into_iter().map(at).sum::<i64>()
        };
        let closing_before = if role.is_none() { self.before.closing } else { 0 };
        Census {
            opening: if role == Some(Role::Client) { self.opening(totals) } else { 0 },
            established: established - closing,
            closing: closing_before + closing - closed(role, totals),
        }
    }
}

impl Connections {
    /// Followed and unfollowed connections apart. A `connect()` that was missed ends among the latter without
    /// having begun: it must not make the gauge one too small for ever.
    fn opening(&self, totals: &Totals) -> i64 {
        let client = Some(Role::Client);
        let [begun, unkept, late] =
            [totals::begun(client), totals::UNKEPT, totals::LATE].map(|slot| signed(totals.at(slot)));
        let ended: i64 = or_unknown(Outcome::ALL).map(|outcome| opened(client, outcome, totals)).sum();
        let followed = (begun - unkept) - (ended - late);
        let rest = self.before.opening + unkept - late;
        followed + rest.max(0)
    }
}

/// Opens with this outcome, over all families.
fn opened(role: Option<Role>, outcome: Option<Outcome>, totals: &Totals) -> i64 {
    or_unknown(Family::ALL).map(|family| signed(totals.at(totals::opens(role, family, outcome)))).sum()
}

/// Closes, over all classes.
fn closed(role: Option<Role>, totals: &Totals) -> i64 {
    use handshake_common::{CloseStyle, Initiator};
    or_unknown(Initiator::ALL)
        .flat_map(|initiator| or_unknown(CloseStyle::ALL).map(move |style| (initiator, style)))
        .map(|(initiator, style)| signed(totals.at(totals::closes(role, initiator, style))))
        .sum()
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Every value of a list, and "unknown".
fn or_unknown<T: Copy + 'static>(all: &'static [T]) -> impl Iterator<Item = Option<T>> {
    all.iter().copied().map(Some).chain([None])
}

#[cfg(test)]
pub(super) mod tests {
    use handshake_common::{CloseStyle, Initiator};

    use super::*;

    /// What the kernel side would have counted: (slot, count).
    pub(in crate::exporter::metrics) fn totals(counts: &[(usize, u64)]) -> Totals {
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
            (totals::closes(CLIENT, Some(Initiator::Local), Some(CloseStyle::FourSegments)), 1),
            (totals::closes(CLIENT, Some(Initiator::Remote), None), 1),
        ]);
        assert_eq!(gauges().census(CLIENT, &totals), Census { opening: 2, established: 3, closing: 1 });
        assert_eq!(gauges().census(Some(Role::Server), &totals), Census::default());
    }

    #[test]
    fn connections_from_before_are_those_that_the_counters_do_not_explain() {
        let mut gauges = gauges();
        let mut counts =
            vec![(totals::begun(CLIENT), 3), (totals::opens(CLIENT, V4, Some(Outcome::Established)), 3)];
        gauges.found(&Census { opening: 1, established: 5, closing: 4 }, &totals(&counts));
        assert_eq!(
            gauges.census(CLIENT, &totals(&counts)),
            Census { opening: 1, established: 3, closing: 0 }
        );
        assert_eq!(gauges.census(None, &totals(&counts)), Census { opening: 0, established: 2, closing: 4 });
        counts.extend([(totals::closing(None), 2), (totals::closes(None, Some(Initiator::Local), None), 5)]);
        assert_eq!(gauges.census(None, &totals(&counts)), Census { opening: 0, established: 0, closing: 1 });
    }

    #[test]
    fn nothing_is_negative_when_something_was_missed() {
        let registry = Registry::new();
        let gauges = Connections::new(&registry).unwrap();
        gauges.set(&totals(&[(totals::closing(CLIENT), 3), (totals::closes(CLIENT, None, None), 7)]));
        let families = registry.gather();
        let values = families.iter().flat_map(prometheus::proto::MetricFamily::get_metric);
        assert!(values.map(|metric| metric.get_gauge().get_value()).all(|value| value.abs() < 1.0));
    }

    #[test]
    fn a_connect_that_was_missed_is_no_opening_less() {
        let counts = [
            (totals::begun(CLIENT), 3),
            (totals::opens(CLIENT, V4, Some(Outcome::Established)), 3),
            (totals::LATE, 1),
        ];
        assert_eq!(gauges().census(CLIENT, &totals(&counts)).opening, 1, "three of which one was missed");
    }

    #[test]
    fn openings_without_room_and_from_before_are_openings_until_they_end() {
        let mut gauges = gauges();
        gauges.found(&Census { opening: 2, ..Census::default() }, &totals(&[]));
        let mut counts = vec![(totals::begun(CLIENT), 5), (totals::UNKEPT, 3)];
        assert_eq!(gauges.census(CLIENT, &totals(&counts)).opening, 7);
        counts.extend([(totals::opens(CLIENT, V4, Some(Outcome::Established)), 4), (totals::LATE, 4)]);
        assert_eq!(gauges.census(CLIENT, &totals(&counts)).opening, 3);
        counts.extend([(totals::opens(CLIENT, V4, Some(Outcome::Refused)), 3), (totals::LATE, 1)]);
        assert_eq!(gauges.census(CLIENT, &totals(&counts)).opening, 0);
    }

    #[test]
    fn a_fast_open_child_that_failed_leaves_no_trace() {
        let server = Some(Role::Server);
        let totals = totals(&[
            (totals::opens(server, V4, Some(Outcome::Established)), 5),
            (totals::opens(server, V4, Some(Outcome::Reset)), 1),
            (totals::unopened(server), 1),
            (totals::closing(server), 1),
            (totals::closes(server, Some(Initiator::Local), Some(CloseStyle::ResetReceived)), 1),
        ]);
        let census = gauges().census(server, &totals);
        assert_eq!((census.established, census.closing), (5, 0));
    }

    #[test]
    fn what_found_no_room_is_of_unknown_role_until_it_has_gone() {
        let server = Some(Role::Server);
        let mut counts = vec![
            (totals::opens(server, V4, Some(Outcome::Established)), 5),
            (totals::unfollowed(server), 2),
            (totals::unfollowed(None), 1),
        ];
        assert_eq!(gauges().census(server, &totals(&counts)).established, 3);
        assert_eq!(gauges().census(None, &totals(&counts)).established, 3);
        counts.extend([(totals::closing(None), 3), (totals::closes(None, None, None), 2)]);
        let census = gauges().census(None, &totals(&counts));
        assert_eq!(census, Census { opening: 0, established: 0, closing: 1 });
    }
}
