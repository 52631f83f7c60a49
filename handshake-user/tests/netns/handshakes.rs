//! The ladders of docs/handshakes.md, each drawn anew from a conversation over the link: the same words and
//! shape, and times that agree. `UPDATE_HANDSHAKES=1` writes them into the page instead.

use std::{
    env, fs,
    path::PathBuf,
    process::Stdio,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    case::{Case, RTT},
    ends::Ends,
    program::{
        machine::{is_slow, probes_libraries, tolerance},
        program,
    },
    testbed::packet::Side,
};

/// Generates the ladders in the order of the page. One that no test draws is dead code, which lint refuses.
macro_rules! ladders {
    ($($name:ident: $part:ident),+ $(,)?) => {
        /// A ladder of the page, where `<!-- ladder: NAME -->` stands above it.
        #[derive(Clone, Copy, Debug)]
        pub(crate) enum Ladder {
            $($name),+
        }

        impl Ladder {
            fn part(self) -> Part {
                match self {
                    $(Self::$name => Part::$part),+
                }
            }
        }

        const NAMES: &[&str] = &[$(stringify!($name)),+];
    };
}

ladders! {
    ThreeWayHandshake: Opening,
    FinalAckWithData: Opening,
    FastOpenCookieRequested: Opening,
    FastOpenDataAccepted: Opening,
    FastOpenDataRejected: Opening,
    FourSegments: Closing,
    ThreeSegments: Closing,
    HalfClose: Closing,
    SimultaneousClose: Closing,
    Reset: Closing,
    LateFin: Closing,
    TimeWait: Closing,
    Tls12Full: Opening,
    Tls12Resumed: Opening,
    Tls12FalseStart: Opening,
    Tls13Full: Opening,
    Tls13HelloRetryRequest: Opening,
    Tls13Resumed: Opening,
    EarlyDataAccepted: Opening,
    EarlyDataRejected: Opening,
    ZeroRoundTrips: Opening,
}

/// What of a connection the page shows.
#[derive(Clone, Copy)]
enum Part {
    Opening,
    Closing,
}

/// The line between the two.
const DATA: &str = "… data, of which no record tells";

/// Compiled in: virtual machines have no sources.
const PAGE: &str = include_str!("../../../docs/handshakes.md");

/// Draws the connection as this end saw it, and compares that with the page. The page has IPv4, and a kernel
/// that tells everything: older ones, which only virtual machines run, leave more unknown.
#[track_caller]
pub(crate) fn check(ladder: Ladder, case: &Case, ends: &Ends, side: Side) {
    let close = ends.close(side);
    // Without their probes the libraries are not named.
    if close.text("family") != Some("ipv4") || is_slow() || close.get("tls").is_some() && !probes_libraries()
    {
        return;
    }
    let records = case.matching(|record| record.id() == close.id());
    let records: Vec<_> = records.iter().map(|record| neutral(&record.to_string()).to_string()).collect();
    let drawn = cut(&explain(&records.join("\n")), ladder.part());
    if env::var_os("UPDATE_HANDSHAKES").is_some() {
        update(ladder, &drawn);
    } else {
        compare(ladder, &block(PAGE, ladder).2, &drawn);
    }
}

fn page() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/handshakes.md")
}

/// The record with ends and process that are the same each time: addresses for documentation (RFC 5737).
fn neutral(record: &str) -> Value {
    let mut record: Value = serde_json::from_str(record).unwrap();
    let client = json!({"addr": "192.0.2.1", "port": 50000});
    let server = json!({"addr": "192.0.2.2", "port": 443});
    let is_client = record["role"] == "client";
    (record["local"], record["remote"]) = if is_client { (client, server) } else { (server, client) };
    if let Some(process) = record.get_mut("process") {
        let (comm, pid) = if is_client { ("client", 1001) } else { ("server", 2002) };
        (process["comm"], process["pid"]) = (comm.into(), pid.into());
    }
    // The certificate of the tests is made anew now and then.
    if let Some(not_after) = record.pointer_mut("/tls/certificate/not_after") {
        *not_after = "2036-01-31T12:00:00Z".into();
    }
    record
}

/// The only ladder of these records, without the legend and what follows.
fn explain(records: &str) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), records).unwrap();
    let mut command = program(&["explain", file.path().to_str().unwrap()]);
    let out = command.stdout(Stdio::piped()).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8(out.stdout).unwrap();
    text.split("\n\n").nth(1).unwrap_or_else(|| panic!("no ladder in {text}")).to_owned()
}

/// The lines before the first segment, and the others.
fn head_and_rungs(ladder: &str) -> (Vec<&str>, Vec<&str>) {
    let lines: Vec<_> = ladder.lines().collect();
    let first = lines.iter().position(|line| line.contains(['▶', '◀']) || line.trim() == DATA);
    let (head, rungs) = lines.split_at(first.unwrap_or(lines.len()));
    (head.to_vec(), rungs.to_vec())
}

