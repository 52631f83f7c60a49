//! What becomes of connections that time-wait minisockets took over: the late FIN, and how TIME_WAIT ended.
//! Pure: who looks at the minisockets, and when, is decided outside.

pub mod clock;
mod fin;

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use handshake_common::{
    Connection, ConnectionFlags, MinisocketStep, Role, TimeWaitEnd,
    tcp::{
        close,
        minisocket::{Minisocket, MinisocketNews, RST, SYN},
        open, states,
    },
};

use self::{
    clock::{JiffiesClock, fires_at},
    fin::{Moment, TIME_WAIT_NS},
};
use super::view::TlsView;

/// Connections that are followed beyond their socket, some hundred bytes each. Further ones are not.
const MAX_OWED: usize = 100_000;
/// The interval of looks at the minisockets while any connection is owed.
const PACE_NS: u64 = 10_000_000_000;
/// How soon the first look follows.
const FIRST_NS: u64 = 2_000_000_000;
/// After this time without a look at it, a minisocket has surely ended: FIN_WAIT2 and TIME_WAIT last 60 s
/// each.
const FORGET_NS: u64 = 180_000_000_000;

/// The minisockets of some network namespaces.
#[derive(Debug, Default)]
pub struct Look {
    /// Both clocks at the same moment, many times: CLOCK_MONOTONIC in nanoseconds, and `jiffies`.
    pub clocks: Vec<(u64, u64)>,
    /// Those that could be looked into.
    pub namespaces: HashMap<u32, NamespaceLook>,
    /// Records and connections that the kernel side has lost by now: while this grows, a new connection that
    /// took the ends of an old one may not have been seen.
    pub lost: u64,
}

/// The minisockets of one network namespace.
#[derive(Debug, Default)]
pub struct NamespaceLook {
    /// When the look began, CLOCK_MONOTONIC, nanoseconds: what was closed before is in it or has ended.
    pub began_ns: u64,
    /// Those in FIN_WAIT2 and TIME_WAIT.
    pub minisockets: Vec<Minisocket>,
    /// There may be more.
    pub is_cut: bool,
    /// How often the kernel has refused to make one since the boot (`TCPTimeWaitOverflow`), read before the
    /// others. `None` if that cannot be read.
    pub overflows: Option<u64>,
}

/// A network namespace to be looked into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its inode.
    pub netns: u32,
    /// A process that closed a connection in it, 0 if none is known.
    pub pid: u32,
}

/// Something that became known of a connection after its socket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct News<'a> {
    /// With the time of the peer's FIN, where that is known now.
    pub(crate) connection: &'a Connection,
    pub(crate) tls: Option<&'a TlsView>,
    pub(crate) time_wait: TimeWait,
}

/// What is known of TIME_WAIT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TimeWait {
    /// When what is told happened; 0 = unknown.
    pub(crate) at_ns: u64,
    /// How far the times may be off, nanoseconds; 0: not at all.
    pub(crate) grain_ns: u64,
    /// From the entry into TIME_WAIT to its end, nanoseconds.
    pub(crate) duration_ns: Option<u64>,
    /// How it ended; `None`: it goes on.
    pub(crate) end: Option<TimeWaitEnd>,
    /// The new connection on its ends: cookie and generation.
    pub(crate) reused_by: Option<(u64, u16)>,
}

/// Receives news.
type Report<'r> = &'r mut dyn FnMut(News<'_>);

/// The connections whose minisocket has not been seen to end.
#[derive(Debug)]
pub(crate) struct TimeWaits {
    owed: HashMap<Ends, Owed>,
    clock: JiffiesClock,
    /// Whether connections are named by the kernel's cookies, which minisockets inherit.
    ids_are_cookies: bool,
    /// When the next look is due; `None`: nothing is owed, or one is under way.
    due_ns: Option<u64>,
    last_ns: Option<u64>,
    looks: u64,
    lost: u64,
    /// By network namespace, at the last look into it.
    overflows: HashMap<u32, u64>,
    unknown: u64,
    refused: u64,
}

/// What identifies a connection at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Ends {
    netns: u32,
    ports: (u16, u16),
    local: IpAddr,
    remote: IpAddr,
}

#[derive(Debug)]
struct Owed {
    connection: Connection,
    tls: Option<Box<TlsView>>,
    /// How far `connection.peer_fin_ns` may be off.
    grain_ns: u64,
    seen: Option<Seen>,
    /// The look that saw it last.
    look: u64,
    /// Its minisocket has ended, for another connection took its ends or somebody destroyed it.
    taken: Option<Taken>,
}

