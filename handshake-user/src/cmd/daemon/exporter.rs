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
    event::ConnectionEvent,
    exporter::{
        http::Pages,
        metrics::{Format, Metrics, PENDING},
        page::{self, Attached, Facts, Lately, Probe},
    },
    host::{self, Context, Host},
    join::{Joiner, time_wait::Look},
    kernel::{
        listeners::Listeners,
        probe::hook::HOOKS,
        raw_record::RawRecord,
        ring::{self, Fill},
    },
    logging,
    otlp::{Exporters, MetricExporter, Snapshot, Targets, TraceExporter},
    recording::{Folder, NoLookBack, Recorder, Target, Written},
    redact::Redactor,
    settings::{PageFor, ProbeSettings, Switch},
    tracer::Tracer,
    untrusted::{Untrusted, say},
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
    redactor: Redactor,
    metrics: Metrics,
    recorder: Option<Recorder>,
    otlp: Exporters,
    lately: Lately,
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
        let redactor = Redactor::new(&config.redact)?;
        let metrics = Metrics::new(&config.metrics)?;
        metrics.watch_process()?;
        metrics.configured();
        for hook in HOOKS {
            metrics.probe(hook.name, PENDING, false);
        }
        Ok(Self {
            state: Mutex::new(State {
                config,
                redactor,
                metrics,
                recorder: None,
                otlp: Exporters::default(),
                lately: Lately::new(now()),
                live: None,
                turn: Instant::now(),
            }),
        })
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

    /// Begins to write records, if they are asked for.
    pub(super) fn record(&self) -> Result<()> {
        let mut state = self.lock();
        let Some(records) = &state.config.records else { return Ok(()) };
        let name = Untrusted::from(&*records.folder);
        let folder = Folder::open(&records.folder, records.limits).with_context(|| {
            format!("cannot write records to the folder {name}: see the setting `records`")
        })?;
        let target = match records.look_back {
            // Memory for as much as one file of the folder may have.
            Some(keep) => {
                let most = usize::try_from(records.limits.of_a_file()).unwrap_or(usize::MAX);
                Target::look_back(keep, most, folder)
            }
            None => Target::folder(folder),
        };
        let recorder = Recorder::start(target).context("cannot start a thread that writes records")?;
        state.metrics.fill_from_records();
        state.recorder = Some(recorder);
        Ok(())
    }

    /// Begins to export connections as traces, and metrics.
    pub(super) fn export(&self, targets: Targets) -> Result<()> {
        let mut state = self.lock();
        let otlp = Exporters::start(targets, state.config.otlp_sampling);
        state.otlp = otlp.context("cannot start a thread that exports to a collector")?;
        if state.otlp.traces.is_some() {
            state.metrics.fill_from_records();
        }
        Ok(())
    }

    /// Exports the metrics of now.
    pub(super) fn export_metrics(&self) {
        let mut state = self.lock();
        state.drain_for_scrape();
        if let Err(error) = state.advance() {
            tracing::warn!("metrics are not exported: {error:#}");
            return;
        }
        state.export_metrics();
    }

    /// SIGUSR1: writes the records that are in memory to a file.
    pub(super) fn write_look_back(&self) {
        if let Err(reason) = self.look_back() {
            say(format_args!("handshake: no records written: {reason}"));
        }
    }

    /// The probes are attached: from now on, records are read.
    pub(super) fn begin(&self, mut live: Live) -> Result<()> {
        live.tracer = live
            .tracer
            .follow_libraries(ring::CALM)
            .context("cannot start a thread to follow the TLS libraries")?;
        let mut state = self.lock();
        let all_records = !live.tracer.probes.fills_histograms();
        if all_records {
            state.metrics.fill_from_records();
        }
        state.lately.set_all_records(all_records);
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
        state.export_metrics();
        let (live, recorder) = (state.live.take(), state.recorder.take());
        let Exporters { traces, metrics } = std::mem::take(&mut state.otlp);
        // Detaching takes long, and pages are served meanwhile.
        drop(state);
        drop(live);
        if let Some((_, Some(error))) = recorder.map(Recorder::finish) {
            tracing::warn!(%error, "not all records were written");
        }
        let lost = traces.map_or(0, TraceExporter::finish);
        if lost > 0 {
            tracing::warn!("{lost} spans were not exported before the end");
        }
        if metrics.is_some_and(MetricExporter::finish) {
            tracing::warn!("the last metrics were not exported before the end");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic leaves no counter half-written.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The time of the clock that the page counts by.
fn now() -> Duration {
    Duration::from_nanos(host::monotonic_ns())
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
        let Self { redactor, metrics, recorder, otlp: Exporters { traces, .. }, lately, live, .. } = self;
        let Some(Live { tracer, ring, ring_bytes, fill, joiner, look, host }) = live else { return false };
        if let Some(fill) = fill {
            metrics.ring(fill.waiting(), *ring_bytes);
        }
        let now = host::monotonic_ns();
        let moment = Duration::from_nanos(now);
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
        let is_recording = recorder.is_some() || traces.is_some();
        if is_recording {
            host.refresh_clock();
        }
        let mut context =
            MetricsContext { cgroups: metrics.needs_cgroups() || is_recording, is_recording, host };
        let mut report = |event: ConnectionEvent| {
            // By its true addresses.
            let is_own = traces.as_ref().is_some_and(|traces| traces.is_own(&event));
            let event = redactor.event(event);
            metrics.observe(&event);
            if let Some(recorder) = recorder {
                recorder.record(&event);
            }
            if let Some(traces) = traces.as_mut().filter(|_| !is_own) {
                traces.take(&event);
            }
            lately.take(event, moment);
        };
        let turn = ring::drain(ring, |raw| {
            joiner.take(raw, now, &mut context, &mut report);
            if let (Ok(listeners), RawRecord::Connection(connection)) = (&mut tracer.listeners, raw) {
                listeners.heed(connection);
            }
            ControlFlow::Continue(())
        });
        joiner.expire(now, &mut context, &mut report);
        if let Some(look) = look.take_if(|_| !turn.more) {
            joiner.looked(&look, now, &mut context, &mut report);
        }
        tracer.look_if_wanted(joiner, now);
        metrics.malformed(turn.malformed);
        if let Some(recorder) = recorder {
            recorder.turn();
        }
        if let Some(traces) = traces {
            traces.turn();
        }
        if lately.wants_sample(moment)
            && let Ok(totals) = tracer.probes.totals()
        {
            lately.sample(&totals, moment);
        }
        turn.more
    }

    fn drain_for_scrape(&mut self) {
        for _ in 0..SCRAPE_TURNS {
            if !self.drain() {
                break;
            }
        }
    }

    /// Exports the metrics as they are, if they are to be exported.
    fn export_metrics(&self) {
        let Some(exporter) = &self.otlp.metrics else { return };
        exporter.take(Snapshot {
            families: self.metrics.gather(),
            time: SystemTime::now(),
            host: self.host(),
        });
    }

    /// The name of the host, unless it is redacted away.
    fn host(&self) -> Option<Untrusted> {
        self.redactor.host(self.live.as_ref().and_then(|live| live.host.host()))
    }

    fn advance(&mut self) -> Result<()> {
        if let Some(recorder) = &self.recorder {
            self.metrics.records(recorder.counts());
        }
        if let Some(traces) = &self.otlp.traces {
            self.metrics.traces(&traces.counts());
        }
        if let Some(metrics) = &self.otlp.metrics {
            self.metrics.exports(&metrics.fates());
        }
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

    /// What is attached, in words. `None` before and after.
    fn attached(&self) -> Option<Attached> {
        let tracer = &self.live.as_ref()?.tracer;
        let probes = tracer.probes.hooks.iter().map(|hook| Probe {
            name: hook.hook.name,
            kind: hook.hook.kind(tracer.probes.mode),
            lost_without: hook.hook.lost_without,
            missing: hook.missing.as_ref().map(ToString::to_string),
        });
        let notes = [
            tracer.probes.wire_shortfall.clone(),
            (self.config.probes.tls_libraries == Switch::Off).then(|| {
                "TLS libraries are not probed, by the configuration: handshakes are seen on the wire only."
                    .to_owned()
            }),
            tracer
                .libraries()
                .and_then(Result::err)
                .map(|reason| format!("TLS libraries are not probed: {reason}")),
            tracer
                .minisockets
                .as_ref()
                .err()
                .map(|reason| format!("Late FINs and the end of TIME_WAIT stay unknown: {reason}")),
            tracer.listeners.as_ref().err().map(|reason| {
                format!("Who listens is known only of sockets that began to listen since: {reason}")
            }),
        ];
        Some(Attached { probes: probes.collect(), notes: notes.into_iter().flatten().collect() })
    }
}

/// The host, but for what neither labels nor records ask for.
struct MetricsContext<'h> {
    host: &'h mut Host,
    cgroups: bool,
    is_recording: bool,
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

    fn host(&self) -> Option<Untrusted> {
        self.host.host().filter(|_| self.is_recording)
    }

    fn boot_id(&self) -> Option<Untrusted> {
        self.host.boot_id().filter(|_| self.is_recording)
    }
}

impl Pages for Exporter {
    fn metrics(&self, format: Format) -> Result<String> {
        let mut state = self.lock();
        state.drain_for_scrape();
        state.advance()?;
        Ok(state.metrics.render(format)?)
    }

    fn shows_page_to_all(&self) -> bool {
        self.lock().config.page == PageFor::All
    }

    fn page(&self) -> Result<String> {
        let trouble = self.healthy().and_then(|()| self.ready()).err().map(|reason| format!("{reason:#}"));
        let mut state = self.lock();
        state.drain();
        state.advance()?;
        let facts = Facts {
            now: SystemTime::now(),
            host: state.host(),
            trouble,
            attached: state.attached(),
            families: state.metrics.gather(),
            shown: state.lately.shown(now()),
        };
        // Records are read while it is drawn.
        drop(state);
        Ok(page::html(&facts))
    }

    fn look_back(&self) -> Result<Written, NoLookBack> {
        let mut state = self.lock();
        state.drain();
        let State { config, recorder, .. } = &mut *state;
        let is_kept = config.records.as_ref().is_some_and(|records| records.look_back.is_some());
        recorder.as_mut().filter(|_| is_kept).ok_or(NoLookBack::NotKept)?.write_look_back()
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
