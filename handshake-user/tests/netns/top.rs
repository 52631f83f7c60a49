//! What `handshake top` has on screen of connections over the link.

use std::{process::Command, time::Duration};

use crate::{
    case::Case,
    program::binary,
    terminal::Terminal,
    testbed::{
        Family, faults,
        packet::{Packet, Side},
    },
    truth,
};

/// Quantiles are right to 1 %; the rest is what separates the link's clock from the kernel's.
fn is_near(shown: Duration, truth: Duration) -> bool {
    shown.abs_diff(truth) <= truth / 100 + Duration::from_millis(3)
}

/// A duration as the program writes it.
fn parsed(text: &str) -> Duration {
    let (number, unit) = text.split_once(' ').unwrap_or_else(|| panic!("no duration: {text}"));
    let number: f64 = number.parse().unwrap_or_else(|_| panic!("no duration: {text}"));
    let seconds = match unit {
        "µs" => number / 1e6,
        "ms" => number / 1e3,
        "s" => number,
        _ => panic!("no duration: {text}"),
    };
    Duration::from_secs_f64(seconds)
}

/// What follows this word on screen, up to a comma or the next fact.
fn behind<'a>(text: &'a str, word: &str) -> &'a str {
    let (_, rest) = text.split_once(word).unwrap_or_else(|| panic!("no {word} in\n{text}"));
    let end = rest.find([',', '·', '\n']).unwrap_or(rest.len());
    rest[..end].trim()
}

/// Three openings, one whose SYN was lost, and one that was refused: the numbers of both ends are those of
/// the link.
#[test]
fn numbers_on_screen_are_those_of_the_link() {
    let case = Case::new();
    let ends = [Side::Client, Side::Server].map(|side| case.bed.address(side, Family::V4));
    let mut command = Command::new(binary());
    command.args(["top", "--tls-libraries", "off", "--by", "network", "--window", "5m"]);
    command.args(["--remote", &ends[0].to_string(), "--remote", &ends[1].to_string()]).env_remove("RUST_LOG");
    let mut terminal = Terminal::start(&mut command, 24, 80);
    terminal.until_shows("q quit");

    let mut connections: Vec<_> = (0..3).map(|_| case.establish(Family::V4).finish()).collect();
    case.bed.wait_until_quiet();
    case.bed.fault(faults::drop_first(1, Side::Client, Packet::is_syn));
    connections.push(case.establish(Family::V4).finish());
    let closed = {
        let (listener, address) = case.bed.listen(Family::V4);
        drop(listener);
        address
    };
    case.bed.socket(Side::Client, Family::V4).connect(&closed.into()).unwrap_err();
    case.bed.wait_until_quiet();

    // The client's row has more openings, so it is the first and selected.
    terminal.until("all of the client", |terminal| {
        let text = terminal.text();
        text.contains("openings 5: 4 established, 1 refused") && text.contains("closings 4 · 4 ")
    });
    let client = terminal.text();
    terminal.type_keys(b"\x1b[B");
    terminal.until("all of the server", |terminal| {
        let text = terminal.text();
        text.contains("openings 4: 4 established") && text.contains("closings 4 · 4 ")
    });
    let server = terminal.text();
    terminal.type_keys(b"q");
    assert!(terminal.ends().success());

    let capture = case.bed.capture();
    let syns = capture.count(Side::Client, Packet::is_syn);
    assert_eq!(syns, 6, "five connections, one of them twice");
    assert_eq!(behind(&client, "retransmitted "), "1", "{client}");
    assert!(!server.contains("retransmitted"), "{server}");

    let truths = |open: fn(&_) -> Duration| {
        let mut truths: Vec<Duration> =
            connections.iter().map(|&connection| open(&capture.of(connection))).collect();
        truths.sort();
        truths
    };
    for (text, truths) in [(&client, truths(truth::client_open)), (&server, truths(truth::server_open))] {
        assert!(text.contains("setups 4: "), "{text}");
        assert!(text.contains("round trips 4, possible 0"), "{text}");
        for (word, truth) in [("p50 ", truths[1]), ("p99 ", truths[3])] {
            // The heading has quantiles of both ends.
            let (_, story) = text.split_once("setups 4: ").unwrap();
            let shown = parsed(behind(story, word));
            assert_time!(is_near(shown, truth), "{word}is {shown:?}, the truth is {truth:?}, in\n{text}");
        }
    }
}
