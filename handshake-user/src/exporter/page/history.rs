//! Counts of the host at regular times.

use std::{collections::VecDeque, time::Duration};

use handshake_common::{
    CloseStyle, Family, Initiator, Outcome, Role, TlsOutcome,
    totals::{self, Totals},
};

/// The shortest time between two samples, and how many steps are kept: five minutes.
const STEP: Duration = Duration::from_secs(5);
pub(super) const STEPS: usize = 60;
/// The longest time that is kept.
pub(super) const SPAN: Duration = Duration::from_mins(5);

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Openings,
    Failed,
    Retransmits,
    Handshakes,
    HandshakesFailed,
    Resets,
}

impl Kind {
    pub(super) const ALL: [Self; 6] = [
        Self::Openings,
        Self::Failed,
        Self::Retransmits,
        Self::Handshakes,
        Self::HandshakesFailed,
        Self::Resets,
    ];

    pub(super) const fn title(self) -> &'static str {
        match self {
            Self::Openings => "TCP openings",
            Self::Failed => "TCP openings that failed",
            Self::Retransmits => "SYNs and SYN-ACKs sent again",
            Self::Handshakes => "TLS handshakes completed",
            Self::HandshakesFailed => "TLS handshakes failed or abandoned",
            Self::Resets => "Connections that a RST ended",
        }
    }
}

type ByRole = [u64; Role::SLOTS];

/// TLS handshakes that ended, by the role of this host in TCP.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Handshakes {
    completed: ByRole,
    failed: ByRole,
}

impl Handshakes {
    pub(super) const fn count(&mut self, role: Option<Role>, outcome: Option<TlsOutcome>) {
        let counts = match outcome {
            Some(TlsOutcome::Completed) => &mut self.completed,
            Some(TlsOutcome::Failed | TlsOutcome::Abandoned) => &mut self.failed,
            None => return,
        };
        counts[Role::code_of(role) as usize] += 1;
    }
}

/// How often each kind had happened, by the role of this host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts([ByRole; Kind::ALL.len()]);

impl Counts {
    pub(super) fn of(totals: &Totals, handshakes: &Handshakes) -> Self {
        let by_role = |count: &dyn Fn(Option<Role>) -> u64| {
            let mut counts = ByRole::default();
            for role in roles() {
                counts[usize::from(Role::code_of(role))] = count(role);
            }
            counts
        };
        let opened = |role: Option<Role>, is_wanted: fn(Option<Outcome>) -> bool| -> u64 {
            let outcomes = (0..=u8::MAX).take(Outcome::SLOTS).map(Outcome::from_code);
            let families = (0..=u8::MAX).take(Family::SLOTS).map(Family::from_code);
            let slots = outcomes
                .filter(|&outcome| is_wanted(outcome))
                .flat_map(|outcome| families.clone().map(move |family| totals::opens(role, family, outcome)));
            slots.map(|slot| totals.at(slot)).sum()
        };
        let resets = |role: Option<Role>| -> u64 {
            let initiators = (0..=u8::MAX).take(Initiator::SLOTS).map(Initiator::from_code);
            let slots = initiators.flat_map(|initiator| {
                [CloseStyle::ResetSent, CloseStyle::ResetReceived]
                    .map(|style| totals::closes(role, initiator, Some(style)))
            });
            slots.map(|slot| totals.at(slot)).sum()
        };
        let has_failed =
            |outcome: Option<Outcome>| outcome.is_some_and(|outcome| outcome != Outcome::Established);
        Self(Kind::ALL.map(|kind| match kind {
            Kind::Openings => by_role(&|role| opened(role, |_| true)),
            Kind::Failed => by_role(&|role| opened(role, has_failed)),
            Kind::Retransmits => {
                by_role(&|role| role.map_or(0, |role| totals.at(totals::syn_retransmits(role))))
            }
            Kind::Handshakes => handshakes.completed,
            Kind::HandshakesFailed => handshakes.failed,
            Kind::Resets => by_role(&resets),
        }))
    }

    pub(super) const fn get(&self, kind: Kind, role: Option<Role>) -> u64 {
        self.0[kind as usize][Role::code_of(role) as usize]
    }

    fn since(&self, earlier: &Self) -> Self {
        let mut more = *self;
        let earlier = earlier.0.as_flattened();
        more.0.as_flattened_mut().iter_mut().zip(earlier).for_each(|(count, earlier)| {
            *count = count.saturating_sub(*earlier);
        });
        more
    }
}

/// Every role, the unknown one last.
pub(super) fn roles() -> impl Iterator<Item = Option<Role>> {
    Role::ALL.iter().copied().map(Some).chain([None])
}

