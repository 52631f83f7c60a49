//! `handshake explain`: records out of a file or standard input, each connection as a ladder.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, BufWriter, Write},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use thiserror::Error;

use crate::{
    cli::ExplainArgs,
    event::ConnectionEvent,
    join::journal::ConnectionJournal,
    output::{ladder, savings::Savings},
    untrusted::{Untrusted, say},
};

/// Longest line that is read. Records take less than 2 KB, unless a cgroup path of 4096 bytes must be escaped
/// entirely.
const MAX_LINE: usize = 32 << 10;

/// Draws every connection of the records. A line that is no record is reported on standard error with its
/// number, and the exit status is 1.
///
/// # Errors
/// When the input cannot be read or the output cannot be written.
pub fn run(args: &ExplainArgs) -> Result<ExitCode> {
    let from_stdin = args.file.as_os_str() == "-";
    let name = if from_stdin { "standard input".to_owned() } else { shown(&args.file) };
    let mut input: Box<dyn BufRead> =
        if from_stdin { Box::new(io::stdin().lock()) } else { Box::new(BufReader::new(open(&args.file)?)) };
    let mut out = Drawing::new(BufWriter::new(io::stdout().lock()));
    let mut bad = 0_u64;
    let result = draw_all(&mut input, &mut out, |line, error| {
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

fn shown(path: &Path) -> String {
    Untrusted::from(path).to_string()
}

fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("cannot open {}", shown(path)))
}

/// The ladders of these records, and the complaints about lines that are none.
pub(crate) fn to_text(mut records: &[u8]) -> (String, Vec<String>) {
    let (mut out, mut said) = (Drawing::new(Vec::new()), Vec::new());
    let result = draw_all(&mut records, &mut out, |line, error| said.push(complaint("records", line, error)));
    debug_assert!(result.is_ok(), "memory can be read and written");
    (String::from_utf8_lossy(&out.out).into_owned(), said)
}

fn complaint(name: &str, line: u64, error: &BadLine) -> String {
    format!("handshake: {name}, line {line}: {}", Untrusted::from(error.to_string()))
}

/// Why a line is no record.
#[derive(Debug, Error)]
enum BadLine {
    #[error("longer than {MAX_LINE} bytes")]
    TooLong,
    #[error("not a record of `trace --output json`: {0}")]
    NotARecord(#[from] serde_json::Error),
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
    let mut line = Vec::new();
    let mut number = 0_u64;
    while let Some(fits) = next_line(input, &mut line).map_err(Failure::Read)? {
        number += 1;
        if line.trim_ascii().is_empty() {
            continue;
        }
        match parse(&line, fits) {
            Ok(record) => out.take(record).map_err(Failure::Write)?,
            Err(error) => tell_bad(number, &error),
        }
    }
    out.finish().map_err(Failure::Write)
}

/// Reads a line without its newline. Returns whether it fits into [`MAX_LINE`] (the rest is discarded), or
/// `None` at the end.
fn next_line(input: &mut dyn BufRead, line: &mut Vec<u8>) -> io::Result<Option<bool>> {
    line.clear();
    let (mut fits, mut any) = (true, false);
    loop {
        let chunk = match input.fill_buf() {
            Ok(chunk) => chunk,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if chunk.is_empty() {
            return Ok(any.then_some(fits));
        }
        any = true;
        let end = memchr::memchr(b'\n', chunk);
        let part = &chunk[..end.unwrap_or(chunk.len())];
        fits &= line.len() + part.len() <= MAX_LINE;
        if fits {
            line.extend_from_slice(part);
        }
        let used = part.len() + usize::from(end.is_some());
        input.consume(used);
        if end.is_some() {
            return Ok(Some(fits));
        }
    }
}

fn parse(line: &[u8], fits: bool) -> Result<ConnectionEvent, BadLine> {
    if fits { Ok(serde_json::from_slice(line)?) } else { Err(BadLine::TooLong) }
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