/// The part that the page shows, without advice.
fn cut(ladder: &str, part: Part) -> String {
    let (head, rungs) = head_and_rungs(ladder);
    let mut rungs: Vec<_> = rungs.into_iter().filter(|line| !line.starts_with("    saves ")).collect();
    let data = rungs.iter().position(|line| line.trim() == DATA).expect("opened and closed");
    let rungs = match part {
        Part::Opening => rungs[..data].to_vec(),
        Part::Closing => rungs.split_off(data),
    };
    [head, rungs].concat().join("\n") + "\n"
}

/// The page before the lines of a ladder, from them on, and those lines.
#[track_caller]
fn block(page: &str, ladder: Ladder) -> (String, String, String) {
    let mark = format!("<!-- ladder: {ladder:?} -->\n```\n");
    let (before, rest) = page.split_once(&mark).unwrap_or_else(|| panic!("the page has no {mark}"));
    let end = rest.find("```\n").expect("the block has an end");
    (format!("{before}{mark}"), rest[end..].to_owned(), rest[..end].to_owned())
}

/// Writes the block anew.
fn update(ladder: Ladder, drawn: &str) {
    static WRITING: Mutex<()> = Mutex::new(());
    let _alone = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    let (before, after, _) = block(&fs::read_to_string(page()).unwrap(), ladder);
    fs::write(page(), format!("{before}{drawn}{after}")).unwrap();
}

/// Words and shape must be the same, times roughly: what the programs took is in them, and the tests of each
/// number compare it with the link. TIME_WAIT ends by a timer that is coarser the longer it runs. Words and
/// shape depend on times, too: on a busy machine a segment may be late, or a FIN follow its ACK.
#[track_caller]
fn compare(ladder: Ladder, page: &str, drawn: &str) {
    let ((words, times), (drawn_words, drawn_times)) = (normal(page), normal(drawn));
    assert_time!(
        words == drawn_words,
        "{ladder:?}: UPDATE_HANDSHAKES=1 would write this into docs/handshakes.md:\n{drawn}\ninstead of\n{page}"
    );
    for (time, drawn_time) in times.iter().zip(&drawn_times) {
        let most = tolerance(RTT).max(*time / 20);
        assert_time!(
            time.abs_diff(*drawn_time) <= most,
            "{ladder:?}: {drawn_time:?}, on the page {time:?}:\n{page}\n{drawn}"
        );
    }
}

/// The text with `TIME` in place of each time, and the times. Spaces are not compared: times of another width
/// move them, and wrap the lines of the head elsewhere.
fn normal(ladder: &str) -> (Vec<String>, Vec<Duration>) {
    let (head, rungs) = head_and_rungs(ladder);
    let mut times = Vec::new();
    let lines = std::iter::once(head.join(" ")).chain(rungs.into_iter().map(str::to_owned));
    let lines = lines.map(|line| without_times(&line, &mut times)).collect();
    (lines, times)
}

fn without_times(line: &str, times: &mut Vec<Duration>) -> String {
    let mut words = line.split_whitespace().peekable();
    let mut shown = Vec::new();
    while let Some(word) = words.next() {
        let number: Option<f64> = word.trim_start_matches('~').parse().ok();
        let unit = match words.peek() {
            Some(&"µs") => Some(1e-6),
            Some(&"ms") => Some(1e-3),
            Some(&"s") => Some(1.0),
            _ => None,
        };
        if let (Some(number), Some(unit)) = (number, unit) {
            times.push(Duration::from_secs_f64(number * unit));
            words.next();
            shown.push(if word.starts_with('~') { "~TIME" } else { "TIME" });
        } else {
            shown.push(word);
        }
    }
    shown.join(" ")
}

#[test]
fn page_has_every_ladder_once_in_this_order_and_no_other() {
    let named = PAGE.lines().filter_map(|line| line.strip_prefix("<!-- ladder: ")?.strip_suffix(" -->"));
    assert_eq!(named.collect::<Vec<_>>(), NAMES);
    let blocks = PAGE.lines().filter(|line| line.contains(['▶', '◀'])).count();
    assert!(blocks > NAMES.len(), "the ladders have no segments");
}

#[test]
fn comparison_finds_another_word_another_arrow_and_a_time_that_became_known() {
    const LADDER: &str =
        "client/1 a → b client  setup 50.2 ms\n      0.0 ms   SYN ──▶\n    ~50.2 ms   ◀── SYN+ACK\n";
    let (words, times) = normal(LADDER);
    assert_eq!(times, [50_200, 0, 50_200].map(Duration::from_micros));
    assert_eq!(normal(&LADDER.replace("50.2", "9.9")).0, words);
    for (from, to) in [("SYN+ACK", "RST"), ("──▶", "─▶"), ("~50.2", "50.2"), ("~50.2 ms", "?")] {
        assert_ne!(normal(&LADDER.replace(from, to)).0, words, "{from} → {to}");
    }
}
