//! Prometheus metrics: totals from the kernel side's counters, durations of TCP from its histograms or, with
//! labels on demand, from events; durations of TLS from events (docs/metrics.md).

mod class;
mod counting;
mod exposition;
mod family;
mod gauge;
mod itself;
mod labels;
mod listening;
mod negotiated;
mod possible;
mod time_wait;
mod timing;
mod tls;

use std::time::{Duration, SystemTime};

use handshake_common::{
    CloseStyle, Family, FastOpen, FinalAck, Initiator, Library, Outcome, Role, Stage,
    histograms::{self, Bounds},
    tcp::listener::Queue,
    totals::{self, DropReason, Totals},
};
use prometheus::{
    IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry, process_collector::ProcessCollector,
};

use self::{
    class::{FAMILY, FAST_OPEN, FAST_OPEN_RESULT, FINAL_ACK, INITIATOR, OUTCOME, ROLE, STYLE},
    counting::{Counting, catch_up},
    gauge::Connections,
    itself::Itself,
    labels::{Key, Labels},
    listening::Listening,
    time_wait::TimeWait,
    timing::Timing,
    tls::Handshakes,
};
pub use self::{exposition::Format, gauge::Census};
use crate::{
    config::{self, Label, Purpose},
    event::{ConnectionEvent, Open},
    join::merge::Fact,
    kernel::probe::{Histograms, RunTime, WireCoverage},
    otlp,
    recording::Counts,
    tls::library::skipped::Reason,
};

/// Every metric of the daemon.
pub struct Metrics {
    registry: Registry,
    labels: Labels,
    timings: Timings,
    handshakes: Handshakes,
    counts: [Counting; 4],
    connections: Connections,
    listening: Listening,
    events: Events,
    time_wait: TimeWait,
    probes: IntGaugeVec,
    itself: Itself,
}

/// Durations of TCP.
struct Timings {
    /// Whether the kernel side observes them; otherwise they are in the records.
    in_kernel: bool,
    open_duration: Timing<4>,
    open_rtt: Timing<2>,
    close_duration: Timing<3>,
    close_ack_wait: Timing<2>,
    close_app_wait: Timing<2>,
    accept_wait: Timing<1>,
}

/// Counts of records, and of those lost.
struct Events {
    opens: IntCounter,
    handshakes: IntCounter,
    closes: IntCounter,
    time_waits: IntCounter,
    malformed: IntCounter,
    lost: Vec<(DropReason, IntCounter)>,
    /// Connections that user space did not follow beyond their socket.
    time_wait_refused: u64,
    missed: IntCounter,
}