/// An end of which it is not known yet what it was for.
#[derive(Clone, Copy, Debug)]
struct Taken {
    at_ns: u64,
    /// A SYN took the ends; otherwise a process of this host did something.
    by_syn: bool,
}

/// A minisocket as it was seen last.
#[derive(Clone, Copy, Debug)]
struct Seen {
    at_ns: u64,
    in_time_wait: bool,
    /// When its timer fires; `None` if that is not known.
    fires_ns: Option<u64>,
}

impl TimeWaits {
    pub(crate) fn new(tick_ns: u64, ids_are_cookies: bool) -> Self {
        Self {
            owed: HashMap::new(),
            clock: JiffiesClock::new(tick_ns),
            ids_are_cookies,
            due_ns: None,
            last_ns: None,
            looks: 0,
            lost: 0,
            overflows: HashMap::new(),
            unknown: 0,
            refused: 0,
        }
    }

    /// Ends of TIME_WAIT that were not seen for what they are.
    pub(crate) const fn unknown(&self) -> u64 {
        self.unknown
    }

    /// Connections that are not followed, because too many are.
    pub(crate) const fn refused(&self) -> u64 {
        self.refused
    }

    /// A connection closed.
    pub(crate) fn closed(&mut self, connection: &Connection, now_ns: u64) {
        if !close::enters_time_wait(connection) {
            return;
        }
        let ends = Ends::of(connection);
        if self.owed.len() >= MAX_OWED && !self.owed.contains_key(&ends) {
            self.refused += 1;
            return;
        }
        let owed = Owed { connection: *connection, tls: None, grain_ns: 0, seen: None, look: 0, taken: None };
        if self.owed.insert(ends, owed).is_some() {
            // Its successor's opening was not seen.
            self.unknown += 1;
        }
        if self.due_ns.is_none() && self.owed.len() == 1 {
            let paced = self.last_ns.map_or(0, |last| last.saturating_add(PACE_NS));
            self.due_ns = Some(now_ns.saturating_add(FIRST_NS).max(paced));
        }
    }

    /// It had this TLS handshake.
    pub(crate) fn had_tls(&mut self, connection: &Connection, tls: TlsView) {
        if let Some(owed) = self.owed.get_mut(&Ends::of(connection))
            && (owed.connection.id, owed.connection.generation) == (connection.id, connection.generation)
        {
            owed.tls = Some(Box::new(tls));
        }
    }

    /// A connection was opened, or failed to be: if it has the ends of an old one, that is over.
    pub(crate) fn opened(&mut self, connection: &Connection, report: Report<'_>) {
        if self.owed.is_empty() {
            return;
        }
        let Some(mut old) = self.owed.remove(&Ends::of(connection)) else { return };
        let began_ns = match connection.role() {
            // `connect()` takes the ends, however late the SYN leaves.
            Some(Role::Client) => {
                Some(connection.syn_ns).filter(|_| !connection.flags.contains(ConnectionFlags::DEFERRED_SYN))
            }
            _ => open::duration_us(connection).and_then(|us| connection.open_ns.checked_sub(us * 1000)),
        }
        .filter(|&ns| ns != 0);
        if let Some(Taken { at_ns, .. }) = old.taken {
            let reused_by = Some((connection.id, connection.generation));
            old.end(TimeWaitEnd::Reused, at_ns, old.lasted_until(at_ns), reused_by, report);
            return self.rest_if_empty();
        }
        let entered_ns = old.connection.peer_fin_ns.max(old.simultaneous_ns());
        let by_ns = began_ns.unwrap_or(connection.open_ns);
        let fires_ns = old.seen.filter(|seen| seen.in_time_wait).and_then(|seen| seen.fires_ns);
        match fires_ns {
            Some(fires_ns) if by_ns > fires_ns => old.ran_out(fires_ns, self.clock.tick_ns(), report),
            _ if entered_ns != 0 && by_ns < entered_ns.saturating_add(TIME_WAIT_NS) => {
                let duration_ns = began_ns.and_then(|began| began.checked_sub(entered_ns));
                let reused_by = Some((connection.id, connection.generation));
                old.end(TimeWaitEnd::Reused, by_ns, duration_ns, reused_by, report);
            }
            _ => self.unknown += 1,
        }
        self.rest_if_empty();
    }

