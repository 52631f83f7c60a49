//! `handshake top`: groups of connections, full screen.
//!
//! [`Screen`] has the terminal; [`view`] is what is shown and what keys change in it, `output/rows.rs` has
//! the table of the groups, [`draw`] puts both into a buffer. Only this file and `screen.rs` do I/O.

mod draw;
pub mod screen;
#[cfg(test)]
mod tests;
mod view;

use std::{
    io::{self, IsTerminal as _},
    ops::ControlFlow,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use tokio::time::{MissedTickBehavior, interval};

use self::{
    draw::{Palette, draw},
    screen::{Happened, Screen, Signals},
    view::{Action, Data, View},
};
use super::live::{Attached, Live, Losses};
use crate::{
    aggregate::{Aggregate, Grouping, Limits, Span},
    cli::TopArgs,
    event::ConnectionEvent,
    filter::Filter,
    host,
    kernel::ring,
    redact::Gate,
    stderr,
    untrusted::say,
};

/// How often the screen is drawn anew if no key is pressed.
const REFRESH: Duration = Duration::from_secs(1);

/// Shows the groups until `q` or a signal.
///
/// # Errors
/// When there is no terminal, the probes cannot be attached, or the terminal is gone.
pub async fn run(args: TopArgs) -> Result<ExitCode> {
    if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
        bail!(
            "`handshake top` needs a terminal for its screen and its keys; `handshake trace` writes to files \
             and pipes"
        );
    }
    args.filters.notes().iter().for_each(say);
    let gate = Gate::new(args.filters.filter(), &args.redact)?;
    let attached = Attached::new(&args.probes)?;
    // Not earlier: until the probes are attached, signals end the program at once.
    let mut signals = Signals::new().context("cannot wait for signals")?;
    let mut live = attached.follow()?;
    let mut screen = Screen::open().context("cannot set up the terminal")?;
    let shown = show(&args, gate, &mut live, &mut screen, &mut signals).await;
    // Before the kernel takes its time to detach the uprobes.
    drop(screen);
    drop(live);
    shown.map(|()| ExitCode::SUCCESS)
}

async fn show(
    args: &TopArgs,
    gate: Gate,
    live: &mut Live,
    screen: &mut Screen,
    signals: &mut Signals,
) -> Result<()> {
    let mut view = View::new(args.by, args.filters.to_string());
    let mut session = Session::new(gate, Span::of(args.window));
    let palette = Palette::of_environment();
    let mut ticks = interval(ring::LIVE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut drawn: Option<Duration> = None;
    loop {
        let happened = tokio::select! {
            biased;
            happened = signals.next() => Some(happened),
            () = std::future::ready(()), if live.has_more() => None,
            _ = ticks.tick() => None,
        };
        match happened {
            Some(Happened::End) => return Ok(()),
            Some(Happened::Stop) => {
                screen.stop().context("cannot give the terminal back")?;
                drawn = None;
            }
            Some(Happened::Continue) => {
                screen.enter().context("cannot take the terminal again")?;
                drawn = None;
            }
            None => {}
        }
        let now = monotonic();
        live.turn(false, |event| {
            session.take(event, now);
            ControlFlow::Continue(())
        });
        while event::poll(Duration::ZERO).context("cannot read the keyboard")? {
            drawn = None;
            let Event::Key(key) = event::read().context("cannot read the keyboard")? else { continue };
            if key.kind == KeyEventKind::Release {
                continue;
            }
            match view.key(key, &session.data(view.grouping)) {
                Action::None => {}
                Action::Quit => return Ok(()),
                Action::Stop => screen.stop().context("cannot give the terminal back")?,
                Action::Pause => session.pause(&view),
                Action::Filter(filter) => session.begin(*filter, now),
            }
        }
        if drawn.is_none_or(|drawn| now.saturating_sub(drawn) >= REFRESH) {
            session.refresh(now, live.losses()?);
            let data = session.data(view.grouping);
            screen.draw(|frame| draw(frame, &mut view, &data, palette)).context("cannot draw")?;
            drawn = Some(now);
        }
        // With more records at hand the select above never waits, and signals would starve.
        tokio::task::yield_now().await;
    }
}

fn monotonic() -> Duration {
    Duration::from_nanos(host::monotonic_ns())
}

/// What was counted, and since when.
struct Session {
    gate: Gate,
    span: Span,
    /// One for each grouping, so that each has seen everything.
    counted: [Aggregate; Grouping::ALL.len()],
    losses: Losses,
    /// What is shown while the view is paused.
    paused: Option<Box<([Aggregate; Grouping::ALL.len()], Losses)>>,
}

impl Session {
    fn new(gate: Gate, span: Span) -> Self {
        let now = monotonic();
        Self { gate, span, counted: Self::nothing(span, now), losses: Losses::default(), paused: None }
    }

    fn nothing(span: Span, now: Duration) -> [Aggregate; Grouping::ALL.len()] {
        let limits = Limits { span, ..Limits::default() };
        Grouping::ALL.map(|grouping| Aggregate::new(grouping, limits, now))
    }

    fn take(&mut self, event: ConnectionEvent, now: Duration) {
        if let Some(event) = self.gate.pass(event) {
            let event = Arc::new(event);
            self.counted.iter_mut().for_each(|aggregate| aggregate.take(&event, now));
        }
    }

    /// Begins to count anew, with another filter.
    fn begin(&mut self, filter: Filter, now: Duration) {
        self.gate.set_filter(filter);
        self.counted = Self::nothing(self.span, now);
        self.paused = None;
    }

    fn pause(&mut self, view: &View) {
        self.paused = view.is_paused().then(|| Box::new((self.counted.clone(), self.losses)));
    }

    fn refresh(&mut self, now: Duration, losses: Losses) {
        self.counted.iter_mut().for_each(|aggregate| aggregate.advance(now));
        self.losses = losses;
    }

    fn data(&self, grouping: Grouping) -> Data<'_> {
        let (counted, losses) =
            self.paused.as_ref().map_or((&self.counted, self.losses), |paused| (&paused.0, paused.1));
        let [first, ..] = counted;
        let aggregate = counted.iter().find(|aggregate| aggregate.grouping() == grouping).unwrap_or(first);
        Data { aggregate, losses, said: stderr::last_line() }
    }
}
