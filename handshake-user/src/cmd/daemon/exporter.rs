//! The metrics and their sources, shared by the event loop and the HTTP pages.

use std::{
    ops::ControlFlow,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{MapData, RingBuf};
use handshake_common::totals::Totals;

use super::preexisting;
use crate::{
    cgroup::Names,
    config::Config,
    exporter::{
        http::Pages,
        metrics::{Format, Metrics, PENDING},
    },
    host::Context,
    host::{self, Host},
    join::{Joiner, time_wait::Look},
    kernel::{
        listeners::Listeners,
        probe::hook::HOOKS,
        raw_record::RawRecord,
        ring::{self, Fill},
    },
    logging,
    settings::ProbeSettings,
    tracer::Tracer,
    untrusted::Untrusted,
};

/// Turns of the ring before a scrape: as many records as the default ring holds, some tens of milliseconds,
/// so that a scrape is fresh and yet does not wait for a ring that fills as fast as it is read.
const SCRAPE_TURNS: u32 = 5;
/// Most attempts to count the existing connections without one changing meanwhile.
const COUNTS: u32 = 10;
/// How long that may take: a million sockets in fifty namespaces take longer than any other part.
const COUNTING: Duration = Duration::from_mins(2);
/// An event loop without a turn for this long is stuck.
const STUCK: Duration = Duration::from_secs(10);

/// The metrics and their sources. The lock is never held across a wait.
pub(super) struct Exporter {
    state: Mutex<State>,
}

struct State {
    /// The one in force.
    config: Config,
    metrics: Metrics,
    live: Option<Live>,
    /// When the event loop last had a turn.
    turn: Instant,
}

/// The running kernel side.
pub(super) struct Live {
    pub(super) tracer: Tracer,
    ring: RingBuf<MapData>,
    ring_bytes: u64,
    /// How full the ring is, where its positions can be mapped.
    fill: Option<Fill>,
    joiner: Joiner,
    /// What was seen of time-wait minisockets, until all records from before have been read.
    look: Option<Look>,
    host: Host,
}

impl Live {
    pub(super) fn new(tracer: Tracer, ring: RingBuf<MapData>, settings: &ProbeSettings) -> Self {
        let joiner = tracer.joiner();
        let fill = Fill::of(&ring)
            .inspect_err(|error| tracing::warn!(%error, "how full the ring buffer is stays unknown"))
            .ok();
        let ring_bytes = u64::from(settings.ring_bytes());
        Self { tracer, ring, ring_bytes, fill, joiner, look: None, host: Host::new() }
    }
}

impl Exporter {
    /// Every metric, before anything is attached.
    pub(super) fn new(config: Config) -> Result<Self> {
        let metrics = Metrics::new(&config.metrics)?;
        metrics.watch_process()?;
        metrics.configured();
        for hook in HOOKS {
            metrics.probe(hook.name, PENDING, false);
        }
        Ok(Self { state: Mutex::new(State { config, metrics, live: None, turn: Instant::now() }) })
    }

    /// Takes over what can be changed while it runs. Returns the keys of what else is different.
    pub(super) fn reconfigure(&self, new: &Config) -> Result<Vec<String>> {
        let mut state = self.lock();
        let State { config, metrics, .. } = &mut *state;
        let waiting = config.change_to(new);
        metrics.reconfigure(&config.metrics);
        logging::set_level(config.log_level)?;
        Ok(waiting)
    }

    /// Counts an attempt to read the configuration anew.
    pub(super) fn reloaded(&self, is_success: bool) {
        self.lock().metrics.reloaded(is_success);
    }

    /// The probes are attached: from now on, records are read.
    pub(super) fn begin(&self, mut live: Live) -> Result<()> {
        live.tracer = live
            .tracer
            .follow_libraries(ring::CALM)
            .context("cannot start a thread to follow the TLS libraries")?;
        let mut state = self.lock();
        if !live.tracer.probes.fills_histograms() {
            state.metrics.fill_from_records();
        }
        for hook in &live.tracer.probes.hooks {
            let kind = hook.hook.kind(live.tracer.probes.mode);
            state.metrics.probe(hook.hook.name, kind, hook.missing.is_none());
        }
        for function in &live.tracer.probes.functions {
            match &function.attached {
                Ok(tier) => state.metrics.probe(function.hook.prototype.function, tier.as_str(), true),
                Err(reason) => tracing::debug!(%reason, "cannot hook {}", function.hook.prototype.function),
            }
        }
        state.live = Some(live);
        state.turn = Instant::now();
        drop(state);
        give_memory_back();
        Ok(())
    }

    /// Counts the connections that existed before the start. With a million sockets, or in thousands of
    /// namespaces, that takes a while, and everything else goes on meanwhile.
    pub(super) fn count_preexisting(&self) {
        let deadline = Instant::now() + COUNTING;
        for _ in 0..COUNTS {
            // Connections opened since the probes were attached are in the totals, and are subtracted.
            let Some(before) = self.totals() else { return };
            let Some(sockets) = preexisting::sockets(deadline) else {
                tracing::warn!(
                    "counting the existing connections takes longer than {} s; they are missing from \
                     handshake_connections",
                    COUNTING.as_secs()
                );
                return;
            };
            let Some(after) = self.totals() else { return };
            self.lock().metrics.found(&sockets, &after);
            if before == after {
                return;
            }
        }
    }

    /// The totals of now. Returns `None` once the probes are detached, or if the kernel refuses.
    fn totals(&self) -> Option<Totals> {
        self.lock().live.as_ref()?.tracer.probes.totals().ok()
    }

    /// Processes a batch of records; returns whether there may be more.
    pub(super) fn drain(&self) -> bool {
        let mut state = self.lock();
        state.turn = Instant::now();
        state.drain()
    }

    /// Processes the remaining records and detaches the probes.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        state.drain();
        if let Err(error) = state.advance() {
            tracing::warn!(%error, "cannot read the last totals");
        }
        let live = state.live.take();
        // Detaching takes long, and pages are served meanwhile.
        drop(state);
        drop(live);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic leaves no counter half-written.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Parsing the kernel's type information took tens of megabytes, which are not needed again.
fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the function only returns free memory to the kernel, and may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

impl State {
    fn drain(&mut self) -> bool {
        let Self { metrics, live, .. } = self;
        let Some(Live { tracer, ring, ring_bytes, fill, joiner, look, host }) = live else { return false };
        if let Some(fill) = fill {
            metrics.ring(fill.waiting(), *ring_bytes);
        }
        let now = host::monotonic_ns();
        tracer.probes.pass_on_log();
        if let Ok(listeners) = &mut tracer.listeners {
            listeners.turn();
        }
        if let Some(turn) = tracer.worker_turn() {
            metrics.library_turn(turn);
        }
        if let Some((census, skipped)) = tracer.library_news() {
            for ((library, covered), files) in census {
                metrics.library(library, covered, files);
            }
            for (reason, files) in skipped.iter() {
                metrics.library_skipped(reason, files);
            }
        }
        if look.is_none() {
            *look = tracer.take_look();
        }
        let mut context = MetricsContext { cgroups: metrics.needs_cgroups(), host };
        let turn = ring::drain(ring, |raw| {
            joiner.take(raw, now, &mut context, |event| metrics.observe(&event));
            if let (Ok(listeners), RawRecord::Connection(connection)) = (&mut tracer.listeners, raw) {
                listeners.heed(connection);
            }
            ControlFlow::Continue(())
        });
        joiner.expire(now, &mut context, |event| metrics.observe(&event));
        if let Some(look) = look.take_if(|_| !turn.more) {
            joiner.looked(&look, now, &mut context, |event| metrics.observe(&event));
        }
        tracer.look_if_wanted(joiner, now);
        metrics.malformed(turn.malformed);
        turn.more
    }

    fn advance(&mut self) -> Result<()> {
        if let Some(live) = &self.live {
            let probes = &live.tracer.probes;
            let totals = probes.totals()?;
            self.metrics.time_wait_losses(live.joiner.time_wait_losses());
            self.metrics.advance(&totals, probes.missed_runs());
            if let Some(histograms) = probes.histograms()? {
                self.metrics.fill(&histograms, &totals, probes.wire_coverage);
            }
            self.metrics.disagreed(live.joiner.disagreements());
            self.metrics.run_times(probes.run_times().as_deref());
            self.metrics.library_queue(live.tracer.inspection_queue());
            // Reading takes a descriptor. Without one, the rest of the page is still true.
            match live.tracer.listeners.as_ref().ok().map(Listeners::queues) {
                Some(Ok(queues)) => self.metrics.listening(&queues),
                Some(Err(error)) => tracing::warn!(%error, "cannot read the accept queues"),
                None => {}
            }
        }
        Ok(())
    }
}

/// The host, but for the paths of cgroups that no label asks for.
struct MetricsContext<'h> {
    host: &'h mut Host,
    cgroups: bool,
}

impl Context for MetricsContext<'_> {
    fn wall_time(&self, monotonic_ns: u64) -> SystemTime {
        self.host.wall_time(monotonic_ns)
    }

    fn cgroup(&mut self, id: u64) -> Option<Untrusted> {
        if self.cgroups { self.host.cgroup(id) } else { None }
    }

    fn names(&mut self, cgroup: Option<&Untrusted>, pid: u32, at_ns: u64) -> Names {
        if self.cgroups { self.host.names(cgroup, pid, at_ns) } else { Names::default() }
    }
}

impl Pages for Exporter {
    fn metrics(&self, format: Format) -> Result<String> {
        let mut state = self.lock();
        for _ in 0..SCRAPE_TURNS {
            if !state.drain() {
                break;
            }
        }
        state.advance()?;
        Ok(state.metrics.render(format)?)
    }

    fn config(&self) -> String {
        self.lock().config.to_toml()
    }

    fn healthy(&self) -> Result<()> {
        let state = self.lock();
        let still = state.turn.elapsed();
        ensure!(state.live.is_none() || still <= STUCK, "the event loop has had no turn for {still:.0?}");
        Ok(())
    }

    fn ready(&self) -> Result<()> {
        // If a required probe cannot be attached, the program exits.
        ensure!(self.lock().live.is_some(), "the probes are not attached");
        Ok(())
    }
}
