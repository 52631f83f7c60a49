//! Comments that are too wide: rustfmt does not wrap them.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};

/// rustfmt's `max_width` (rustfmt.toml), which it does not apply to comments.
const MAX: usize = 110;

/// Fails with the place of every comment in these files that is too wide.
pub(super) fn check(root: &Path, files: &[String]) -> Result<()> {
    let mut wide = Vec::new();
    for file in files {
        let text = fs::read_to_string(root.join(file)).with_context(|| format!("cannot read {file}"))?;
        wide.extend(wide_lines(&text).map(|line| format!("{file}:{line}")));
    }
    ensure!(wide.is_empty(), "{} comments are wider than {MAX} columns:\n{}", wide.len(), wide.join("\n"));
    Ok(())
}

/// The numbers of the comment lines that are too wide and could be broken between two words.
fn wide_lines(text: &str) -> impl Iterator<Item = usize> {
    let is_wide = |line: &&str| {
        line.trim_start().starts_with("//")
            && line.chars().count() > MAX
            && line.split_whitespace().count() > 2
    };
    (1..).zip(text.lines()).filter(move |(_, line)| is_wide(line)).map(|(number, _)| number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_lines_are_counted_in_characters_and_from_one() {
        let (fits, wide) = (format!("// a {}", "é".repeat(105)), format!("// a {}", "é".repeat(106)));
        assert_eq!(wide_lines(&format!("{fits}\n{wide}\n")).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn long_word_alone_is_no_wide_line() {
        assert_eq!(wide_lines(&format!("    // {}", "x".repeat(200))).count(), 0);
    }
}
