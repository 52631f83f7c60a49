//! `cargo xtask table`: the round trips of the whole setup, measured and expected.

use std::{env, fmt::Write as _, fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{process, workspace::Workspace};

/// Measure the table of TLS handshakes and print it
///
/// Real clients and servers over a link with a round trip of 50 ms, each kind of handshake once after a plain
/// open and once with the `ClientHello` in the SYN. Needs root, as `cargo xtask test` does.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  cargo xtask table")]
pub(crate) struct Args {}

/// The tests that measure, and the title of each in the table, in its order.
const TESTS: &str = "tls::table::";
const LINES: [(&str, &str); 13] = [
    ("tls12_full", "TLS 1.2 full"),
    ("tls12_resumed", "TLS 1.2 resumed"),
    ("tls12_false_start", "TLS 1.2 false start"),
    ("tls13_full", "TLS 1.3 full"),
    ("tls13_hello_retry", "TLS 1.3 HelloRetryRequest"),
    ("tls13_resumed", "TLS 1.3 resumed (PSK)"),
    ("early_data_accepted", "TLS 1.3 early data accepted"),
    ("early_data_rejected", "TLS 1.3 early data rejected"),
    ("early_data_rejected_by_hello_retry", "TLS 1.3 early data rejected by HelloRetryRequest"),
    ("curl_and_nginx", "curl and nginx, TLS 1.3 full"),
    ("curl_and_haproxy", "curl and HAProxy, TLS 1.3 full"),
    ("asyncio", "Python asyncio, TLS 1.3 full"),
    ("java", "Java, TLS 1.3 full, the first of its JVM"),
];

/// Programs that cannot request Fast Open.
const WITHOUT_FAST_OPEN: [&str; 1] = ["java"];

pub(crate) fn main(_args: &Args) -> Result<()> {
    let workspace = Workspace::locate()?;
    let path = workspace.target.join("table.jsonl");
    if path.exists() {
        fs::remove_file(&path).with_context(|| format!("cannot remove {}: is it root's?", path.display()))?;
    }
    let this = env::current_exe().context("where is xtask itself?")?;
    let tests = process::run(
        Command::new(this).args(["test", TESTS]).env("HANDSHAKE_TABLE", &path),
        "measuring the table",
        "see the tests' output above",
    );
    // What was measured is shown even if something failed.
    println!("{}", render(&read(&path)?)?);
    tests
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| {
        format!("no test has written {}: did `cargo xtask test {TESTS}` run as root?", path.display())
    })
}

/// Markdown: the round trips, with the expected ones in parentheses if they differ, and the time.
fn render(cells: &str) -> Result<String> {
    let cells = cells
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("no JSON: {line}")))
        .collect::<Result<Vec<Value>>>()?;
    if let Some(stranger) = cells.iter().find(|cell| LINES.iter().all(|(name, _)| cell["line"] != *name)) {
        bail!("a line of the table has no title: {stranger}");
    }
    let mut out = String::from(
        "SYN → the client may send application data, over a round trip of 50 ms\n\n\
         | handshake | plain TCP | ClientHello in the SYN |\n| --- | --- | --- |\n",
    );
    for (name, title) in LINES {
        let column = |fast_open: bool| {
            let cell = cells.iter().find(|cell| cell["line"] == name && cell["fast_open"] == fast_open);
            let none = if fast_open && WITHOUT_FAST_OPEN.contains(&name) {
                "cannot ask for it"
            } else {
                "not measured"
            };
            cell.map_or_else(|| none.to_owned(), describe)
        };
        writeln!(out, "| {title} | {} | {} |", column(false), column(true))?;
    }
    Ok(out)
}

fn describe(cell: &Value) -> String {
    let measured = cell["round_trips"].as_u64().map_or_else(|| "?".to_owned(), |count| count.to_string());
    let expected = &cell["expected"];
    let difference =
        if cell["round_trips"] == *expected { String::new() } else { format!(" (not {expected})") };
    let time = cell["setup_us"].as_u64().map_or_else(
        || "?".to_owned(),
        // One decimal.
        |micros| format!("{}.{}", micros / 1000, micros % 1000 / 100),
    );
    format!("{measured}{difference}: {time} ms")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_in_their_place_and_differences_are_shown() {
        let cells = r#"{"line":"tls13_full","fast_open":true,"expected":1,"round_trips":1,"setup_us":51234}
{"line":"tls13_full","fast_open":false,"expected":2,"round_trips":3,"setup_us":151099}
{"line":"tls12_full","fast_open":false,"expected":3,"round_trips":null,"setup_us":null}"#;
        let table = render(cells).unwrap();
        assert!(table.contains("| TLS 1.3 full | 3 (not 2): 151.0 ms | 1: 51.2 ms |"), "{table}");
        assert!(table.contains("| TLS 1.2 full | ? (not 3): ? ms | not measured |"), "{table}");
        assert!(!table.contains("asyncio, TLS 1.3 full | 1"), "{table}");
    }

    #[test]
    fn line_without_a_title_is_an_error() {
        assert!(render(r#"{"line":"tls14"}"#).is_err());
        assert!(render("oops").is_err());
    }
}
