//! Records out of files and standard input, line by line and within limits.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader},
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use thiserror::Error;

use super::decompress::decompressed;
use crate::{
    event::ConnectionEvent,
    untrusted::{Untrusted, say},
};

/// Longest line that is read. Records take less than 2 KB, unless a cgroup path of 4096 bytes must be escaped
/// entirely.
const MAX_LINE: usize = 32 << 10;
/// How many bad lines of a file are named; the others are counted.
const MAX_NAMED: u64 = 20;
/// How deep folders are searched: hosts, and perhaps days or months.
const MAX_DEPTH: u32 = 8;
/// What the names of files of records in a folder end with.
const ENDINGS: [&str; 6] = [".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".json.gz", ".json.zst"];

/// Files of records, in the order in which they are read.
pub(super) struct Inputs(Vec<Input>);

#[derive(Debug, PartialEq, Eq)]
struct Input {
    path: PathBuf,
    /// Nobody named it: it was in a folder.
    is_found: bool,
}

/// What could not be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Missing {
    /// Lines that are no records.
    pub(super) lines: u64,
    /// Files that could be read up to a point only.
    pub(super) cut_off: u64,
}

impl Missing {
    /// Whether nothing is missing.
    pub(super) fn is_none(self) -> bool {
        self == Self::default()
    }
}

impl Inputs {
    /// The files that these paths name, and those in the folders that they name, by their names.
    ///
    /// # Errors
    /// When a folder cannot be read or has none.
    pub(super) fn find(paths: &[PathBuf]) -> Result<Self> {
        let mut found = Vec::new();
        for path in paths {
            if !path.is_dir() {
                found.push(Input { path: path.clone(), is_found: false });
                continue;
            }
            let before = found.len();
            let name = Untrusted::from(&**path);
            add_files(path, MAX_DEPTH, &mut found)
                .with_context(|| format!("cannot read the folder {name}"))?;
            ensure!(
                found.len() > before,
                "no files of records in the folder {name}: their names end with {}",
                ENDINGS.join(", ")
            );
        }
        Ok(Self(found))
    }

    /// Whether the files begin with records of different hosts. More may turn up later.
    pub(super) fn are_of_several_hosts(&self) -> bool {
        // A pipe can be read only once.
        let files = self.0.iter().filter(|input| self.0.len() > 1 && input.path.is_file());
        let mut hosts = files.filter_map(|input| first(&input.path)?.host);
        let host = hosts.next();
        hosts.any(|other| Some(other) != host)
    }

    /// Passes all records on, until `take` breaks. What cannot be read is said and counted.
    ///
    /// # Errors
    /// When a file cannot be opened or read, and what `take` says.
    pub(super) fn read(
        &self,
        mut take: impl FnMut(ConnectionEvent) -> Result<ControlFlow<()>>,
    ) -> Result<Missing> {
        let mut missing = Missing::default();
        for Input { path, is_found } in &self.0 {
            let (name, mut input) = match open(path) {
                // Whoever writes it has limits.
                Err(_) if *is_found && !path.exists() => {
                    say(format_args!("handshake: {} was deleted meanwhile", Untrusted::from(&**path)));
                    continue;
                }
                opened => opened?,
            };
            let (flow, of_it) = read(&name, &mut *input, &mut take, say)?;
            missing.lines += of_it.lines;
            missing.cut_off += of_it.cut_off;
            if flow.is_break() {
                break;
            }
        }
        Ok(missing)
    }
}

/// Adds the files of records below a folder. Links are not followed.
fn add_files(folder: &Path, depth: u32, found: &mut Vec<Input>) -> io::Result<()> {
    let mut entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let kind = entry.file_type()?;
        if kind.is_dir() && depth > 0 {
            add_files(&entry.path(), depth - 1, found)?;
        } else if kind.is_file()
            && ENDINGS.iter().any(|end| entry.file_name().to_string_lossy().ends_with(end))
        {
            found.push(Input { path: entry.path(), is_found: true });
        }
    }
    Ok(())
}

/// The first record of a file.
fn first(path: &Path) -> Option<ConnectionEvent> {
    let (_, mut input) = open(path).ok()?;
    let mut found = None;
    let first = |record| {
        found = Some(record);
        Ok(ControlFlow::Break(()))
    };
    let _ = read("", &mut *input, first, |_: String| {}).ok()?;
    found
}

