//! `handshake explain`: records out of files or standard input, each connection as a ladder.

use std::{
    io::{self, BufWriter, Write},
    ops::ControlFlow,
    process::ExitCode,
};

use anyhow::{Context as _, Result};

use crate::{
    cli::ExplainArgs,
    cmd::{
        decompress::decompressed,
        records::{self, Hosts, Inputs},
    },
    event::ConnectionEvent,
    join::journal::ConnectionJournal,
    output::{ladder, savings::Savings},
    redact::Gate,
    untrusted::{Untrusted, say},
};

/// Draws the connections of the records. A line that is no record is reported on standard error with its
/// number, and the exit status is 1.
///
/// # Errors
/// When the input cannot be read or the output cannot be written.
pub fn run(args: &ExplainArgs) -> Result<ExitCode> {
    args.filters.notes().iter().for_each(say);
    let gate = Gate::new(args.filters.filter(), &args.redact)?;
    let inputs = Inputs::find(&args.files)?;
    let hosts = Hosts::new(inputs.are_of_several_hosts());
    let mut drawing = Drawing::new(BufWriter::new(io::stdout().lock()), hosts);
    let mut outcome = Ok(());
    let missing = inputs.read(|record| {
        outcome = drawing.take(gate.weigh(record));
        Ok(if outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    match outcome.and_then(|()| drawing.finish()) {
        // The reader, such as `head`, has had enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        other => other.context("cannot write to standard output")?,
    }
    Ok(if missing.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The ladders of these records, and the complaints about lines that are none.
pub(crate) fn to_text(records: &[u8]) -> (String, Vec<String>) {
    let (mut drawing, mut said) = (Drawing::new(Vec::new(), Hosts::default()), Vec::new());
    let mut draw = || {
        let mut input = decompressed(Box::new(records))?;
        let take = |record| {
            drawing.take((record, true))?;
            Ok(ControlFlow::Continue(()))
        };
        let _ = records::read("records", &mut *input, take, |line| said.push(line))?;
        anyhow::Ok(drawing.finish()?)
    };
    if let Err(error) = draw() {
        said.push(format!("handshake: {}", Untrusted::from(error.to_string())));
    }
    (String::from_utf8_lossy(&drawing.out).into_owned(), said)
}

/// Ladders as their connections end, and the settings that would save most at the end.
struct Drawing<W> {
    out: W,
    hosts: Hosts,
    journal: ConnectionJournal,
    savings: Savings,
    begun: bool,
}

impl<W: Write> Drawing<W> {
    /// On this output.
    fn new(out: W, hosts: Hosts) -> Self {
        Self {
            out,
            hosts,
            journal: ConnectionJournal::awaiting_time_wait(),
            savings: Savings::default(),
            begun: false,
        }
    }

    /// A record, and whether its connection is to be drawn because of it.
    fn take(&mut self, (record, wanted): (ConnectionEvent, bool)) -> io::Result<()> {
        self.hosts.add(&record);
        match self.journal.take_if(record, wanted) {
            Some(whole) => self.draw(&whole),
            None => Ok(()),
        }
    }

    fn draw(&mut self, record: &ConnectionEvent) -> io::Result<()> {
        if !self.begun {
            self.begun = true;
            self.out.write_all(ladder::legend().as_bytes())?;
        }
        self.savings.add(record);
        writeln!(self.out)?;
        if self.hosts.are_several() {
            writeln!(self.out, "{}", ladder::host(record))?;
        }
        self.out.write_all(ladder::draw(record).as_bytes())
    }

    fn finish(&mut self) -> io::Result<()> {
        for record in self.journal.finish() {
            self.draw(&record)?;
        }
        let savings = self.savings.render();
        if !savings.is_empty() {
            write!(self.out, "\n{savings}")?;
        }
        let evicted = self.journal.evicted();
        if evicted > 0 {
            writeln!(
                self.out,
                "not drawn: {evicted} connections that were open, more than can be remembered"
            )?;
        }
        self.out.flush()
    }
}
