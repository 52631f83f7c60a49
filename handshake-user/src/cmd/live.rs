//! What the live commands have in common: attached probes, and their events turn by turn.

use std::{future::ready, ops::ControlFlow, time::Duration};

use anyhow::{Context as _, Result};
use aya::maps::{MapData, RingBuf};
use handshake_common::{
    histograms::Bounds,
    totals::{self, DropReason},
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::yield_now,
    time::{Instant, Interval, MissedTickBehavior, interval, sleep_until},
};

use crate::{
    event::ConnectionEvent,
    host::{self, Host},
    join::{Joiner, time_wait::Look},
    kernel::{probe::Kernel, raw_record::RawRecord, ring},
    settings::ProbeOptions,
    tracer::Tracer,
    untrusted::say,
};

/// The attached probes, before [`Attached::follow`].
pub(super) struct Attached {
    tracer: Tracer,
    ring: RingBuf<MapData>,
}

impl Attached {
    /// Loads and attaches everything, for records of every connection.
    pub(super) fn new(options: &ProbeOptions) -> Result<Self> {
        let kernel = Kernel::read()?;
        let (tracer, ring) = Tracer::attach(&kernel, &options.clone().settle(), &Bounds::NONE)?;
        Ok(Self { tracer, ring })
    }

    /// Says what is attached and what is not, and begins to follow which libraries come into use.
    pub(super) fn follow(self) -> Result<Live> {
        let Self { tracer, ring } = self;
        for hook in tracer.probes.hooks.iter().filter(|hook| hook.missing.is_some()) {
            say(format_args!("not attached: {} ({})", hook.hook.name, hook.hook.lost_without));
        }
        tracer.probes.wire_shortfall.iter().for_each(say);
        if let Err(reason) = &tracer.listeners {
            say(format_args!("openings of servers that listen already name no process: {reason}"));
        }
        say_libraries(&tracer);
        let tracer = tracer
            .follow_libraries(ring::LIVE)
            .context("cannot start a thread to follow the TLS libraries")?;
        say(format_args!(
            "tracing the connections of this host ({}); Ctrl-C ends it",
            tracer.probes.mode.as_str()
        ));
        let joiner = tracer.joiner();
        Ok(Live { tracer, ring, joiner, host: Host::new(), look: None, more: false })
    }
}

/// Attached probes. Dropping it detaches them, for which the kernel takes up to 0.1 s each.
pub(super) struct Live {
    tracer: Tracer,
    ring: RingBuf<MapData>,
    joiner: Joiner,
    host: Host,
    look: Option<Look>,
    more: bool,
}

impl Live {
    /// Whether there are more records at hand: the next turn need not wait for [`ring::LIVE`].
    pub(super) const fn has_more(&self) -> bool {
        self.more
    }

    /// Reports the events of the records at hand, until `report` breaks; in the last turn also those that
    /// wait for another view.
    pub(super) fn turn(&mut self, is_last: bool, mut report: impl FnMut(ConnectionEvent) -> ControlFlow<()>) {
        let Self { tracer, ring, joiner, host, look, more } = self;
        if !*more {
            host.refresh_clock();
        }
        tracer.probes.pass_on_log();
        tracer.worker_turn();
        if let Ok(listeners) = &mut tracer.listeners {
            listeners.turn();
        }
        let now = host::monotonic_ns();
        // Taken before the records, and told after all of them.
        *look = look.take().or_else(|| tracer.take_look());
        let mut flow = ControlFlow::Continue(());
        let mut report = |event, flow: &mut ControlFlow<()>| {
            if flow.is_continue() {
                *flow = report(event);
            }
        };
        let turn = ring::drain(ring, |raw| {
            joiner.take(raw, now, host, |mut event| {
                if let Ok(listeners) = &mut tracer.listeners {
                    listeners.add_to(&mut event);
                }
                report(event, &mut flow);
            });
            if let (Ok(listeners), RawRecord::Connection(connection)) = (&mut tracer.listeners, raw) {
                listeners.heed(connection);
            }
            flow
        });
        let until = if is_last { u64::MAX } else { now };
        joiner.expire(until, host, |event| report(event, &mut flow));
        *more = turn.more;
        if let Some(look) = look.take_if(|_| !*more) {
            joiner.looked(&look, now, host, |event| report(event, &mut flow));
        }
        tracer.look_if_wanted(joiner, now);
        if turn.malformed > 0 {
            tracing::warn!(turn.malformed, "records of an unknown shape");
        }
    }

    /// What was lost so far.
    pub(super) fn losses(&self) -> Result<Losses> {
        let totals = self.tracer.probes.totals()?;
        let at = |loss| totals.at(totals::lost(loss));
        Ok(Losses {
            records: at(DropReason::RingFull),
            connections: at(DropReason::StateFull),
            runs: self.tracer.probes.missed_runs(),
        })
    }
}

/// When to take turns: at once while there are more records at hand, else every [`ring::LIVE`], until SIGINT,
/// SIGTERM or the end.
pub(super) struct Turns {
    interrupt: Signal,
    terminate: Signal,
    end: Instant,
    ticks: Interval,
}

impl Turns {
    /// For this time, or without an end. From now on the signals do not end the process by themselves: not
    /// before the probes are attached, which takes long.
    pub(super) fn new(duration: Option<Duration>) -> Result<Self> {
        /// Later than any session: not every clock can hold the longest duration.
        const NO_END: Duration = Duration::from_hours(100 * 365 * 24);
        let mut ticks = interval(ring::LIVE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?,
            terminate: signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?,
            end: Instant::now() + duration.unwrap_or(NO_END).min(NO_END),
            ticks,
        })
    }

    /// Waits for the next turn. Returns whether it is the last.
    pub(super) async fn next(&mut self, live: &Live) -> bool {
        // With more records at hand the select below never waits, and signals would starve.
        yield_now().await;
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => true,
            _ = self.terminate.recv() => true,
            () = sleep_until(self.end) => true,
            () = ready(()), if live.has_more() => false,
            _ = self.ticks.tick() => false,
        }
    }
}

/// What no event tells of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Losses {
    /// Records for which the ring had no room.
    pub(super) records: u64,
    /// Connections that there was no room to follow.
    pub(super) connections: u64,
    /// Runs of a hook: the kernel was inside the same program already.
    pub(super) runs: u64,
}

impl Losses {
    /// How many of what were lost, and what helps.
    pub(super) const fn counts(self) -> [(u64, &'static str); 3] {
        [
            (self.records, "records, the ring was full (a larger --ring-kib helps)"),
            (self.connections, "connections, no room to follow them (a larger --max-connections helps)"),
            (self.runs, "runs of a hook, the kernel was inside the same program already"),
        ]
    }
}

/// A line for each of these that there were any of.
pub(super) fn lost(counts: impl IntoIterator<Item = (u64, &'static str)>) -> impl Iterator<Item = String> {
    counts.into_iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("lost: {count} {what}"))
}

/// One line: how many TLS libraries are probed.
fn say_libraries(tracer: &Tracer) {
    match tracer.libraries() {
        None => {}
        Some(Err(reason)) => say(format_args!("TLS libraries are not probed: {reason}")),
        Some(Ok(libraries)) => {
            let files = libraries.files();
            let covered = files.iter().filter(|(file, _)| file.is_covered()).count();
            let rest = if covered == files.len() { "" } else { "; `handshake check` says why not all" };
            say(format_args!("TLS libraries probed: {covered} of {}{rest}", files.len()));
            for shortfall in libraries.shortfalls() {
                say(shortfall);
            }
        }
    }
}
