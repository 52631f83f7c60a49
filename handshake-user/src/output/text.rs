//! How values look on a terminal.

use std::time::Duration;

use textwrap::{WordSeparator, WordSplitter, WrapAlgorithm};
use unicode_width::UnicodeWidthStr as _;

use crate::event::{Endpoint, micros};

/// A duration in the unit that keeps it short. `?` is unknown.
#[must_use]
pub fn duration(time: Option<Duration>) -> String {
    #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
    match time.map(micros) {
        None => "?".to_owned(),
        Some(us) if us < 1_000 => format!("{us} µs"),
        Some(us) if us < 1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        Some(us) => format!("{:.2} s", us as f64 / 1e6),
    }
}

/// An address and its port. `?` is unknown.
#[must_use]
pub fn endpoint(end: Endpoint) -> String {
    let Endpoint { addr, port } = end;
    match addr {
        Some(addr) => match addr.to_string() {
            text if text.contains(':') => format!("[{text}]:{port}"),
            text => format!("{text}:{port}"),
        },
        None => format!("?:{port}"),
    }
}

/// Wraps words into lines of at most `width` columns. The first line keeps its leading spaces, later ones
/// begin with `indent` spaces. A longer word has a line of its own.
#[must_use]
pub fn wrap(text: &str, width: usize, indent: usize) -> String {
    let words = text.trim_start_matches(' ');
    let (first, indent) = (" ".repeat(text.len() - words.len()), " ".repeat(indent));
    let options = textwrap::Options::new(width)
        .initial_indent(&first)
        .subsequent_indent(&indent)
        .break_words(false)
        .word_separator(WordSeparator::AsciiSpace)
        .word_splitter(WordSplitter::NoHyphenation)
        .wrap_algorithm(WrapAlgorithm::FirstFit);
    textwrap::fill(words, options)
}

/// The columns that a terminal needs for a text.
#[must_use]
pub fn columns(text: &str) -> usize {
    text.width()
}

/// Pads a text with spaces to this many columns.
#[must_use]
pub fn pad(text: &str, columns: usize) -> String {
    format!("{text}{}", " ".repeat(columns.saturating_sub(text.width())))
}

/// Lines of cells, the columns as wide as their widest cell: the first `words` columns to the left, numbers
/// to the right.
#[must_use]
pub fn table<const N: usize>(lines: &[[String; N]], words: usize) -> String {
    let widths: [usize; N] =
        std::array::from_fn(|i| lines.iter().map(|line| columns(&line[i])).max().unwrap_or(0));
    let mut text = String::new();
    for line in lines {
        for (i, cell) in line.iter().enumerate() {
            let pad = " ".repeat(widths[i] - columns(cell));
            let gap = if i == 0 { "" } else { "  " };
            let (before, after) = if i < words { ("", pad.as_str()) } else { (pad.as_str(), "") };
            text.extend([gap, before, cell, after]);
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_keep_short() {
        let shown =
            [0, 999, 1_000, 50_646, 999_999, 1_050_646].map(|us| duration(Some(Duration::from_micros(us))));
        assert_eq!(shown, ["0 µs", "999 µs", "1.0 ms", "50.6 ms", "1000.0 ms", "1.05 s"]);
        assert_eq!(duration(None), "?");
    }

    #[test]
    fn lines_keep_to_the_width() {
        assert_eq!(wrap("one two three four", 9, 2), "one two\n  three\n  four");
        assert_eq!(wrap("  averylongword x", 6, 4), "  averylongword\n    x");
    }

    #[test]
    fn wide_characters_take_two_columns() {
        assert_eq!(pad("服务", 6), "服务  ");
        assert_eq!(wrap("服务 ab", 5, 0), "服务\nab");
    }
}
