//! `handshake daemon`: the exporter. One thread drains the ring at its own pace and answers scrapes in
//! between.

mod exporter;
pub(crate) mod preexisting;

use std::{
    future::{Future, pending},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context as _, Result};
use sd_notify::NotifyState;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
    task::{spawn_blocking, yield_now},
    time::{Instant, Interval, interval, sleep_until},
};

use self::exporter::{Exporter, Live};
use crate::{
    cli::DaemonArgs,
    config::Config,
    exporter::http,
    kernel::{probe::Kernel, ring},
    settings::ProbeSettings,
    tracer::Tracer,
    untrusted::say,
};

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// When the settings make no sense, the address cannot be had or the probes cannot be attached.
pub async fn run(args: DaemonArgs) -> Result<ExitCode> {
    let config = Config::new(args.config.as_deref(), args.exporter, args.probes)?;
    let listener = http::listen(config.listen)?;
    let address = listener.local_addr().unwrap_or(config.listen);
    let mut stop = std::pin::pin!(stop_signal()?);

    let exporter = Arc::new(Exporter::new(&config.metrics)?);
    let (stop_server, server_stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(http::serve(listener, Arc::clone(&exporter), async {
        drop(server_stopped.await);
    }));

    // Pages answer while the kernel verifies the programs.
    let attached = tokio::select! {
        attached = attach(config.probes) => Some(attached?),
        () = &mut stop => None,
    };
    if let Some(live) = attached {
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
        spawn_blocking(move || began.begin(live)).await.context("the exporter did not begin")??;
        eprintln!("handshake: listening on http://{address}/metrics");
        notify(&[NotifyState::Ready]);
        tokio::select! {
            () = work(&exporter) => {}
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

/// Attaches the probes in a thread of its own, which may be left behind when the program ends.
async fn attach(settings: ProbeSettings) -> Result<Live> {
    let (send, receive) = oneshot::channel();
    std::thread::Builder::new()
        .name("attach".to_owned())
        .spawn(move || {
            let live = Kernel::read().and_then(|kernel| Tracer::attach(&kernel, &settings));
            // Nobody listens any more when a signal came first.
            drop(send.send(live.map(|(tracer, ring)| Live::new(tracer, ring))));
        })
        .context("cannot start a thread to attach the probes")?;
    Ok(receive.await.context("the thread that attaches the probes failed")??)
}

/// Drains the ring for ever: a batch at a time, so that scrapes come in between; sooner again while it fills
/// fast.
async fn work(exporter: &Exporter) {
    let mut next = Instant::now();
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
            () = due(&mut watchdog) => notify(&[NotifyState::Watchdog]),
        }
    }
}

/// Half the time after which the service manager takes us for dead; never, if it does not watch.
async fn due(watchdog: &mut Option<Interval>) {
    match watchdog {
        Some(ticks) => drop(ticks.tick().await),
        None => pending().await,
    }
}

/// Tells the service manager, if there is one.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}
