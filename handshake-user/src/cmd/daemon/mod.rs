//! `handshake daemon`: the exporter. One thread drains the ring at its own pace and answers scrapes in
//! between.

mod exporter;
pub(crate) mod preexisting;
mod reload;
mod service;

use std::{
    env,
    future::{Future, pending},
    io::{self, Write as _},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use handshake_common::histograms::Bounds;
use rustix::thread::CapabilitySet;
use sd_notify::NotifyState;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
    task::{spawn_blocking, yield_now},
    time::{Instant, Interval, MissedTickBehavior, interval, interval_at, sleep_until, timeout},
};

use self::{
    exporter::{Exporter, Live},
    reload::{Sources, reload},
    service::notify,
};
use crate::{
    cli::DaemonArgs,
    config::Config,
    exporter::http::{self, Web},
    kernel::{probe::Kernel, ring},
    logging,
    otlp::Targets,
    privileges,
    settings::{ProbeSettings, Switch},
    tracer::Tracer,
    untrusted::{Untrusted, say},
};

/// Serves until SIGTERM or SIGINT, or only checks the settings.
///
/// # Errors
/// When the settings are not valid, the address is not available or the probes cannot be attached.
pub async fn run(args: DaemonArgs) -> Result<ExitCode> {
    let sources =
        Sources { file: args.config, exporter: args.exporter, redact: args.redact, probes: args.probes };
    let config = sources.read()?;
    let web = Arc::new(Web::new(config.web_config.as_deref())?);
    let targets =
        Targets::new(config.otlp_endpoint.as_ref(), &config.otlp_signals, |name| env::var(name).ok())?;
    if args.check_config {
        // The metrics too, which the settings describe. Nothing is bound or attached.
        Exporter::new(config)?;
        writeln!(io::stdout(), "OK").context("cannot write to standard output")?;
        return Ok(ExitCode::SUCCESS);
    }
    logging::set_level(config.log_level)?;
    // Until now, these signals end the program.
    let hangup = signal(SignalKind::hangup()).context("cannot wait for SIGHUP")?;
    let look_back = signal(SignalKind::user_defined1()).context("cannot wait for SIGUSR1")?;
    let all_records = config.records.is_some() || targets.traces.is_some();
    let needed = needed(&config, all_records);
    let listener = match http::inherited()? {
        Some(listener) => listener,
        None => http::listen(config.listen)?,
    };
    let address = listener.local_addr().unwrap_or(config.listen);
    let mut stop = std::pin::pin!(stop_signal()?);

    // Where the kernel side fills histograms, connections without TLS have no records.
    let bounds = if all_records { Bounds::NONE } else { config.metrics.bounds() };
    let probes = config.probes.clone();
    let wants_histograms = bounds != Bounds::NONE;
    let exporter = Arc::new(Exporter::new(config)?);
    exporter.record()?;
    let pushes = targets.metrics.is_some().then_some(targets.interval);
    for (signal, target) in targets.each() {
        let (what, url) = (signal.subject(), Untrusted::from(target.endpoint.to_string()));
        say(format_args!("handshake: {what} are exported to {url}"));
    }
    exporter.export(targets)?;
    let (stop_server, server_stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(http::serve(listener, Arc::clone(&exporter), Arc::clone(&web), async {
        drop(server_stopped.await);
    }));

    // Pages are served while the kernel verifies the programs.
    let attached = tokio::select! {
        attached = attach(probes, bounds) => Some(attached?),
        () = &mut stop => None,
    };
    if let Some(live) = attached {
        privileges::keep(needed);
        if wants_histograms && !live.tracer.probes.fills_histograms() {
            say(
                "handshake: the programs that fill histograms are too large for this kernel: records fill them, \
                 at some more CPU time in user space",
            );
        }
        for hook in live.tracer.probes.hooks.iter().filter(|hook| hook.missing.is_some()) {
            say(format_args!("handshake: not attached: {} ({})", hook.hook.name, hook.hook.lost_without));
        }
        live.tracer.probes.wire_shortfall.iter().for_each(say);
        if let Err(reason) = &live.tracer.listeners {
            say(format_args!(
                "handshake: no metrics of listening sockets, and openings of servers that listen already name no \
                 process: {reason}"
            ));
        }
        let began = Arc::clone(&exporter);
        spawn_blocking(move || began.begin(live)).await.context("the exporter did not start")??;
        count_preexisting(&exporter).await?;
        let scheme = if web.is_tls() { "https" } else { "http" };
        eprintln!("handshake: listening on {scheme}://{address}/metrics");
        notify(&[NotifyState::Ready]);
        tokio::select! {
            () = work(&exporter, &web, &sources, hangup, look_back, pushes) => {}
            () = stop => {}
        }
    }
    notify(&[NotifyState::Stopping]);
    // Probes first: whatever the last scrapes take, the kernel is free of us. It takes a tenth of a second
    // for each uprobe, and pages answer meanwhile.
    spawn_blocking(move || exporter.end()).await.context("the probes were not detached in order")?;
    drop(stop_server);
    server.await.context("the HTTP server failed")?;
    Ok(ExitCode::SUCCESS)
}

/// Completes at SIGTERM or SIGINT.
fn stop_signal() -> Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

/// The capabilities that are needed once everything is attached, by this thread and all that it starts then.
fn needed(config: &Config, all_records: bool) -> CapabilitySet {
    let libraries = match config.probes.tls_libraries {
        Switch::On => privileges::LIBRARIES,
        Switch::Off => privileges::MINISOCKETS,
    };
    let wants_names = !config.metrics.labels.is_empty() || all_records;
    let cgroups = if wants_names { privileges::CGROUPS } else { CapabilitySet::empty() };
    libraries | cgroups
}

/// Attaches the probes.
async fn attach(settings: ProbeSettings, bounds: Bounds) -> Result<Live> {
    let attached = in_thread("attach", move || {
        let live = Kernel::read().and_then(|kernel| Tracer::attach(&kernel, &settings, &bounds));
        live.map(|(tracer, ring)| Live::new(tracer, ring, &settings))
    });
    let attached = attached.context("cannot start a thread to attach the probes")?;
    Ok(attached.await.context("the thread that attaches the probes failed")??)
}

/// Starts to count the connections from before, and waits a little for the result: on most hosts the first
/// scrape is then complete.
async fn count_preexisting(exporter: &Arc<Exporter>) -> Result<()> {
    const PATIENCE: Duration = Duration::from_millis(200);
    let exporter = Arc::clone(exporter);
    let counted = in_thread("preexisting", move || exporter.count_preexisting());
    let counted = counted.context("cannot start a thread to count the connections from before")?;
    let _ = timeout(PATIENCE, counted).await;
    Ok(())
}

/// Does some work in a thread of its own, which may still be running when the program exits.
fn in_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<oneshot::Receiver<T>> {
    let (send, receive) = oneshot::channel();
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        // The receiver may be gone.
        let _ = send.send(work());
    })?;
    Ok(receive)
}

