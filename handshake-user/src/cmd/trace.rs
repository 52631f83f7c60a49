//! `handshake trace`: records as they come, and a summary at the end.

use std::{
    fmt::Write as _,
    io::{self, BufWriter, IsTerminal as _, Write},
    ops::ControlFlow,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};
use handshake_common::{
    Stage,
    histograms::Bounds,
    totals::{self, DropReason},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use crate::{
    cli::{Output, TraceArgs},
    event::ConnectionEvent,
    filter::Filter,
    host::{self, Host},
    join::journal::ConnectionJournal,
    kernel::{probe::Kernel, raw_record::RawRecord, ring},
    output::{
        ladder,
        savings::Savings,
        summary::Summary,
        table::{Column, Table},
    },
    tracer::Tracer,
    untrusted::{self, say},
};

/// The end of a session without a duration.
const NO_END: Duration = Duration::from_hours(100 * 365 * 24);

/// Traces until the duration or the count is reached, a signal arrives, or the reader of standard output is
/// gone.
///
/// # Errors
/// When the probes cannot be attached or the output cannot be written.
pub async fn run(args: TraceArgs) -> Result<ExitCode> {
    let mut session = Session::new(&args);
    args.notes().iter().for_each(say);
    let kernel = Kernel::read()?;
    let (tracer, mut ring) = Tracer::attach(&kernel, &args.probes.settle(), &Bounds::NONE)?;
    drop(kernel);
    // Not earlier: until the probes are attached, signals end the program at once.
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;

    for hook in tracer.probes.hooks.iter().filter(|hook| hook.missing.is_some()) {
        say(format_args!("not attached: {} ({})", hook.hook.name, hook.hook.lost_without));
    }
    tracer.probes.wire_shortfall.iter().for_each(say);
    if let Err(reason) = &tracer.listeners {
        say(format_args!("openings of servers that listen already name no process: {reason}"));
    }
    say_libraries(&tracer);
    let mut tracer =
        tracer.follow_libraries(ring::LIVE).context("cannot start a thread to follow the TLS libraries")?;
    say(format_args!(
        "tracing the connections of this host ({}); Ctrl-C ends it",
        tracer.probes.mode.as_str()
    ));
    session.begin()?;
    let mut joiner = tracer.joiner();
    let mut host = Host::new();

    let end = Instant::now() + args.duration.unwrap_or(NO_END).min(NO_END);
    let mut ticks = interval(ring::LIVE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut more = false;
    let mut look = None;
    loop {
        let last = tokio::select! {
            biased;
            _ = interrupt.recv() => true,
            _ = terminate.recv() => true,
            () = sleep_until(end) => true,
            () = std::future::ready(()), if more => false,
            _ = ticks.tick() => false,
        };
        if !more {
            host.refresh_clock();
        }
        let mut outcome = session.fit();
        tracer.probes.pass_on_log();
        tracer.worker_turn();
        if let Ok(listeners) = &mut tracer.listeners {
            listeners.turn();
        }
        let now = host::monotonic_ns();
        // Taken before the records, and told after all of them.
        look = look.or_else(|| tracer.take_look());
        let turn = ring::drain(&mut ring, |raw| {
            joiner.take(raw, now, &mut host, |mut event| {
                if let Ok(listeners) = &mut tracer.listeners {
                    listeners.add_to(&mut event);
                }
                session.report(event, &mut outcome);
            });
            if let (Ok(listeners), RawRecord::Connection(connection)) = (&mut tracer.listeners, raw) {
                listeners.heed(connection);
            }
            if session.is_full() || outcome.is_err() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        let until = if last { u64::MAX } else { now };
        joiner.expire(until, &mut host, |event| session.report(event, &mut outcome));
        more = turn.more;
        if let Some(look) = look.take_if(|_| !more) {
            joiner.looked(&look, now, &mut host, |event| session.report(event, &mut outcome));
        }
        tracer.look_if_wanted(&mut joiner, now);
        if turn.malformed > 0 {
            tracing::warn!(turn.malformed, "records of an unknown shape");
        }
        let flushed = outcome.and_then(|()| session.out.flush());
        match flushed {
            // The reader, such as `head`, has had enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(ExitCode::SUCCESS),
            other => other.context("cannot write the records to standard output")?,
        }
        if last || session.is_full() {
            break;
        }
        // With more records at hand the select above never waits, and signals would starve.
        tokio::task::yield_now().await;
    }
    let (totals, missed) = (tracer.probes.totals()?, tracer.probes.missed_runs());
    let at = |loss| totals.at(totals::lost(loss));
    session.finish(at(DropReason::RingFull), at(DropReason::StateFull), missed)?;
    // Last, because the kernel takes up to 0.1 s to detach each uprobe.
    drop(tracer);
    Ok(ExitCode::SUCCESS)
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

/// The table for standard output as it is now. Colours only on a terminal, and unless the user has opted out.
fn table(columns: &[Column]) -> Table {
    let width = rustix::termios::tcgetwinsize(io::stdout()).ok().map(|size| usize::from(size.ws_col));
    let is_terminal = io::stdout().is_terminal();
    let colours = is_terminal && std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty());
    // Some terminals do not know their width.
    Table::new(columns, width.filter(|&width| is_terminal && width > 0), colours)
}

/// One session's output.
struct Session {
    filter: Filter,
    output: Output,
    columns: Vec<Column>,
    table: Table,
    left: Option<u64>,
    summary: Summary,
    journal: ConnectionJournal,
    savings: Savings,
    out: BufWriter<io::Stdout>,
}

impl Session {
    fn new(args: &TraceArgs) -> Self {
        let default = if io::stdout().is_terminal() { Output::Table } else { Output::Json };
        Self {
            filter: args.filter(),
            output: args.output.unwrap_or(default),
            columns: args.columns.clone(),
            table: table(&args.columns),
            left: args.count,
            summary: Summary::default(),
            journal: ConnectionJournal::default(),
            savings: Savings::default(),
            out: BufWriter::new(io::stdout()),
        }
    }

    fn begin(&mut self) -> io::Result<()> {
        match self.output {
            Output::Table => writeln!(self.out, "{}", self.table.heading())?,
            Output::Ladder => write!(self.out, "{}", ladder::legend())?,
            Output::Json => {}
        }
        self.out.flush()
    }

    /// The terminal may have another width by now.
    fn fit(&mut self) -> io::Result<()> {
        if self.output == Output::Table {
            let table = table(&self.columns);
            if table != self.table {
                self.table = table;
                writeln!(self.out, "{}", self.table.heading())?;
            }
        }
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.left == Some(0)
    }

    fn report(&mut self, event: ConnectionEvent, outcome: &mut io::Result<()>) {
        if self.is_full() || outcome.is_err() || !self.filter.passes(&event) {
            return;
        }
        self.summary.add(&event);
        if let Some(left) = &mut self.left {
            *left -= 1;
        }
        *outcome = self.write(event);
    }

    fn write(&mut self, event: ConnectionEvent) -> io::Result<()> {
        match self.output {
            Output::Table => writeln!(self.out, "{}", self.table.line(&event))?,
            Output::Ladder => {}
            Output::Json => {
                // `handshake explain` shows them as ladders.
                return writeln!(self.out, "{}", untrusted::json(serde_json::to_string(&event)?));
            }
        }
        self.journal.take(event).map_or(Ok(()), |whole| self.end(&whole))
    }

    /// A connection that will have no further record.
    fn end(&mut self, whole: &ConnectionEvent) -> io::Result<()> {
        // What comes after the socket was drawn up to there, when it closed.
        let is_rest = whole.stage == Stage::TimeWait;
        if !is_rest {
            self.savings.add(whole);
        }
        match self.output {
            Output::Ladder if is_rest => write!(self.out, "\n{}", ladder::draw_rest(whole)),
            Output::Ladder => write!(self.out, "\n{}", ladder::draw(whole)),
            _ => Ok(()),
        }
    }

    /// The summary follows the table or the ladders; with JSON it goes to standard error, so that the output
    /// stays JSON.
    fn finish(mut self, lost: u64, unfollowed: u64, missed: u64) -> io::Result<()> {
        for whole in self.journal.finish() {
            self.end(&whole)?;
        }
        let mut text = format!("\n{}", self.summary.render());
        let savings = self.savings.render();
        if !savings.is_empty() {
            let _ = write!(text, "\n{savings}");
        }
        let mut note = |count: u64, what: &str| {
            if count > 0 {
                let _ = writeln!(text, "lost: {count} {what}");
            }
        };
        note(lost, "records, the ring was full (a larger --ring-kib helps)");
        note(unfollowed, "connections, no room to follow them (a larger --max-connections helps)");
        note(self.journal.evicted(), "connections that stayed open: more than can be remembered");
        note(missed, "runs of a hook, the kernel was inside the same program already");
        match self.output {
            Output::Table | Output::Ladder => {
                self.out.write_all(text.as_bytes())?;
                self.out.flush()
            }
            Output::Json => io::stderr().write_all(text.as_bytes()),
        }
    }
}
