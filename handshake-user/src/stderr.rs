//! Standard error, which a full-screen view keeps off the terminal while it has that.

use std::{
    collections::VecDeque,
    io::{self, IsTerminal as _, Write},
    sync::{Mutex, PoisonError},
};

/// Lines that are kept; the oldest are dropped.
const MAX_LINES: usize = 200;

/// What was written since it is held back. `None`: it is not.
static HELD: Mutex<Option<Held>> = Mutex::new(None);

#[derive(Debug, Default)]
struct Held {
    lines: VecDeque<String>,
    dropped: u64,
}

/// From now on lines are kept instead of written, if standard error is a terminal.
pub fn hold() {
    if io::stderr().is_terminal() {
        held(|held| *held = Some(Held::default()));
    }
}

/// Writes what was kept, and from now on everything again.
pub fn release() {
    let Some(Held { lines, dropped }) = held(Option::take) else { return };
    if dropped > 0 {
        let _ = writeln!(io::stderr(), "{dropped} lines before these are not kept");
    }
    for line in lines {
        let _ = writeln!(io::stderr(), "{line}");
    }
}

/// The last line that is held back, without its colours.
#[must_use]
pub fn last_line() -> Option<String> {
    held(|held| held.as_ref()?.lines.back().map(|line| without_colours(line)))
}

/// Removes what selects a graphic rendition (ECMA-48).
fn without_colours(line: &str) -> String {
    let mut parts = line.split("\x1b[");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        plain.push_str(part.split_once('m').map_or(part, |(_, rest)| rest));
    }
    plain
}

fn held<T>(with: impl FnOnce(&mut Option<Held>) -> T) -> T {
    with(&mut HELD.lock().unwrap_or_else(PoisonError::into_inner))
}

/// A writer of whole lines to standard error.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let kept = held(|held| {
            let Some(held) = held else { return false };
            for line in String::from_utf8_lossy(bytes).lines() {
                if held.lines.len() == MAX_LINES {
                    held.lines.pop_front();
                    held.dropped += 1;
                }
                held.lines.push_back(line.to_owned());
            }
            true
        });
        if kept { Ok(bytes.len()) } else { io::stderr().write(bytes) }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_removed() {
        assert_eq!(without_colours("\x1b[2m12:00\x1b[0m \x1b[33m WARN\x1b[0m lost"), "12:00  WARN lost");
        assert_eq!(without_colours("plain"), "plain");
    }
}