    /// Something happened to a minisocket, which a hook saw at that moment.
    pub(crate) fn hooked(&mut self, news: &MinisocketNews, report: Report<'_>) {
        let MinisocketNews { netns, segment, minisocket: tw, .. } = news;
        let Some(ends) = Ends::of_minisocket(*netns, tw) else { return };
        let Some(owed) = self.owed.get_mut(&ends).filter(|owed| owed.taken.is_none()) else { return };
        if !owed.is_of(tw, self.ids_are_cookies) {
            return;
        }
        match news.step() {
            Some(MinisocketStep::Fin) if close::peer_fin_unseen(&owed.connection) => {
                (owed.connection.peer_fin_ns, owed.grain_ns) = (tw.now_ns, 0);
                owed.seen = Some(Seen { at_ns: tw.now_ns, in_time_wait: true, fires_ns: None });
                owed.report(TimeWait { at_ns: tw.now_ns, ..TimeWait::default() }, report);
            }
            Some(MinisocketStep::End) => {
                let in_time_wait = u32::from(tw.substate) == states::TIME_WAIT;
                let is_due = tw.jiffies >= fires_at(tw.expires, tw.timer_flags).unwrap_or(tw.expires);
                let by_syn = in_time_wait && segment & SYN != 0;
                // In TIME_WAIT no other segment ends it (`tcp_timewait_state_process`).
                let by_segment = *segment != 0 && (!in_time_wait || segment & (SYN | RST) != 0);
                let end = match is_due {
                    true if in_time_wait => TimeWaitEnd::RanOut,
                    true => TimeWaitEnd::NoFin,
                    false if by_segment && !by_syn => TimeWaitEnd::Reset,
                    false => {
                        owed.taken = Some(Taken { at_ns: tw.now_ns, by_syn });
                        return;
                    }
                };
                owed.end(end, tw.now_ns, owed.lasted_until(tw.now_ns), None, report);
                self.owed.remove(&ends);
                self.rest_if_empty();
            }
            _ => {}
        }
    }

    /// Which network namespaces are to be looked into now. After that the looks wait for
    /// [`TimeWaits::looked`].
    pub(crate) fn wanted(&mut self, now_ns: u64) -> Option<Vec<Wanted>> {
        if self.due_ns.is_none_or(|due| now_ns < due) {
            return None;
        }
        self.due_ns = None;
        let mut found: HashMap<u32, u32> = HashMap::new();
        for Owed { connection, .. } in self.owed.values() {
            let pid = found.entry(connection.netns).or_default();
            *pid = (*pid).max(connection.pid);
        }
        Some(found.into_iter().map(|(netns, pid)| Wanted { netns, pid }).collect())
    }

    /// Takes what was seen. Everything that the kernel side had reported by then must have been taken before.
    pub(crate) fn looked(&mut self, look: &Look, now_ns: u64, report: Report<'_>) {
        self.looks += 1;
        self.last_ns = Some(now_ns);
        for &(at_ns, jiffies) in &look.clocks {
            self.clock.observe(at_ns, jiffies);
        }
        for (&netns, namespace) in &look.namespaces {
            for tw in &namespace.minisockets {
                self.clock.observe(tw.now_ns, tw.jiffies);
            }
            for tw in &namespace.minisockets {
                self.sighted(netns, tw, report);
            }
        }
        self.settle(look, now_ns, report);
        self.overflows.retain(|netns, _| look.namespaces.contains_key(netns));
        for (&netns, namespace) in &look.namespaces {
            if let Some(overflows) = namespace.overflows {
                self.overflows.insert(netns, overflows);
            }
        }
        self.lost = look.lost;
        self.due_ns = Some(now_ns.saturating_add(PACE_NS));
        self.rest_if_empty();
    }

    fn rest_if_empty(&mut self) {
        if self.owed.is_empty() {
            self.due_ns = None;
        }
        if self.owed.len() < self.owed.capacity() / 4 {
            self.owed.shrink_to(2 * self.owed.len());
        }
    }