/// The latest samples, in order.
#[derive(Clone, Debug, Default)]
pub(super) struct History(VecDeque<(Duration, Counts)>);

/// What happened between two samples.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    /// How long before the last sample it ended.
    pub(super) ago: Duration,
    pub(super) length: Duration,
    pub(super) counts: Counts,
}

impl Step {
    /// Events a second.
    #[expect(clippy::cast_precision_loss, reason = "shown with few digits")]
    pub(super) fn rate(&self, kind: Kind, role: Option<Role>) -> f64 {
        self.counts.get(kind, role) as f64 / self.length.as_secs_f64()
    }
}

impl History {
    /// Whether it is time for a sample, at this time of a clock that never goes back.
    pub(super) fn is_due(&self, now: Duration) -> bool {
        self.0.back().is_none_or(|(at, _)| now >= *at + STEP)
    }

    /// Adds a sample, if it is time for one.
    pub(super) fn add(&mut self, now: Duration, counts: Counts) {
        if self.is_due(now) {
            self.0.push_back((now, counts));
            while self.0.len() > STEPS + 1 || self.0.front().is_some_and(|(at, _)| *at + SPAN + STEP < now) {
                self.0.pop_front();
            }
        }
    }

    /// From each sample to the next.
    pub(super) fn steps(&self) -> impl Iterator<Item = Step> {
        let last = self.0.back().map_or(Duration::ZERO, |(at, _)| *at);
        self.0.iter().zip(self.0.iter().skip(1)).map(move |((from, before), (to, counts))| Step {
            ago: last.saturating_sub(*to),
            length: to.saturating_sub(*from),
            counts: counts.since(before),
        })
    }

    /// From the first sample to the last. Returns `None` before the second.
    pub(super) fn all(&self) -> Option<Step> {
        let ((from, before), (to, counts)) = (self.0.front()?, self.0.back()?);
        (to > from).then(|| Step {
            ago: Duration::ZERO,
            length: to.saturating_sub(*from),
            counts: counts.since(before),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn counts_are_by_kind_and_role_whatever_else_tells_them_apart() {
        let mut slots = Totals::ZERO;
        let (client, server) = (Some(Role::Client), Some(Role::Server));
        for (slot, count) in [
            (totals::opens(client, Some(Family::Ipv4), Some(Outcome::Established)), 5),
            (totals::opens(client, Some(Family::Ipv6), Some(Outcome::Refused)), 2),
            (totals::opens(None, None, None), 1),
            (totals::syn_retransmits(Role::Server), 3),
            (totals::closes(server, Some(Initiator::Local), Some(CloseStyle::ResetSent)), 1),
            (totals::closes(server, None, Some(CloseStyle::ResetReceived)), 6),
            (totals::closes(server, None, Some(CloseStyle::FourSegments)), 100),
        ] {
            let mut cpu = [0; totals::SLOTS];
            cpu[slot] = count;
            slots.add(&cpu);
        }
        let mut handshakes = Handshakes::default();
        handshakes.count(client, Some(TlsOutcome::Completed));
        handshakes.count(client, Some(TlsOutcome::Abandoned));
        handshakes.count(client, None);
        let counts = Counts::of(&slots, &handshakes);
        let told = |role| Kind::ALL.map(|kind| counts.get(kind, role));
        assert_eq!(told(client), [7, 2, 0, 1, 1, 0]);
        assert_eq!(told(server), [0, 0, 3, 0, 0, 7]);
        assert_eq!(told(None), [1, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn samples_are_a_step_apart_and_bounded() {
        let mut history = History::default();
        assert!(history.all().is_none());
        let mut counts = Counts::default();
        for second in 0..1_000 {
            counts.0[0][1] = u64::from(second) * 2;
            history.add(second * SECOND, counts);
        }
        assert_eq!(history.steps().count(), STEPS);
        for (step, left) in history.steps().zip((0..60).rev()) {
            assert_eq!((step.ago, step.length), (left * STEP, STEP));
            assert!((step.rate(Kind::Openings, Some(Role::Client)) - 2.0).abs() < 1e-9);
        }
        let all = history.all().unwrap();
        assert_eq!((all.length, all.counts.get(Kind::Openings, Some(Role::Client))), (SPAN, 600));
        // After a pause, what happened during it is told of its whole length, and nothing older is left.
        history.add(2_000 * SECOND, counts);
        assert!(history.all().is_none());
        history.add(2_005 * SECOND, counts);
        assert_eq!(history.all().unwrap().length, STEP);
    }
}
