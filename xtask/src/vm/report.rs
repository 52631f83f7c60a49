//! The table of what was run: on the terminal, and in docs/compatibility.md.

use std::{collections::BTreeSet, fmt, fs, path::Path};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{kernel::numbers, output::Section};

/// The lines between which the table stands.
const BEGIN: &str = "<!-- cargo xtask vm --all: begin -->\n";
const END: &str = "<!-- cargo xtask vm --all: end -->\n";
/// Names of the columns, and the line below them.
const HEAD_LINES: usize = 2;

/// One kernel in one attach mode.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) release: String,
    pub(super) arch: &'static str,
    pub(super) mode: &'static str,
    pub(super) tcp: Count,
    /// `None` if the kernel has no uprobes that could be used.
    pub(super) libraries: Option<Count>,
    pub(super) wire: Count,
    pub(super) discovery: Count,
    /// What `handshake check --json` says there.
    pub(super) check: Option<Value>,
    /// What did not pass.
    pub(super) failed: BTreeSet<String>,
}

/// How many tests passed of those that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Count {
    passed: usize,
    all: usize,
}

impl Count {
    /// Of those whose names contain one of these.
    pub(super) fn of(section: Option<&Section>, filters: &[&str]) -> Self {
        let tests = section.map(Section::tests).unwrap_or_default();
        let is_meant = |name: &str| filters.iter().any(|filter| name.contains(filter));
        let (mut passed, mut all) = (0, 0);
        for test in tests.iter().filter(|test| is_meant(&test.name)) {
            all += 1;
            passed += usize::from(test.passed);
        }
        Self { passed, all }
    }

    pub(super) fn all(section: Option<&Section>) -> Self {
        Self::of(section, &[""])
    }
}

impl fmt::Display for Count {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.all == 0 { out.write_str("not run") } else { write!(out, "{} of {}", self.passed, self.all) }
    }
}

impl Row {
    pub(super) fn failures(&self) -> Vec<String> {
        self.failed.iter().map(|failed| format!("{} on {}: {failed}", self.release, self.arch)).collect()
    }

    /// Whether an empty program of this kind attaches there.
    fn tier(&self, name: &str) -> &'static str {
        let tiers = self.check.as_ref().and_then(|check| check["tiers"].as_array());
        let state = tiers.and_then(|tiers| tiers.iter().find(|tier| tier["name"] == name));
        match state.and_then(|tier| tier["state"].as_str()) {
            Some("available") => "yes",
            Some("refused") => "refused",
            _ => "unknown",
        }
    }
}

/// The table in Markdown.
pub(super) fn table(rows: &[Row]) -> String {
    let mut table = String::from(
        "| kernel | architecture | attached by | TCP | TLS by its library | TLS on the wire | discovery | fentry | kprobe |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for row in rows {
        let Row { release, arch, mode, tcp, libraries, wire, discovery, .. } = row;
        let libraries = libraries.map_or_else(|| "no uprobe cookies".to_owned(), |count| count.to_string());
        let cells = [
            release.clone(),
            (*arch).to_owned(),
            format!("`{mode}`"),
            tcp.to_string(),
            libraries,
            wire.to_string(),
            discovery.to_string(),
            row.tier("fentry").to_owned(),
            row.tier("kprobe").to_owned(),
        ];
        table.extend(["| ", &cells.join(" | "), " |\n"]);
    }
    table
}

/// Writes the rows into the table of the page: those of other kernels stay, unless `is_all`.
pub(super) fn write(page: &Path, rows: &[Row], is_all: bool) -> Result<()> {
    let text = fs::read_to_string(page).with_context(|| format!("cannot read {}", page.display()))?;
    let text = replaced(&text, &table(rows), is_all)
        .with_context(|| format!("{} has lost the marks around the table", page.display()))?;
    fs::write(page, text).with_context(|| format!("cannot write {}", page.display()))
}

