//! What the event loop and the pages share.

use std::{
    ops::ControlFlow,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result};
use aya::maps::{MapData, RingBuf};

use super::preexisting;
use crate::{
    config,
    exporter::{
        http::Pages,
        metrics::{Metrics, PENDING},
    },
    host::Context,
    host::{self, Host},
    join::Joiner,
    kernel::{probe::hook::HOOKS, raw_record::RawRecord, ring},
    tracer::Tracer,
    untrusted::Untrusted,
};

/// Turns of the ring before a scrape: as many records as the default ring holds, some tens of milliseconds,
/// so that a scrape is fresh and yet does not wait for a ring that fills as fast as it is read.
const SCRAPE_TURNS: u32 = 5;
/// How often the connections from before are counted, until nothing happens meanwhile.
const COUNTS: u32 = 10;
/// How long that may take: a million sockets take some seconds.
const COUNTING: Duration = Duration::from_secs(20);
/// A loop that has not come round for so long is stuck.
const STUCK: Duration = Duration::from_secs(10);

/// The metrics, and where they come from. One thread uses it; the lock is never held across a wait.
pub(super) struct Exporter {
    state: Mutex<State>,
}

struct State {
    metrics: Metrics,
    live: Option<Live>,
    /// When the event loop last came round.
    turn: Instant,
}

/// The running kernel side.
pub(super) struct Live {
    pub(super) tracer: Tracer,
    ring: RingBuf<MapData>,
    joiner: Joiner,
    host: Host,
}

impl Live {
    pub(super) fn new(tracer: Tracer, ring: RingBuf<MapData>) -> Self {
        let joiner = Joiner::new(tracer.probes.wire_coverage);
        Self { tracer, ring, joiner, host: Host::new() }
    }
}

impl Exporter {
    /// Every metric, before anything is attached.
    pub(super) fn new(settings: &config::Metrics) -> Result<Self> {
        let metrics = Metrics::new(settings)?;
        metrics.watch_process()?;
        for hook in HOOKS {
            metrics.probe(hook.name, PENDING, false);
        }
        Ok(Self { state: Mutex::new(State { metrics, live: None, turn: Instant::now() }) })
    }

    /// The probes are attached: from now on, something can be said. To count what was there before may take
    /// seconds, while pages are asked for.
    pub(super) fn begin(&self, mut live: Live) -> Result<()> {
        live.tracer = live
            .tracer
            .follow_libraries(ring::CALM)
            .context("cannot start a thread to follow the TLS libraries")?;
        for hook in &live.tracer.probes.hooks {
            let kind = hook.hook.kind(live.tracer.probes.mode);
            self.lock().metrics.probe(hook.hook.name, kind, hook.missing.is_none());
        }
        if let Ok(listeners) = &live.tracer.listeners {
            self.lock().metrics.listening(&listeners.queues()?);
        }
        let deadline = Instant::now() + COUNTING;
        for _ in 0..COUNTS {
            // What has begun since the probes are attached is in the totals and is taken off.
            let before = live.tracer.probes.totals()?;
            let Some(sockets) = preexisting::sockets(deadline) else {
                tracing::warn!(
                    "counting the connections that were there before takes longer than {} s, so those that are not counted yet \
                     are missing in handshake_connections",
                    COUNTING.as_secs()
                );
                break;
            };
            let after = live.tracer.probes.totals()?;
            self.lock().metrics.found(&sockets, &after);
            if before == after {
                break;
            }
        }
        let mut state = self.lock();
        state.live = Some(live);
        state.turn = Instant::now();
        drop(state);
        give_memory_back();
        Ok(())
    }

    /// Takes a batch of records in; true when there may be more.
    pub(super) fn drain(&self) -> bool {
        let mut state = self.lock();
        state.turn = Instant::now();
        state.drain()
    }

    /// Takes the rest in and detaches the probes.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        state.drain();
        if let Err(error) = state.advance() {
            tracing::warn!(%error, "cannot read the last totals");
        }
        let live = state.live.take();
        // To detach takes long, and pages are still asked for.
        drop(state);
        drop(live);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Counters have no half-written state that a panic could leave behind.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reading the kernel's types took tens of megabytes, which nothing needs again.
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
        let Some(Live { tracer, ring, joiner, host }) = live else { return false };
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
        let mut context = MetricsContext { cgroups: metrics.needs_cgroups(), host };
        let turn = ring::drain(ring, |raw| {
            joiner.take(raw, now, &mut context, |event| metrics.observe(&event));
            if let (Ok(listeners), RawRecord::Connection(connection)) = (&mut tracer.listeners, raw) {
                listeners.heed(connection);
            }
            ControlFlow::Continue(())
        });
        joiner.expire(now, &mut context, |event| metrics.observe(&event));
        metrics.malformed(turn.malformed);
        turn.more
    }

    fn advance(&mut self) -> Result<()> {
        if let Some(live) = &self.live {
            self.metrics.advance(&live.tracer.probes.totals()?, live.tracer.probes.missed_runs());
            self.metrics.disagreed(live.joiner.disagreements());
            if let Ok(listeners) = &live.tracer.listeners {
                self.metrics.listening(&listeners.queues()?);
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
}

impl Pages for Exporter {
    fn metrics(&self) -> Result<String> {
        let mut state = self.lock();
        for _ in 0..SCRAPE_TURNS {
            if !state.drain() {
                break;
            }
        }
        state.advance()?;
        Ok(state.metrics.render()?)
    }

    fn healthy(&self) -> Result<(), String> {
        let state = self.lock();
        let still = state.turn.elapsed();
        if state.live.is_some() && still > STUCK {
            return Err(format!("the event loop has not come round for {still:.0?}"));
        }
        Ok(())
    }

    fn ready(&self) -> Result<(), String> {
        // A required probe that cannot be attached ends the program.
        if self.lock().live.is_some() { Ok(()) } else { Err("the probes are not attached".to_owned()) }
    }
}