impl Metrics {
    /// Registers every family, the counters with zeros for every class that can occur.
    ///
    /// # Errors
    /// When the library refuses a name or a bucket, which the settings' types rule out.
    pub fn new(settings: &config::Metrics) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let labels = Labels::new(&registry, settings)?;
        let probes = IntGaugeVec::new(
            Opts::new("handshake_probe_attached", "Whether a probe is attached (1), and how."),
            &["probe", "kind"],
        )?;
        registry.register(Box::new(probes.clone()))?;
        Ok(Self {
            timings: Timings::new(&registry, settings, &labels)?,
            handshakes: Handshakes::new(&registry, settings, &labels)?,
            counts: counts(&registry)?,
            connections: Connections::new(&registry)?,
            listening: Listening::new(&registry, settings.max_series)?,
            events: Events::new(&registry)?,
            time_wait: TimeWait::new(&registry, settings)?,
            itself: Itself::new(&registry)?,
            registry,
            labels,
            probes,
        })
    }

    /// Adds `process_*`: what the daemon itself costs.
    ///
    /// # Errors
    /// When it is added twice.
    pub fn watch_process(&self) -> prometheus::Result<()> {
        self.registry.register(Box::new(ProcessCollector::for_self()))
    }

    /// Takes over those of the settings that need no new families.
    pub const fn reconfigure(&mut self, settings: &config::Metrics) {
        self.labels.set_remote_net(settings.remote_net);
        self.timings.set_max_series(settings.max_series);
        self.handshakes.set_max_series(settings.max_series);
    }

    /// Sets how a probe is attached, or that it is not.
    pub fn probe(&self, name: &str, kind: &str, attached: bool) {
        // Replaces what was said before.
        let _ = self.probes.remove_label_values(&[name, PENDING]);
        self.probes.with_label_values(&[name, kind]).set(i64::from(attached));
    }

    /// Observes an event. Its cgroup is needed only for the labels that come from it: see
    /// [`Metrics::needs_cgroups`].
    pub fn observe(&mut self, event: &ConnectionEvent) {
        let Self { labels, timings, handshakes, events, time_wait, .. } = self;
        let key = labels.key(event);
        match event.stage {
            Stage::Open => {
                events.opens.inc();
                timings.opened(event, labels, key.as_ref());
            }
            Stage::Tls => events.handshakes.inc(),
            Stage::Close => {
                events.closes.inc();
                timings.closed(event, labels, key.as_ref());
            }
            Stage::TimeWait => {
                events.time_waits.inc();
                match event.close.as_ref().map(|close| (close, close.time_wait_end)) {
                    // The late FIN.
                    Some((_, None)) => timings.closed_late(event, labels, key.as_ref()),
                    Some((close, Some(end))) => time_wait.ended(close, end),
                    None => {}
                }
            }
        }
        handshakes.observe(event, labels, key.as_ref());
    }

    /// Whether events need the paths of their cgroups.
    #[must_use]
    pub fn needs_cgroups(&self) -> bool {
        [Label::Cgroup, Label::Unit, Label::ContainerId, Label::PodUid]
            .into_iter()
            .any(|label| self.labels.wants(label))
    }

    /// Sets how many files of a TLS library are in use, by whether their handshakes are seen.
    pub fn library(&self, library: Library, covered: bool, files: i64) {
        self.handshakes.library(library, covered, files);
    }

    /// Sets how many files were not probed for this reason.
    pub fn library_skipped(&self, reason: Reason, files: u64) {
        self.handshakes.library_skipped(reason, files);
    }

    /// Sets when the thread that follows the libraries last completed a turn.
    pub fn library_turn(&self, at: SystemTime) {
        self.handshakes.library_turn(at);
    }

    /// Sets how many files await their inspection.
    pub fn library_queue(&self, files: usize) {
        self.itself.inspections(files);
    }

    /// Takes how much of the ring was in use when it was read, and its size, bytes.
    pub fn ring(&mut self, waiting: u64, size: u64) {
        self.itself.ring(waiting, size);
    }

    /// Takes how long each program has run in the kernel, or that the kernel does not keep it.
    pub fn run_times(&self, run_times: Option<&[RunTime]>) {
        self.itself.run_times(run_times);
    }

    /// The configuration has just been read, for the first time.
    pub fn configured(&self) {
        self.itself.in_force();
    }

    /// Takes what became of the records that are written to files.
    pub fn records(&self, counts: Counts) {
        self.itself.records(counts);
    }

    /// Takes what became of the connections that are exported as traces.
    pub fn traces(&self, counts: &otlp::Counts) {
        self.itself.traces(counts);
    }

    /// Takes what became of the exports of the metrics themselves.
    pub fn exports(&self, fates: &otlp::Fates) {
        self.itself.exports(fates);
    }

    /// Counts an attempt to read the configuration anew.
    pub fn reloaded(&self, is_success: bool) {
        self.itself.reloaded(is_success);
    }

    /// How often the two views of a handshake disagreed on each fact.
    pub fn disagreed(&self, facts: impl Iterator<Item = (Fact, u64)>) {
        for (fact, count) in facts {
            self.handshakes.disagreed(fact, count);
        }
    }

    /// Connections of which it is not known how TIME_WAIT ended, and those that were not followed.
    pub fn time_wait_losses(&mut self, (unknown, refused): (u64, u64)) {
        catch_up(&self.time_wait.unknown, unknown);
        self.events.time_wait_refused = refused;
    }

    /// Takes the queues of the listening sockets.
    pub fn listening(&mut self, queues: &[Queue]) {
        self.listening.set(queues);
    }

    /// Counts records whose shape this program does not know.
    pub fn malformed(&self, records: u64) {
        self.events.malformed.inc_by(records);
    }

    /// Takes the number of sockets found while the counters had these values, see `Connections::found`.
    pub fn found(&mut self, sockets: &Census, totals: &Totals) {
        self.connections.found(sockets, totals);
    }

    /// Takes what the kernel side has observed, if [`config::Metrics::bounds`] told it to. What it counts as
    /// a setup without TLS is one only where the wire view sees every handshake.
    pub fn fill(&mut self, histograms: &Histograms, totals: &Totals, wire: WireCoverage) {
        self.timings.fill(histograms);
        if wire == WireCoverage::All {
            self.handshakes.fill(histograms, totals);
        }
    }

    /// From now on records fill all histograms: the kernel side does not.
    pub const fn fill_from_records(&mut self) {
        self.timings.in_kernel = false;
        self.handshakes.fill_from_records();
    }

    /// Advances the counters to what the kernel side has counted; `missed` are the runs that the kernel left
    /// out.
    pub fn advance(&mut self, totals: &Totals, missed: u64) {
        for counting in &mut self.counts {
            counting.advance(|slot| totals.at(slot));
        }
        self.connections.set(totals);
        self.handshakes.advance(totals);
        for (loss, counter) in &self.events.lost {
            let refused = if *loss == DropReason::TimeWaitFull { self.events.time_wait_refused } else { 0 };
            catch_up(counter, totals.at(totals::lost(*loss)) + refused);
        }
        catch_up(&self.events.missed, missed);
    }

    /// The text that Prometheus scrapes.
    ///
    /// # Errors
    /// When the library cannot write it down.
    pub fn render(&self, format: Format) -> prometheus::Result<String> {
        exposition::render(&self.gather(), format)
    }

    /// The metrics, as the library keeps them.
    #[must_use]
    pub fn gather(&self) -> Vec<prometheus::proto::MetricFamily> {
        self.registry.gather()
    }
}