    fn sighted(&mut self, netns: u32, tw: &Minisocket, report: Report<'_>) {
        let Some(owed) = Ends::of_minisocket(netns, tw).and_then(|ends| self.owed.get_mut(&ends)) else {
            return;
        };
        if owed.taken.is_some() || !owed.is_of(tw, self.ids_are_cookies) {
            return;
        }
        owed.look = self.looks;
        let fires_ns = fires_at(tw.expires, tw.timer_flags).and_then(|jiffies| self.clock.at(jiffies));
        let in_time_wait = u32::from(tw.substate) == states::TIME_WAIT;
        let without_fin_ns = owed.seen.filter(|seen| !seen.in_time_wait).map_or(0, |seen| seen.at_ns);
        let came_now = in_time_wait && close::peer_fin_unseen(&owed.connection);
        owed.seen = Some(Seen { at_ns: tw.now_ns, in_time_wait, fires_ns });
        if !came_now {
            return;
        }
        let Connection { closed_ns, fin_acked_ns, .. } = owed.connection;
        // The socket gave way to the minisocket just before it was closed.
        let not_before_ns = fin_acked_ns.max(closed_ns.saturating_sub(1_000_000)).max(without_fin_ns);
        if let Some(Moment { ns, grain_ns }) = fin::moment(tw, &self.clock, closed_ns, not_before_ns) {
            owed.connection.peer_fin_ns = ns;
            owed.grain_ns = grain_ns;
            owed.report(TimeWait { at_ns: ns, grain_ns, ..TimeWait::default() }, report);
        }
    }

    /// Judges those that were not seen although they would have been.
    fn settle(&mut self, look: &Look, now_ns: u64, report: Report<'_>) {
        let (looks, tick_ns, lost) = (self.looks, self.clock.tick_ns(), look.lost != self.lost);
        let is_gone = |owed: &Owed, namespace: &NamespaceLook| {
            owed.taken.is_none()
                && owed.look != looks
                && owed.connection.closed_ns < namespace.began_ns
                && !namespace.is_cut
        };
        // Of each namespace: how many were never seen, and how many the kernel refused since the last look.
        let mut never_seen: HashMap<u32, u64> = HashMap::new();
        for owed in self.owed.values().filter(|owed| owed.seen.is_none()) {
            let netns = owed.connection.netns;
            if look.namespaces.get(&netns).is_some_and(|namespace| is_gone(owed, namespace)) {
                *never_seen.entry(netns).or_default() += 1;
            }
        }
        let refused = |netns: u32| {
            let overflows = look.namespaces.get(&netns)?.overflows?;
            let before = self.overflows.get(&netns).copied().or((overflows == 0).then_some(0))?;
            Some(overflows.saturating_sub(before))
        };
        let mut over = HashSet::new();
        let mut unknown = 0;
        for (ends, owed) in &mut self.owed {
            let netns = owed.connection.netns;
            if let Some(taken) = owed.taken {
                if now_ns.saturating_sub(taken.at_ns) > FORGET_NS {
                    over.insert(*ends);
                    unknown += u64::from(!owed.taken_by_nobody(taken, lost, report));
                }
                continue;
            }
            let Some(namespace) = look.namespaces.get(&netns) else {
                if now_ns.saturating_sub(owed.connection.closed_ns) > FORGET_NS {
                    over.insert(*ends);
                    unknown += 1;
                }
                continue;
            };
            if !is_gone(owed, namespace) {
                continue;
            }
            over.insert(*ends);
            let cut_off = refused(netns).map(|refused| {
                let candidates = never_seen.get(&netns).copied().unwrap_or(0);
                (refused > 0, refused >= candidates)
            });
            match owed.fate(namespace.began_ns, lost, cut_off) {
                Some(TimeWaitEnd::RanOut) => {
                    let fires_ns = owed.seen.and_then(|seen| seen.fires_ns).unwrap_or(0);
                    owed.ran_out(fires_ns, tick_ns, report);
                }
                Some(TimeWaitEnd::NoFin) => {
                    let fires_ns = owed.seen.and_then(|seen| seen.fires_ns).unwrap_or(0);
                    owed.end(TimeWaitEnd::NoFin, fires_ns, None, None, report);
                }
                Some(end) => owed.end(end, 0, None, None, report),
                None => unknown += 1,
            }
        }
        self.unknown += unknown;
        self.owed.retain(|ends, _| !over.contains(ends));
    }
}

impl Owed {
    /// Whether this is its minisocket. Without a cookie it was made before anybody asked for one; with
    /// another one, it is a later connection's.
    const fn is_of(&self, tw: &Minisocket, ids_are_cookies: bool) -> bool {
        !ids_are_cookies || tw.cookie == 0 || tw.cookie == self.connection.id
    }