/// Opens a file, or standard input for `-`; either may be compressed. Returns what to call it, too.
fn open(path: &Path) -> Result<(String, Box<dyn BufRead>)> {
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

/// Passes the records of an input on, until `take` breaks. What is no record is said to `tell`.
///
/// # Errors
/// When it cannot be read, and what `take` says.
pub(super) fn read(
    name: &str,
    input: &mut dyn BufRead,
    mut take: impl FnMut(ConnectionEvent) -> Result<ControlFlow<()>>,
    mut tell: impl FnMut(String),
) -> Result<(ControlFlow<()>, Missing)> {
    let mut missing = Missing::default();
    let mut records = Records::new(input);
    let mut flow = ControlFlow::Continue(());
    while flow.is_continue()
        && let Some((line, record)) = records.next().with_context(|| format!("cannot read {name}"))?
    {
        match record {
            Ok(record) => flow = take(record)?,
            Err(error) => {
                match error {
                    BadLine::CutOff | BadLine::Damaged(_) => missing.cut_off += 1,
                    BadLine::TooLong | BadLine::NotARecord(_) => missing.lines += 1,
                }
                if missing.lines <= MAX_NAMED || missing.cut_off > 0 {
                    tell(format!("handshake: {name}, line {line}: {}", Untrusted::from(error.to_string())));
                }
            }
        }
    }
    if let more @ 1.. = missing.lines.saturating_sub(MAX_NAMED) {
        tell(format!("handshake: {name}: {more} more lines that are not records"));
    }
    Ok((flow, missing))
}

/// Why a line is no record.
#[derive(Debug, Error)]
enum BadLine {
    #[error("longer than {MAX_LINE} bytes")]
    TooLong,
    #[error("not a record of `trace --output json`: {0}")]
    NotARecord(#[from] serde_json::Error),
    #[error("the compressed data ends too early: from here on, records are missing")]
    CutOff,
    #[error("{0}: from here on, records are missing")]
    Damaged(io::Error),
}

/// The records of an input.
struct Records<'a> {
    input: &'a mut dyn BufRead,
    line: Vec<u8>,
    number: u64,
    ended: bool,
}

impl<'a> Records<'a> {
    /// Of this input.
    fn new(input: &'a mut dyn BufRead) -> Self {
        Self { input, line: Vec::new(), number: 0, ended: false }
    }

    /// The next line that is not empty, with its number, counted from 1. Returns `None` at the end.
    /// Compressed data that ends too early or is damaged ends in the [`BadLine`] that says so.
    fn next(&mut self) -> io::Result<Option<(u64, Result<ConnectionEvent, BadLine>)>> {
        while !self.ended {
            self.number += 1;
            let fits = match next_line(self.input, &mut self.line) {
                Ok(Some(fits)) => fits,
                Ok(None) => break,
                Err(error) => {
                    self.ended = true;
                    let bad = match error.kind() {
                        io::ErrorKind::UnexpectedEof => BadLine::CutOff,
                        io::ErrorKind::InvalidData => BadLine::Damaged(error),
                        _ => return Err(error),
                    };
                    return Ok(Some((self.number, Err(bad))));
                }
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

/// Whether records are of several hosts, so that each must be named.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    first: Option<Untrusted>,
    several: bool,
}

impl Hosts {
    /// Where it is known from the start.
    pub(super) const fn new(several: bool) -> Self {
        Self { first: None, several }
    }

    /// Takes a record in.
    pub(super) fn add(&mut self, record: &ConnectionEvent) {
        let Some(host) = &record.host else { return };
        self.several |= self.first.get_or_insert_with(|| host.clone()) != host;
    }

    /// Whether there are several.
    pub(super) const fn are_several(&self) -> bool {
        self.several
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_searched_for_files_of_records_in_the_order_of_names() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("web-2/november")).unwrap();
        for name in
            ["web-2/b.jsonl.gz", "web-2/a.jsonl", "web-2/november/c.json.zst", "web-1.jsonl", "notes.txt"]
        {
            fs::write(at(name), "").unwrap();
        }
        std::os::unix::fs::symlink("/etc/passwd", at("link.jsonl")).unwrap();
        std::os::unix::fs::symlink(folder.path(), at("loop")).unwrap();
        let found = |paths: &[PathBuf]| {
            Inputs::find(paths).map(|found| found.0.into_iter().map(|input| input.path).collect::<Vec<_>>())
        };
        let all = ["web-1.jsonl", "web-2/a.jsonl", "web-2/b.jsonl.gz", "web-2/november/c.json.zst"].map(at);
        assert_eq!(found(&[folder.path().to_owned()]).unwrap(), all);
        // Whoever names a file means it.
        let named = [at("notes.txt"), "-".into(), at("missing")];
        assert_eq!(found(&named).unwrap(), named);
        fs::create_dir(at("empty")).unwrap();
        assert!(found(&[at("empty")]).unwrap_err().to_string().contains("no files of records"));
    }

    #[test]
    fn bad_lines_are_named_up_to_a_limit_and_all_counted() {
        let mut said = Vec::new();
        let lines = "no record\n".repeat(100);
        let (_, missing) =
            read("a", &mut lines.as_bytes(), |_| Ok(ControlFlow::Continue(())), |line| said.push(line))
                .unwrap();
        assert_eq!(missing, Missing { lines: 100, cut_off: 0 });
        assert_eq!(said.len(), 21);
        assert!(said[0].starts_with("handshake: a, line 1: not a record"), "{}", said[0]);
        assert_eq!(said[20], "handshake: a: 80 more lines that are not records");
    }
}