/// Drains the ring for ever: a batch at a time, so that scrapes come in between; sooner again while it fills
/// fast. Reads the configuration anew at each SIGHUP, and exports metrics at each of `pushes`.
async fn work(
    exporter: &Exporter,
    web: &Web,
    sources: &Sources,
    mut hangup: Signal,
    mut look_back: Signal,
    pushes: Option<Duration>,
) {
    let mut next = Instant::now();
    let mut pushes = pushes.map(|period| {
        let mut pushes = interval_at(next + period, period);
        pushes.set_missed_tick_behavior(MissedTickBehavior::Skip);
        pushes
    });
    let mut watchdog = sd_notify::watchdog_enabled().map(|limit| interval(limit / 2));
    loop {
        tokio::select! {
            () = sleep_until(next) => {
                let mut pace = ring::CALM;
                while exporter.drain() {
                    pace = ring::LIVE;
                    yield_now().await;
                }
                next = Instant::now() + pace;
            }
            Some(()) = hangup.recv() => reload(sources, exporter, web),
            Some(()) = look_back.recv() => exporter.write_look_back(),
            () = due(&mut pushes) => exporter.export_metrics(),
            () = due(&mut watchdog) => notify(&[NotifyState::Watchdog]),
        }
    }
}

/// Completes at the next tick; never without any.
async fn due(ticks: &mut Option<Interval>) {
    match ticks {
        Some(ticks) => drop(ticks.tick().await),
        None => pending().await,
    }
}
