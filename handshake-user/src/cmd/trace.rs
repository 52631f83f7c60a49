//! `handshake trace`: records as they come, or those in files, and a summary at the end.

use std::{
    fmt::Write as _,
    io::{self, BufWriter, IsTerminal as _, Write},
    ops::ControlFlow,
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use handshake_common::Stage;

use crate::{
    cli::{Output, TraceArgs},
    cmd::{
        live::{Attached, Losses, Turns, lost},
        records::{Hosts, Inputs},
    },
    event::ConnectionEvent,
    join::journal::ConnectionJournal,
    output::{
        ladder,
        savings::Savings,
        summary::Summary,
        table::{Column, Table},
    },
    redact::Gate,
    untrusted::{self, say},
};

/// Traces until the duration or the count is reached, a signal arrives, or the reader of standard output is
/// gone; or reads files to their end. A line in them that is no record is reported on standard error, and the
/// exit status is 1.
///
/// # Errors
/// When the probes cannot be attached, the files cannot be read or the output cannot be written.
pub async fn run(args: TraceArgs) -> Result<ExitCode> {
    args.filters.notes().iter().for_each(say);
    let gate = Gate::new(args.filters.filter(), &args.redact)?;
    if args.read.is_empty() { trace(&args, gate).await } else { read(&args, gate) }
}

fn read(args: &TraceArgs, gate: Gate) -> Result<ExitCode> {
    let inputs = Inputs::find(&args.read)?;
    let mut session = Session::new(args, gate, Hosts::new(inputs.are_of_several_hosts()));
    let mut outcome = session.begin();
    let missing = inputs.read(|event| {
        if outcome.is_err() {
            return Ok(ControlFlow::Break(()));
        }
        Ok(session.report(event, &mut outcome))
    })?;
    match outcome.and_then(|()| session.finish(Losses::default())) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        other => other.context("cannot write the records to standard output")?,
    }
    Ok(if missing.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn trace(args: &TraceArgs, gate: Gate) -> Result<ExitCode> {
    let mut session = Session::new(args, gate, Hosts::default());
    let attached = Attached::new(&args.probes)?;
    let mut turns = Turns::new(args.duration)?;
    let mut live = attached.follow()?;
    session.begin()?;

    loop {
        let last = turns.next(&live).await;
        let mut outcome = session.fit();
        live.turn(last, |event| session.report(event, &mut outcome));
        let flushed = outcome.and_then(|()| session.out.flush());
        match flushed {
            // The reader, such as `head`, has had enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(ExitCode::SUCCESS),
            other => other.context("cannot write the records to standard output")?,
        }
        if last || session.is_full() {
            break;
        }
    }
    session.finish(live.losses()?)?;
    // Last, because the kernel takes up to 0.1 s to detach each uprobe.
    drop(live);
    Ok(ExitCode::SUCCESS)
}

/// The table for standard output as it is now. Colours only on a terminal, and unless the user has opted out.
fn table(columns: &[Column], hosts: &Hosts) -> Table {
    let width = rustix::termios::tcgetwinsize(io::stdout()).ok().map(|size| usize::from(size.ws_col));
    let is_terminal = io::stdout().is_terminal();
    let colours = is_terminal && std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty());
    // Some terminals do not know their width.
    let width = width.filter(|&width| is_terminal && width > 0);
    if hosts.are_several() {
        Table::of_hosts(columns, width, colours)
    } else {
        Table::new(columns, width, colours)
    }
}

/// One session's output.
struct Session {
    gate: Gate,
    hosts: Hosts,
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
    fn new(args: &TraceArgs, gate: Gate, hosts: Hosts) -> Self {
        let default = if io::stdout().is_terminal() { Output::Table } else { Output::Json };
        Self {
            gate,
            output: args.output.unwrap_or(default),
            columns: args.columns.clone(),
            table: table(&args.columns, &hosts),
            hosts,
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

    /// The terminal may have another width by now, or hosts have to be told apart.
    fn fit(&mut self) -> io::Result<()> {
        if self.output == Output::Table {
            let table = table(&self.columns, &self.hosts);
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

    /// Breaks if no further event is wanted.
    fn report(&mut self, event: ConnectionEvent, outcome: &mut io::Result<()>) -> ControlFlow<()> {
        if !self.is_full() && outcome.is_ok() {
            // A ladder is of all records of its connection, once one of them passes.
            let weighed = match self.output {
                Output::Ladder => Some(self.gate.weigh(event)),
                Output::Table | Output::Json => self.gate.pass(event).map(|event| (event, true)),
            };
            if let Some((event, passes)) = weighed {
                *outcome = self.take(event, passes);
            }
        }
        if self.is_full() || outcome.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn take(&mut self, event: ConnectionEvent, passes: bool) -> io::Result<()> {
        if passes {
            self.summary.add(&event);
            self.left = self.left.map(|left| left - 1);
        }
        let had_several = self.hosts.are_several();
        self.hosts.add(&event);
        match self.output {
            Output::Ladder => {}
            Output::Table => {
                if self.hosts.are_several() != had_several {
                    self.fit()?;
                }
                writeln!(self.out, "{}", self.table.line(&event))?;
            }
            Output::Json => {
                // `handshake explain` shows them as ladders.
                return writeln!(self.out, "{}", untrusted::json(serde_json::to_string(&event)?));
            }
        }
        self.journal.take_if(event, passes).map_or(Ok(()), |whole| self.end(&whole))
    }

    /// A connection that will have no further record.
    fn end(&mut self, whole: &ConnectionEvent) -> io::Result<()> {
        // What comes after the socket was drawn up to there, when it closed.
        let is_rest = whole.stage == Stage::TimeWait;
        if !is_rest {
            self.savings.add(whole);
        }
        if self.output != Output::Ladder {
            return Ok(());
        }
        writeln!(self.out)?;
        if self.hosts.are_several() {
            writeln!(self.out, "{}", ladder::host(whole))?;
        }
        let drawn = if is_rest { ladder::draw_rest(whole) } else { ladder::draw(whole) };
        self.out.write_all(drawn.as_bytes())
    }

    /// The summary follows the table or the ladders; with JSON it goes to standard error, so that the output
    /// stays JSON.
    fn finish(mut self, losses: Losses) -> io::Result<()> {
        for whole in self.journal.finish() {
            self.end(&whole)?;
        }
        let mut text = format!("\n{}", self.summary.render());
        let savings = self.savings.render();
        if !savings.is_empty() {
            let _ = write!(text, "\n{savings}");
        }
        let evicted = (self.journal.evicted(), "connections that stayed open: more than can be remembered");
        let [records, connections, runs] = losses.counts();
        for line in lost([records, connections, evicted, runs]) {
            let _ = writeln!(text, "{line}");
        }
        match self.output {
            Output::Table | Output::Ladder => {
                self.out.write_all(text.as_bytes())?;
                self.out.flush()
            }
            Output::Json => io::stderr().write_all(text.as_bytes()),
        }
    }
}