    /// How long TIME_WAIT lasted, where its beginning is known.
    fn lasted_until(&self, at_ns: u64) -> Option<u64> {
        let entered_ns = self.connection.peer_fin_ns.max(self.simultaneous_ns());
        at_ns.checked_sub(entered_ns).filter(|_| entered_ns != 0)
    }

    /// No connection came of what took the ends. Returns whether it is known what that was.
    fn taken_by_nobody(&self, taken: Taken, lost: bool, report: Report<'_>) -> bool {
        let end = match taken {
            // One that never became a connection.
            Taken { by_syn: true, .. } => TimeWaitEnd::Reused,
            // A `connect()` would have ended by now.
            _ if !lost => TimeWaitEnd::Reset,
            _ => return false,
        };
        self.end(end, taken.at_ns, self.lasted_until(taken.at_ns), None, report);
        true
    }

    /// Why it has ended by `by_ns`. `cut_off`: whether the kernel refused to make minisockets since the last
    /// look, and whether it refused at least as many as were never seen.
    fn fate(&self, by_ns: u64, lost: bool, cut_off: Option<(bool, bool)>) -> Option<TimeWaitEnd> {
        // A SYN to a server's listener ends TIME_WAIT as well, and nothing shows it if no connection comes of
        // it.
        let reset = (self.connection.role() == Some(Role::Client) && !lost).then_some(TimeWaitEnd::Reset);
        match self.seen {
            Some(Seen { at_ns, in_time_wait, fires_ns }) => match fires_ns? {
                fires_ns if by_ns < fires_ns => reset,
                _ if in_time_wait => Some(TimeWaitEnd::RanOut),
                // A FIN that had come after that would have kept it for another 60 s.
                _ if by_ns - at_ns < TIME_WAIT_NS => Some(TimeWaitEnd::NoFin),
                _ => None,
            },
            None => match cut_off? {
                (true, true) if !lost => Some(TimeWaitEnd::CutOff),
                (false, _) if by_ns.saturating_sub(self.connection.closed_ns) < TIME_WAIT_NS => {
                    // In FIN_WAIT2 it may have ended by `tcp_fin_timeout`.
                    reset.filter(|_| self.connection.peer_fin_ns != 0 || self.simultaneous_ns() != 0)
                }
                _ => None,
            },
        }
    }

    fn ran_out(&mut self, fires_ns: u64, tick_ns: u64, report: Report<'_>) {
        let duration_ns = self.lasted_until(fires_ns);
        self.grain_ns = self.grain_ns.saturating_add(tick_ns);
        self.end(TimeWaitEnd::RanOut, fires_ns, duration_ns, None, report);
    }

    fn end(
        &self,
        end: TimeWaitEnd,
        at_ns: u64,
        duration_ns: Option<u64>,
        reused_by: Option<(u64, u16)>,
        report: Report<'_>,
    ) {
        let grain_ns = self.grain_ns;
        self.report(TimeWait { at_ns, grain_ns, duration_ns, end: Some(end), reused_by }, report);
    }

    fn report(&self, time_wait: TimeWait, report: Report<'_>) {
        report(News { connection: &self.connection, tls: self.tls.as_deref(), time_wait });
    }

    /// When both ends had closed at once, TIME_WAIT begins with the ACK of our FIN; else 0.
    const fn simultaneous_ns(&self) -> u64 {
        if self.connection.flags.contains(ConnectionFlags::CLOSING) {
            self.connection.fin_acked_ns
        } else {
            0
        }
    }
}

impl Ends {
    fn of(connection: &Connection) -> Self {
        let is_v6 = connection.family == handshake_common::Family::Ipv6.code();
        Self {
            netns: connection.netns,
            ports: (connection.local_port, connection.remote_port),
            local: address(is_v6, connection.local),
            remote: address(is_v6, connection.remote),
        }
    }

    fn of_minisocket(netns: u32, tw: &Minisocket) -> Option<Self> {
        let is_v6 = tw.family()? == handshake_common::Family::Ipv6;
        Some(Self {
            netns,
            ports: (tw.local_port, tw.remote_port),
            local: address(is_v6, tw.local),
            remote: address(is_v6, tw.remote),
        })
    }
}

fn address(is_v6: bool, bytes: [u8; 16]) -> IpAddr {
    let [a, b, c, d, ..] = bytes;
    if is_v6 { IpAddr::from(bytes) } else { IpAddr::from([a, b, c, d]) }
}

#[cfg(test)]
mod tests;
