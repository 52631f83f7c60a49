//! Connections in groups: what happened to each group lately and in all. Pure; time is passed in.
//!
//! A group is a process, a service or the network of the peers, by the role of this host. Every event counts
//! once: an opening when it ends, a TLS handshake when it ends, a setup when it is known, a closing when the
//! socket closes. Where a later event of a connection tells its group better (a server's process, the name of
//! a service), the opening that was counted moves there.

mod group;
mod recent;
mod tally;
#[cfg(test)]
mod tests;
mod window;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use handshake_common::{Outcome, Stage, TlsOutcome};

use self::window::Slot;
pub use self::{
    group::{Group, Grouping, What},
    recent::Recent,
    tally::{RoundTrips, Tally},
    window::{Activity, Span},
};
use crate::{
    bounded_map::BoundedMap,
    event::ConnectionEvent,
    join::{
        advice::{self, Setting},
        journal::{self, Identity},
    },
};

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Groups; everything beyond them is one more, [`Aggregate::rest`].
    pub groups: usize,
    /// Latest connections of each group.
    pub recent: usize,
    /// Latest slow connections of all, and latest failed ones.
    pub notable: usize,
    /// Open connections that may still move to another group, some hundred bytes each. The oldest are
    /// evicted, and stay where they were counted.
    pub placed: usize,
    /// The sliding window.
    pub span: Span,
    /// Prefix lengths of [`Grouping::Network`], IPv4 and IPv6.
    pub networks: (u8, u8),
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            groups: 128,
            recent: 32,
            notable: 32,
            placed: 16_384,
            span: Span::default(),
            networks: (24, 48),
        }
    }
}

/// The numbers of a group, and its latest connections.
#[derive(Clone, Debug)]
pub struct Member {
    /// Tells it from an earlier one of the same group; 0 is the rest.
    number: u64,
    /// The numbers.
    pub activity: Activity,
    /// The latest connections.
    pub latest: Recent,
}

impl Member {
    fn new(number: u64, limits: &Limits) -> Self {
        Self { number, activity: Activity::new(limits.span), latest: Recent::new(limits.recent) }
    }
}

/// Where the opening of a connection was counted.
#[derive(Clone, Debug)]
struct Placed {
    group: Group,
    number: u64,
    slot: Slot,
    syn_retransmits: u16,
}

/// The groups of one kind, and all of them together.
#[derive(Clone, Debug)]
pub struct Aggregate {
    grouping: Grouping,
    limits: Limits,
    began: Duration,
    now: Duration,
    members: BTreeMap<Group, Member>,
    last_number: u64,
    rest: Member,
    all: Member,
    slow: Recent,
    failed: Recent,
    placed: BoundedMap<Identity, Placed>,
    folded: u64,
    /// Until this slot is over there is no idle group to make room.
    full_in: Option<Slot>,
}

impl Aggregate {
    /// Nothing yet, at this time of a clock that never goes back. All later times are of the same clock.
    #[must_use]
    pub fn new(grouping: Grouping, limits: Limits, now: Duration) -> Self {
        Self {
            grouping,
            limits,
            began: now,
            now,
            members: BTreeMap::new(),
            last_number: 0,
            rest: Member::new(0, &limits),
            all: Member::new(0, &limits),
            slow: Recent::new(limits.notable),
            failed: Recent::new(limits.notable),
            placed: BoundedMap::new(limits.placed),
            folded: 0,
            full_in: None,
        }
    }

    /// Takes an event that came at this time.
    pub fn take(&mut self, event: &Arc<ConnectionEvent>, now: Duration) {
        self.advance(now);
        let identity = journal::identity(event);
        if event.stage == Stage::TimeWait {
            // Nothing of it is counted; but connections that are still kept learn how they ended.
            self.learn(&identity, event);
            return;
        }
        let slot = self.slot();
        let mut group = Group::of(event, self.grouping, self.limits.networks);
        let placed = self.placed.get(&identity).cloned();
        if let Some(placed) = placed.as_ref().filter(|placed| group.is_vaguer_than(&placed.group)) {
            group = placed.group.clone();
        }
        let number = self.admit(&group);
        let mut whole = None;
        if let Some(mut placed) = placed.filter(|placed| placed.group != group) {
            let opening = Tally::established(placed.syn_retransmits);
            let from = member(&mut self.members, &mut self.rest, &placed.group, placed.number);
            from.activity.subtract(placed.slot, &opening);
            whole = from.latest.remove(&identity);
            if from.number != 0 && from.activity.total().is_empty() {
                // It was there for this connection only.
                self.members.remove(&placed.group);
            }
            let to = member(&mut self.members, &mut self.rest, &group, number);
            to.activity.add(placed.slot, &opening);
            to.activity.forget_before(slot);
            (placed.group, placed.number) = (group.clone(), number);
            self.placed.insert(identity.clone(), placed);
        }
        let to = member(&mut self.members, &mut self.rest, &group, number);
        let whole = recent::whole(event, whole.as_ref().or_else(|| to.latest.get(&identity)));
        let tally = Tally::of(event);
        for member in [to, &mut self.all] {
            member.activity.add(slot, &tally);
            member.latest.take(identity.clone(), &whole);
        }
        let keeps = self.limits.notable > 0;
        let notable =
            [(&mut self.failed, keeps && has_failed(event)), (&mut self.slow, keeps && is_slow(event))];
        for (recent, belongs) in notable {
            if belongs {
                let whole = recent::whole(&whole, recent.get(&identity));
                recent.take(identity.clone(), &whole);
            } else {
                recent.learn(&identity, &whole);
            }
        }
        match (event.stage, &event.open) {
            (Stage::Open, Some(open)) if open.outcome == Some(Outcome::Established) => {
                let syn_retransmits = open.syn_retransmits;
                self.placed.insert(identity, Placed { group, number, slot, syn_retransmits });
            }
            (Stage::Close, _) => drop(self.placed.remove(&identity)),
            _ => {}
        }
    }