/// The kind of a probe that has not been attached yet.
pub const PENDING: &str = "pending";

impl Timings {
    fn new(registry: &Registry, settings: &config::Metrics, labels: &Labels) -> prometheus::Result<Self> {
        Ok(Self {
            in_kernel: settings.bounds() != Bounds::NONE,
            open_duration: Timing::new(
                registry,
                settings,
                labels,
                (
                    "handshake_tcp_open_duration_seconds",
                    "Established openings. Client: SYN to ESTABLISHED; server: first SYN-ACK to ESTABLISHED.",
                ),
                Purpose::Opening,
                [ROLE, FAMILY, FAST_OPEN, FINAL_ACK],
            )?,
            open_rtt: Timing::new(
                registry,
                settings,
                labels,
                (
                    "handshake_tcp_open_rtt_seconds",
                    "Round trip of the network during the opening, free of timers and programs.",
                ),
                Purpose::RoundTrip,
                [ROLE, FAMILY],
            )?,
            close_duration: Timing::new(
                registry,
                settings,
                labels,
                (
                    "handshake_tcp_close_duration_seconds",
                    "Orderly closings. Active side: our FIN to the peer's; passive: the peer's FIN to the ACK of ours.",
                ),
                Purpose::Wait,
                [ROLE, INITIATOR, STYLE],
            )?,
            close_ack_wait: Timing::new(
                registry,
                settings,
                labels,
                ("handshake_tcp_close_ack_wait_seconds", "Our FIN to its ACK."),
                Purpose::RoundTrip,
                [ROLE, INITIATOR],
            )?,
            close_app_wait: Timing::new(
                registry,
                settings,
                labels,
                (
                    "handshake_tcp_close_app_wait_seconds",
                    "Active side: the ACK of our FIN to the peer's FIN; passive: the peer's FIN to our close.",
                ),
                Purpose::Wait,
                [ROLE, INITIATOR],
            )?,
            accept_wait: Timing::new(
                registry,
                settings,
                labels,
                (
                    "handshake_tcp_accept_wait_seconds",
                    "Server: ESTABLISHED to accept(), where a hook on accept tells it: the program's time.",
                ),
                Purpose::Wait,
                [FAMILY],
            )?,
        })
    }

    const fn set_max_series(&mut self, most: usize) {
        self.open_duration.set_max_series(most);
        self.open_rtt.set_max_series(most);
        self.close_duration.set_max_series(most);
        self.close_ack_wait.set_max_series(most);
        self.close_app_wait.set_max_series(most);
        self.accept_wait.set_max_series(most);
    }

    fn fill(&mut self, from: &Histograms) {
        self.open_duration.fill(from, |[role, family, fast_open, final_ack]| {
            let (role, family) = (Role::from_code(role), Family::from_code(family));
            let (fast_open, final_ack) = (FastOpen::from_code(fast_open), FinalAck::from_code(final_ack));
            Some(histograms::open_duration(role, family, fast_open, final_ack))
        });
        self.open_rtt.fill(from, |[role, family]| {
            Some(histograms::open_rtt(Role::from_code(role), Family::from_code(family)))
        });
        self.close_duration.fill(from, |[role, initiator, style]| {
            let (initiator, style) = (Initiator::from_code(initiator), CloseStyle::from_code(style));
            Some(histograms::close_duration(Role::from_code(role), initiator, style))
        });
        self.close_ack_wait.fill(from, |[role, initiator]| {
            Some(histograms::close_ack_wait(Role::from_code(role), Initiator::from_code(initiator)))
        });
        self.close_app_wait.fill(from, |[role, initiator]| {
            Some(histograms::close_app_wait(Role::from_code(role), Initiator::from_code(initiator)))
        });
        self.accept_wait.fill(from, |[family]| Some(histograms::accept_wait(Family::from_code(family))));
    }

    fn opened(&mut self, event: &ConnectionEvent, labels: &Labels, key: Option<&Key>) {
        let is_established = |open: &&Open| open.outcome == Some(Outcome::Established);
        let Some(open) = event.open.as_ref().filter(is_established).filter(|_| !self.in_kernel) else {
            return;
        };
        let (role, family) = (Role::code_of(event.role), Family::code_of(event.family));
        let class = [role, family, FastOpen::code_of(open.fast_open), FinalAck::code_of(open.final_ack)];
        self.open_duration.observe(class, open.duration, labels, key);
        self.open_rtt.observe([role, family], open.rtt, labels, key);
    }

