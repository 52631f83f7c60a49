//! How values look on a terminal.

use std::time::Duration;

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

/// An address and its port.
#[must_use]
pub fn endpoint(end: Endpoint) -> String {
    if end.addr.is_ipv6() {
        format!("[{}]:{}", end.addr, end.port)
    } else {
        format!("{}:{}", end.addr, end.port)
    }
}

/// Puts words into lines of at most `width` characters. The first keeps the spaces that it begins with, later ones begin
/// with `indent`. A word that is longer stands alone.
#[must_use]
pub fn wrap(text: &str, width: usize, indent: usize) -> String {
    let words = text.trim_start_matches(' ');
    let mut start = text.len() - words.len();
    let (mut wrapped, mut column) = (" ".repeat(start), start);
    for word in words.split(' ') {
        let length = word.chars().count();
        let is_first = column == start;
        if !is_first && column + 1 + length > width {
            wrapped.push('\n');
            wrapped.push_str(&" ".repeat(indent));
            (start, column) = (indent, indent);
        } else if !is_first {
            wrapped.push(' ');
            column += 1;
        }
        wrapped.push_str(word);
        column += length;
    }
    wrapped
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
}