    /// Lets time pass: what is older than the window leaves it.
    pub fn advance(&mut self, now: Duration) {
        let before = self.slot();
        self.now = self.now.max(now);
        let slot = self.slot();
        if slot == before {
            return;
        }
        for member in self.members.values_mut().chain([&mut self.rest, &mut self.all]) {
            member.activity.forget_before(slot);
        }
    }

    /// How much is kept.
    #[must_use]
    pub const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What the groups are.
    #[must_use]
    pub const fn grouping(&self) -> Grouping {
        self.grouping
    }

    /// The groups, in their order.
    pub fn groups(&self) -> impl Iterator<Item = (&Group, &Member)> {
        self.members.iter()
    }

    /// The group with this name.
    #[must_use]
    pub fn get(&self, group: &Group) -> Option<&Member> {
        self.members.get(group)
    }

    /// The groups for which there was no room: those that came when as many as the limits allow were active,
    /// and the totals of those that made room because they were idle. `None` if there was room for all.
    #[must_use]
    pub fn rest(&self) -> Option<&Member> {
        (self.folded > 0 || !self.rest.activity.total().is_empty()).then_some(&self.rest)
    }

    /// All connections of the host.
    #[must_use]
    pub const fn all(&self) -> &Member {
        &self.all
    }

    /// The latest connections of which a handshake failed, TCP's or TLS's.
    #[must_use]
    pub const fn failed(&self) -> &Recent {
        &self.failed
    }

    /// The latest connections whose opening or setup took longer than the network explains.
    #[must_use]
    pub const fn slow(&self) -> &Recent {
        &self.slow
    }

    /// How long the window is by now: shorter than [`Span::length`] at first, and by less than a slot later.
    #[must_use]
    pub fn covered(&self) -> Duration {
        self.now.saturating_sub(self.limits.span.start(self.began, self.slot()))
    }

    /// How long all of this is counted.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.now.saturating_sub(self.began)
    }

    fn slot(&self) -> Slot {
        self.limits.span.slot(self.age())
    }

    /// Makes a member for the group, if there is room. Returns its number; 0 is the rest.
    fn admit(&mut self, group: &Group) -> u64 {
        if let Some(member) = self.members.get(group) {
            return member.number;
        }
        if self.members.len() >= self.limits.groups && !self.fold_idle() {
            return 0;
        }
        self.last_number += 1;
        self.members.insert(group.clone(), Member::new(self.last_number, &self.limits));
        self.last_number
    }

    /// Adds the group that has been idle for longest to the rest. Returns whether one was idle for the whole
    /// window.
    fn fold_idle(&mut self) -> bool {
        let slot = self.slot();
        if self.full_in == Some(slot) {
            return false;
        }
        let idle = self.members.iter().filter(|(_, member)| member.activity.is_idle());
        let oldest = idle.min_by_key(|(_, member)| member.activity.last()).map(|(group, _)| group.clone());
        let Some(member) = oldest.and_then(|group| self.members.remove(&group)) else {
            self.full_in = Some(slot);
            return false;
        };
        self.rest.activity.fold(&member.activity);
        self.folded += 1;
        true
    }

    fn learn(&mut self, identity: &Identity, event: &Arc<ConnectionEvent>) {
        let members = self.members.values_mut().chain([&mut self.rest, &mut self.all]);
        for recent in members.map(|member| &mut member.latest).chain([&mut self.failed, &mut self.slow]) {
            recent.learn(identity, event);
        }
    }
}

/// The member with this number, which may be gone: then it is in the rest.
fn member<'a>(
    members: &'a mut BTreeMap<Group, Member>,
    rest: &'a mut Member,
    group: &Group,
    number: u64,
) -> &'a mut Member {
    members.get_mut(group).filter(|member| member.number == number).unwrap_or(rest)
}

/// Whether this is the event of a handshake that failed.
fn has_failed(event: &ConnectionEvent) -> bool {
    match event.stage {
        Stage::Open => {
            let outcome = event.open.as_ref().and_then(|open| open.outcome);
            outcome.is_some_and(|outcome| outcome != Outcome::Established)
        }
        Stage::Tls => event.tls.as_ref().and_then(|tls| tls.outcome) == Some(TlsOutcome::Failed),
        Stage::Close | Stage::TimeWait => false,
    }
}

/// Whether the opening or the setup took longer than the network explains.
fn is_slow(event: &ConnectionEvent) -> bool {
    advice::advise(event).iter().any(|advice| match advice.setting {
        Setting::SynLost | Setting::SynAckLost => event.stage == Stage::Open || tally::tells_setup(event),
        Setting::LateHello | Setting::SetupWait => tally::tells_setup(event),
        _ => false,
    })
}