    fn closed(&mut self, event: &ConnectionEvent, labels: &Labels, key: Option<&Key>) {
        let Some(close) = event.close.as_ref().filter(|_| !self.in_kernel) else { return };
        let (role, initiator) = (Role::code_of(event.counted_role()), Initiator::code_of(close.initiator));
        let class = [role, initiator, CloseStyle::code_of(close.style)];
        self.close_duration.observe(class, close.duration, labels, key);
        self.close_ack_wait.observe([role, initiator], close.ack_wait, labels, key);
        self.close_app_wait.observe([role, initiator], close.app_wait, labels, key);
        // The opening is reported before it is accepted, so this comes with the end.
        let accept_wait = event.open.as_ref().and_then(|open| open.accept_wait);
        self.accept_wait.observe([Family::code_of(event.family)], accept_wait, labels, key);
    }

    /// What the close record lacked, because the peer's FIN came to a time-wait minisocket.
    fn closed_late(&mut self, event: &ConnectionEvent, labels: &Labels, key: Option<&Key>) {
        let Some(close) = &event.close else { return };
        let (role, initiator) = (Role::code_of(event.counted_role()), Initiator::code_of(close.initiator));
        let class = [role, initiator, CloseStyle::code_of(close.style)];
        let told = |timing: Option<Duration>| timing.map(|it| (it, close.grain.unwrap_or_default()));
        self.close_duration.observe_within(class, told(close.duration), labels, key);
        self.close_app_wait.observe_within([role, initiator], told(close.app_wait), labels, key);
    }
}

/// The families that the kernel side counts.
fn counts(registry: &Registry) -> prometheus::Result<[Counting; 4]> {
    Ok([
        Counting::new(
            registry,
            ("handshake_tcp_opens_total", "TCP openings that ended, by outcome."),
            [ROLE, FAMILY, OUTCOME],
            |[role, family, outcome]| {
                let outcome = Outcome::from_code(outcome);
                Some(totals::opens(Role::from_code(role), Family::from_code(family), outcome))
            },
            possible::opens,
        )?,
        Counting::new(
            registry,
            (
                "handshake_tcp_syn_retransmits_total",
                "Retransmitted SYNs (client) and SYN-ACKs (server), of openings that failed or go on too.",
            ),
            [ROLE],
            |[role]| Role::from_code(role).map(totals::syn_retransmits),
            |[role]| role != 0,
        )?,
        Counting::new(
            registry,
            ("handshake_tcp_fast_open_total", "Openings that used TCP Fast Open, by what became of it."),
            [ROLE, FAST_OPEN_RESULT],
            |[role, result]| {
                let result = FastOpen::from_code(result);
                (result != Some(FastOpen::None)).then(|| totals::fast_opens(Role::from_code(role), result))
            },
            possible::fast_open,
        )?,
        Counting::new(
            registry,
            ("handshake_tcp_closes_total", "TCP closings that ended, by who began them and how they went."),
            [ROLE, INITIATOR, STYLE],
            |[role, initiator, style]| {
                let (initiator, style) = (Initiator::from_code(initiator), CloseStyle::from_code(style));
                Some(totals::closes(Role::from_code(role), initiator, style))
            },
            possible::closes,
        )?,
    ])
}

impl Events {
    fn new(registry: &Registry) -> prometheus::Result<Self> {
        let arrived = IntCounterVec::new(
            Opts::new("handshake_events_total", "Records that arrived from the kernel side, by stage."),
            &["stage"],
        )?;
        let lost = IntCounterVec::new(
            Opts::new(
                "handshake_events_lost_total",
                "What was not seen or not delivered, by reason: durations lack these, totals only recursion.",
            ),
            &["reason"],
        )?;
        registry.register(Box::new(arrived.clone()))?;
        registry.register(Box::new(lost.clone()))?;
        Ok(Self {
            opens: arrived.with_label_values(&[Stage::Open.as_str()]),
            handshakes: arrived.with_label_values(&[Stage::Tls.as_str()]),
            closes: arrived.with_label_values(&[Stage::Close.as_str()]),
            time_waits: arrived.with_label_values(&[Stage::TimeWait.as_str()]),
            time_wait_refused: 0,
            malformed: lost.with_label_values(&["malformed"]),
            lost: DropReason::ALL
                .iter()
                .map(|loss| (*loss, lost.with_label_values(&[loss.as_str()])))
                .collect(),
            missed: lost.with_label_values(&["recursion"]),
        })
    }
}

#[cfg(test)]
mod tests;
