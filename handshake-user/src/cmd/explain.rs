//! `handshake explain`: records out of a file or standard input, each connection as a ladder.

use std::{
    io::{self, BufRead, BufWriter, Write},
    process::ExitCode,
};

use anyhow::{Context as _, Result};

use crate::{
    cli::ExplainArgs,
    cmd::{
        decompress::decompressed,
        records::{self, BadLine, Records, complaint},
    },
    event::ConnectionEvent,
    join::journal::ConnectionJournal,
    output::{ladder, savings::Savings},
    untrusted::{Untrusted, say},
};

/// Draws every connection of the records. A line that is no record is reported on standard error with its
/// number, and the exit status is 1.
///
/// # Errors
/// When the input cannot be read or the output cannot be written.
pub fn run(args: &ExplainArgs) -> Result<ExitCode> {
    let (name, mut input) = records::open(&args.file)?;
    let mut out = Drawing::new(BufWriter::new(io::stdout().lock()));
    let mut bad = 0_u64;
    let result = draw_all(&mut *input, &mut out, |line, error| {
        bad += 1;
        say(complaint(&name, line, error));
    });
    match result {
        Err(Failure::Read(error)) => return Err(error).with_context(|| format!("cannot read {name}")),
        // The reader, such as `head`, has had enough.
        Err(Failure::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => {}
        Err(Failure::Write(error)) => return Err(error).context("cannot write to standard output"),
        Ok(()) => {}
    }
    Ok(if bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The ladders of these records, and the complaints about lines that are none.
pub(crate) fn to_text(records: &[u8]) -> (String, Vec<String>) {
    let (mut out, mut said) = (Drawing::new(Vec::new()), Vec::new());
    let tell_bad = |line, error: &BadLine| said.push(complaint("records", line, error));
    let result = decompressed(Box::new(records))
        .map_err(Failure::Read)
        .and_then(|mut records| draw_all(&mut records, &mut out, tell_bad));
    match result {
        Ok(()) => {}
        Err(Failure::Read(error)) => said.push(format!("handshake: {}", Untrusted::from(error.to_string()))),
        Err(Failure::Write(_)) => unreachable!("memory can be written"),
    }
    (String::from_utf8_lossy(&out.out).into_owned(), said)
}

/// Which side of the program failed.
enum Failure {
    Read(io::Error),
    Write(io::Error),
}

fn draw_all(
    input: &mut dyn BufRead,
    out: &mut Drawing<impl Write>,
    mut tell_bad: impl FnMut(u64, &BadLine),
) -> Result<(), Failure> {
    let mut records = Records::new(input);
    while let Some((line, record)) = records.next().map_err(Failure::Read)? {
        match record {
            Ok(record) => out.take(record).map_err(Failure::Write)?,
            Err(error) => tell_bad(line, &error),
        }
    }
    out.finish().map_err(Failure::Write)
}

/// Ladders as their connections end, and the settings that would save most at the end.
struct Drawing<W> {
    out: W,
    journal: ConnectionJournal,
    savings: Savings,
    begun: bool,
}

impl<W: Write> Drawing<W> {
    /// On this output.
    fn new(out: W) -> Self {
        Self {
            out,
            journal: ConnectionJournal::awaiting_time_wait(),
            savings: Savings::default(),
            begun: false,
        }
    }

    fn take(&mut self, record: ConnectionEvent) -> io::Result<()> {
        match self.journal.take(record) {
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
        write!(self.out, "\n{}", ladder::draw(record))
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
