//! Records out of a file or standard input, line by line and within limits.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    path::Path,
};

use anyhow::{Context as _, Result};
use thiserror::Error;

use super::decompress::decompressed;
use crate::{event::ConnectionEvent, untrusted::Untrusted};

/// Longest line that is read. Records take less than 2 KB, unless a cgroup path of 4096 bytes must be escaped
/// entirely.
const MAX_LINE: usize = 32 << 10;

/// Opens a file, or standard input for `-`; either may be compressed. Returns what to call it, too.
///
/// # Errors
/// When the file cannot be opened or read.
pub(super) fn open(path: &Path) -> Result<(String, Box<dyn BufRead>)> {
    let (name, input): (_, Box<dyn BufRead>) = if path.as_os_str() == "-" {
        ("standard input".to_owned(), Box::new(io::stdin().lock()))
    } else {
        let name = Untrusted::from(path).to_string();
        let file = File::open(path).with_context(|| format!("cannot open {name}"))?;
        (name, Box::new(BufReader::new(file)))
    };
    let input = decompressed(input).with_context(|| format!("cannot read {name}"))?;
    Ok((name, input))
}

/// What to say of a line that is no record.
pub(super) fn complaint(name: &str, line: u64, error: &BadLine) -> String {
    format!("handshake: {name}, line {line}: {}", Untrusted::from(error.to_string()))
}

/// Why a line is no record.
#[derive(Debug, Error)]
pub(super) enum BadLine {
    #[error("longer than {MAX_LINE} bytes")]
    TooLong,
    #[error("not a record of `trace --output json`: {0}")]
    NotARecord(#[from] serde_json::Error),
    #[error("the compressed data ends too early: from here on, records are missing")]
    CutOff,
}

/// The records of an input.
pub(super) struct Records<'a> {
    input: &'a mut dyn BufRead,
    line: Vec<u8>,
    number: u64,
    cut_off: bool,
}

impl<'a> Records<'a> {
    /// Of this input.
    pub(super) fn new(input: &'a mut dyn BufRead) -> Self {
        Self { input, line: Vec::new(), number: 0, cut_off: false }
    }

    /// The next line that is not empty, with its number, counted from 1. Returns `None` at the end.
    /// Compressed data that ends too early ends in [`BadLine::CutOff`].
    ///
    /// # Errors
    /// When the input cannot be read, or is not what it claims to be.
    pub(super) fn next(&mut self) -> io::Result<Option<(u64, Result<ConnectionEvent, BadLine>)>> {
        while !self.cut_off {
            self.number += 1;
            let fits = match next_line(self.input, &mut self.line) {
                Ok(Some(fits)) => fits,
                Ok(None) => break,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    self.cut_off = true;
                    return Ok(Some((self.number, Err(BadLine::CutOff))));
                }
                Err(error) => return Err(error),
            };
            if !self.line.trim_ascii().is_empty() {
                return Ok(Some((self.number, parse(&self.line, fits))));
            }
        }
        Ok(None)
    }
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