/// What a row is about: architecture, kernel and attach mode, in the order of the table.
fn subject(line: &str) -> (&str, Vec<u32>, &str) {
    let mut cells = line.split('|').skip(1).map(str::trim);
    let (release, arch, mode) = (cells.next(), cells.next(), cells.next());
    (arch.unwrap_or_default(), numbers(release.unwrap_or_default()), mode.unwrap_or_default())
}

fn replaced(text: &str, table: &str, is_all: bool) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (old, after) = rest.split_once(END)?;
    let mut lines = table.split_inclusive('\n');
    let head: String = lines.by_ref().take(HEAD_LINES).collect();
    let new: Vec<_> = lines.collect();
    let is_new = |line: &&str| new.iter().any(|new| subject(new) == subject(line));
    let kept = old.split_inclusive('\n').skip(HEAD_LINES).filter(|line| !is_all && !is_new(line));
    let mut rows: Vec<_> = kept.chain(new.iter().copied()).collect();
    rows.sort_by(|a, b| {
        let ((arch_a, release_a, mode_a), (arch_b, release_b, mode_b)) = (subject(a), subject(b));
        arch_b.cmp(arch_a).then(release_a.cmp(&release_b)).then(mode_a.cmp(mode_b))
    });
    Some(format!("{before}{BEGIN}{head}{}{END}{after}", rows.concat()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::output::Output;

    fn section(lines: &str) -> Output {
        let mut output = Output::default();
        format!("@@ begin x\n{lines}\n@@ end x 0").lines().for_each(|line| output.read(line));
        output
    }

    #[test]
    fn tests_are_counted_by_their_names() {
        let output = section("test tls::a ... ok\ntest tls::b ... FAILED\ntest opens::c ... ok");
        let count = |filters: &[&str]| Count::of(output.section("x"), filters).to_string();
        assert_eq!(count(&["tls::"]), "1 of 2");
        assert_eq!(count(&["opens::", "closes::"]), "1 of 1");
        assert_eq!(count(&["closes::"]), "not run");
        assert_eq!(Count::all(None).to_string(), "not run");
    }

    #[test]
    fn row_says_what_the_kernel_offers() {
        let count = Count { passed: 2, all: 2 };
        let row = Row {
            release: "6.1.0".to_owned(),
            arch: "x86_64",
            mode: "tp_btf",
            tcp: count,
            libraries: None,
            wire: count,
            discovery: count,
            check: Some(serde_json::json!({"tiers": [
                {"name": "fentry", "state": "refused"}, {"name": "kprobe", "state": "available"}
            ]})),
            failed: BTreeSet::new(),
        };
        let table = table(&[row]);
        let line =
            "| 6.1.0 | x86_64 | `tp_btf` | 2 of 2 | no uprobe cookies | 2 of 2 | 2 of 2 | refused | yes |";
        assert_eq!(table.lines().nth(2), Some(line));
    }

    #[test]
    fn rows_are_replaced_between_the_marks() {
        let page = |rows: &str| format!("before\n{BEGIN}head\n---\n{rows}{END}after\n");
        let old = "| 5.10.0 | x86_64 | `tp_btf` | 1 |\n| 6.1.0 | x86_64 | `tp_btf` | 1 |\n";
        let new = "head\n---\n| 6.1.0 | x86_64 | `tp_btf` | 2 |\n| 6.1.0 | aarch64 | `tp_btf` | 2 |\n";
        let merged = "| 5.10.0 | x86_64 | `tp_btf` | 1 |\n| 6.1.0 | x86_64 | `tp_btf` | 2 |\n\
                      | 6.1.0 | aarch64 | `tp_btf` | 2 |\n";
        assert_eq!(replaced(&page(old), new, false).unwrap(), page(merged));
        let all = "| 6.1.0 | x86_64 | `tp_btf` | 2 |\n| 6.1.0 | aarch64 | `tp_btf` | 2 |\n";
        assert_eq!(replaced(&page(old), new, true).unwrap(), page(all));
        assert_eq!(replaced(&format!("before\n{BEGIN}{END}after\n"), new, false).unwrap(), page(all));
        assert_eq!(replaced("no marks", new, true), None);
    }
}
