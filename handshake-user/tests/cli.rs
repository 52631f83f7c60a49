//! The command line from outside: exit statuses, and one sentence for what is wrong. Needs no root; what is
//! asked of an ordinary user is asked as one, also when root runs the tests.

use std::{
    io::{Read as _, Write as _},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, Output, Stdio},
};

/// `nobody`.
const NOBODY: u32 = 65_534;

fn handshake(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_handshake"));
    command.args(arguments).stdin(Stdio::null()).env_remove("RUST_LOG");
    command
}

/// As somebody who may not load programs into the kernel. The binary may lie where only root can look: a copy
/// does not.
fn unprivileged(arguments: &[&str]) -> Output {
    if !nix::unistd::geteuid().is_root() {
        return handshake(arguments).output().unwrap();
    }
    let copy = tempfile::Builder::new().prefix("handshake-cli").tempdir().unwrap();
    let binary = copy.path().join("handshake");
    // By a process of its own: the kernel runs no file that is open for writing (ETXTBSY), and what this
    // process has open is for a moment also in a child of another test.
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_handshake")).arg(&binary).status().unwrap();
    assert!(copied.success());
    for path in [copy.path(), &binary] {
        let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(path, everybody).unwrap();
    }
    let mut command = Command::new(binary);
    command.args(arguments).stdin(Stdio::null()).env_remove("RUST_LOG").current_dir("/");
    command.uid(NOBODY).gid(NOBODY);
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn help_names_the_commands_and_gives_examples() {
    let help = handshake(&["--help"]).output().unwrap();
    assert_eq!(help.status.code(), Some(0));
    for word in ["trace", "top", "check", "explain", "record", "report", "Examples:", "--verbose"] {
        assert!(text(&help.stdout).contains(word), "{word}");
    }
    for command in ["trace", "top", "check", "explain", "record", "report"] {
        let help = handshake(&[command, "--help"]).output().unwrap();
        assert_eq!(help.status.code(), Some(0), "{command}");
        assert!(text(&help.stdout).contains("Examples:"), "{command}");
        assert!(help.stderr.is_empty(), "{command}");
    }
}

#[test]
fn top_without_a_terminal_names_trace() {
    let output = handshake(&["top"]).stdout(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let said = text(&output.stderr);
    assert!(said.contains("terminal") && said.contains("`handshake trace`"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn version_is_printed() {
    let version = handshake(&["--version"]).output().unwrap();
    assert_eq!(version.status.code(), Some(0));
    assert!(text(&version.stdout).contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn usage_errors_exit_with_2_and_name_the_cause() {
    for (arguments, named) in [
        (&[][..], "Usage"),
        (&["unknown"], "unknown"),
        (&["top", "--window", "1s"], "24h"),
        (&["trace", "--port", "0"], "--port"),
        (&["trace", "--port", "99999"], "99999"),
        (&["trace", "--remote", "10.0.0.0/33"], "10.0.0.0/8"),
        (&["trace", "--slower-than", "fast"], "--slower-than"),
        (&["trace", "--role", "peer"], "server"),
        (&["trace", "--stage", "middle"], "close"),
        (&["trace", "--netns", "no-such-namespace"], "no-such-namespace"),
        (&["trace", "--duration", "-1s"], "-1"),
        (&["trace", "--count", "0"], "--count"),
        (&["trace", "--output", "xml"], "json"),
        (&["trace", "--attach", "magic"], "tp-btf"),
        (&["trace", "--ring-kib", "1"], "--ring-kib"),
        (&["trace", "--output", "stairs"], "ladder"),
        (&["check", "--yaml"], "--yaml"),
        (&["explain", "--depth", "3"], "--depth"),
        (&["explain", "--redact", "comm=prefix"], "only addresses"),
        (&["trace", "-r"], "--read"),
        (&["trace", "-r", "a", "--duration", "1s"], "--duration"),
        (&["trace", "--pid", "0"], "--pid"),
        (&["trace", "--netns", "/proc/self/ns/mnt"], "no network namespace"),
        (&["trace", "--stage", "tls", "--tls-wire", "off", "--tls-libraries", "off"], "--tls-wire on"),
    ] {
        let output = handshake(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        assert!(text(&output.stderr).contains(named), "{arguments:?}: {}", text(&output.stderr));
    }
}

#[test]
fn trace_without_root_fails_with_one_sentence() {
    let output = unprivileged(&["trace", "--duration", "1s"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let said = text(&output.stderr);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.starts_with("handshake: ") && said.contains("root"), "{said}");
}

#[test]
fn check_without_root_still_reports() {
    let output = unprivileged(&["check"]);
    assert_eq!(output.status.code(), Some(1));
    let report = text(&output.stdout);
    for word in ["tracing does not work", "root", "Kernel", "Privileges", "Probes", "net.ipv4.tcp_fastopen"] {
        assert!(report.contains(word), "{word}: {report}");
    }
    assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
}

#[test]
fn check_without_root_reports_nothing_as_available() {
    let output = unprivileged(&["check", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["schema"], 1);
    assert_eq!(report["works"], false);
    assert!(report["reason"].as_str().unwrap().contains("root"));
    assert!(report["probes"].get("way").is_none());
    let hooks = report["probes"]["hooks"].as_array().unwrap();
    let tiers = report["tiers"].as_array().unwrap();
    let functions = report["functions"].as_array().unwrap();
    assert_eq!(functions.len(), 5);
    let states = hooks.iter().flat_map(|hook| hook["ways"].as_array().unwrap()).chain(tiers).chain(functions);
    for finding in states {
        assert_ne!(finding["state"], "available", "{finding}");
    }
    assert!(report["sysctls"].as_array().unwrap().iter().any(|it| it["name"] == "net.core.somaxconn"));
}

#[test]
fn closed_output_is_not_an_error() {
    let mut check = handshake(&["check"]);
    // Programs that other tests of this suite delete change while their libraries are looked for.
    check.env("RUST_LOG", "error");
    let mut child = check.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    // 0 or 1, depending on whether tracing would work here.
    assert!(child.wait().unwrap().code().is_some_and(|code| code < 2), "{said}");
    assert_eq!(said, "");
}

/// The close of a client connection, as written by `trace --output json`.
const CLOSED: &str = r#"{"schema":1,"event":"close","time":"2026-01-31T12:00:01.050020Z","id":"1007","role":"client","family":"ipv4","local":{"addr":"10.0.0.1","port":51000},"remote":{"addr":"10.0.0.2","port":443},"netns":4026531840,"process":{"pid":1234,"comm":"curl"},"open":{"outcome":"established","duration_us":50646,"rtt_us":50646,"syn_retransmits":0,"final_ack":"bare","fast_open":"none"},"close":{"initiator":"local","style":"four_segments","ack_wait_us":49995,"unseen":"peer_fin"},"lifetime_us":1050020}"#;

/// Runs `explain` with these lines on standard input.
fn explained(lines: &[u8]) -> Output {
    let mut child = handshake(&["explain"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(lines).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn records_are_explained() {
    let from_stdin = explained(CLOSED.as_bytes());
    assert_eq!(from_stdin.status.code(), Some(0), "{}", text(&from_stdin.stderr));
    let drawn = text(&from_stdin.stdout);
    for word in
        ["curl/1234 10.0.0.1:51000 → 10.0.0.2:443", "SYN+ACK", "▶", "◀", "saves 1 round trip (50.6 ms)"]
    {
        assert!(drawn.contains(word), "{word}: {drawn}");
    }
    assert!(drawn.contains("TIME LOST") && from_stdin.stderr.is_empty(), "{drawn}");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), CLOSED).unwrap();
    let from_file = handshake(&["explain", file.path().to_str().unwrap()]).output().unwrap();
    assert_eq!((from_file.status.code(), text(&from_file.stdout)), (Some(0), drawn));
}

#[test]
fn lines_that_are_not_records_are_reported_by_number_and_the_rest_is_drawn() {
    let mut lines = b"GET / HTTP/1.1\n\n{\"schema\":1}\n\xff\xfe\n".to_vec();
    lines.extend(CLOSED.replace("\"schema\":1", "\"schema\":9").into_bytes());
    lines.push(b'\n');
    lines.resize(lines.len() + (2 << 20), b'x');
    lines.push(b'\n');
    lines.extend(CLOSED.replace("\"four_segments\"", "\"\\u001b[31m\"").into_bytes());
    lines.push(b'\n');
    lines.extend(CLOSED.as_bytes());
    let output = explained(&lines);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("10.0.0.1:51000"));
    let said = text(&output.stderr);
    let numbers: Vec<_> = said.lines().map(|line| line.split([',', ':']).nth(2).unwrap().trim()).collect();
    assert_eq!(numbers, ["line 1", "line 3", "line 4", "line 5", "line 6", "line 7"], "{said}");
    assert!(said.contains("schema 9") && !said.contains('\x1b'), "{said}");
}

#[test]
fn records_of_several_files_are_reported_in_each_form() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (one, two, page) = (path("one.jsonl"), path("two.jsonl"), path("page.html"));
    std::fs::write(&one, CLOSED).unwrap();
    let stranger = "<script>alert(1)</script>";
    std::fs::write(
        &two,
        format!("{}\nno record\n", CLOSED.replace("1007", "1008").replace("curl", stranger)),
    )
    .unwrap();

    let as_text = handshake(&["report", &one]).output().unwrap();
    assert_eq!(as_text.status.code(), Some(0), "{}", text(&as_text.stderr));
    for word in ["1 connection, 1 record", "four_segments by local", "curl/1234", "SYN+ACK"] {
        assert!(text(&as_text.stdout).contains(word), "{word}: {}", text(&as_text.stdout));
    }
    let as_json = handshake(&["report", "--json", &one, &two]).output().unwrap();
    assert_eq!(as_json.status.code(), Some(1), "a line was no record");
    assert!(text(&as_json.stderr).contains("two.jsonl, line 2: "), "{}", text(&as_json.stderr));
    let report: serde_json::Value = serde_json::from_slice(&as_json.stdout).unwrap();
    assert_eq!((&report["connections"], &report["bad_lines"]), (&2.into(), &1.into()));
    assert_eq!(report["slowest"].as_array().unwrap().len(), 2);

    let as_page = handshake(&["report", "--html", &page, &one, &two]).output().unwrap();
    assert!(as_page.stdout.is_empty());
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("&lt;script&gt;alert(1)") && page.contains("<svg "), "{page}");
    assert!(!page.contains("<script") && page.contains("default-src 'none'"), "{page}");

    let filtered = handshake(&["report", "--port", "80", &one]).output().unwrap();
    assert_eq!(text(&filtered.stdout), "0 connections, 0 records\n");
    for usage in
        [&["report"][..], &["report", &one, "--duration", "1s"], &["report", "--json", "--html", "x", &one]]
    {
        assert_eq!(handshake(usage).output().unwrap().status.code(), Some(2), "{usage:?}");
    }
    let missing = handshake(&["report", &path("missing")]).output().unwrap();
    assert_eq!(missing.status.code(), Some(1));
}

#[test]
fn compressed_records_are_read_as_far_as_they_go() {
    let records = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/records");
    let plain = std::fs::read(records.join("plain.jsonl")).unwrap();
    let drawn = explained(&plain).stdout;
    let folder = tempfile::tempdir().unwrap();
    for name in ["two-members.gz", "two-frames.zst"] {
        let compressed = std::fs::read(records.join(name)).unwrap();
        let output = explained(&compressed);
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), text(&drawn)), "{name}");

        // In the second of the two: what the first has is there.
        let cut = folder.path().join(name);
        std::fs::write(&cut, &compressed[..compressed.len() * 4 / 5]).unwrap();
        let output = handshake(&["report", "--json", cut.to_str().unwrap()]).output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(name) && said.contains("line 3: the compressed data ends too early"), "{said}");
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let counts =
            ["records", "connections", "bad_lines", "cut_off"].map(|name| report[name].as_u64().unwrap());
        assert_eq!(counts, [2, 2, 0, 1], "{name}");
    }
}

#[test]
fn compressed_bomb_is_an_error() {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(CLOSED.as_bytes()).unwrap();
    for _ in 0..64 {
        gzip.write_all(&vec![b'\n'; 1 << 20]).unwrap();
    }
    let output = explained(&gzip.finish().unwrap());
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.starts_with("handshake: standard input, line ")
            && said.contains(": a bomb: ")
            && said.lines().count() == 1,
        "{said}"
    );
}

/// A folder of records of two hosts that have a connection of the same id and with the same ends.
fn of_two_hosts() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (host, boot) in [("web-1", "b1"), ("web-2", "b2")] {
        std::fs::create_dir(folder.path().join(host)).unwrap();
        let names = format!("\"schema\":1,\"host\":\"{host}\",\"boot_id\":\"{boot}\"");
        let closed = CLOSED.replace("\"schema\":1", &names);
        let mut opened: serde_json::Value = serde_json::from_str(&closed).unwrap();
        opened["event"] = "open".into();
        opened.as_object_mut().unwrap().retain(|key, _| key != "close" && key != "lifetime_us");
        if host == "web-2" {
            opened["open"]["duration_us"] = 1_050_000.into();
        }
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        write!(gzip, "{opened}\n{closed}\n").unwrap();
        std::fs::write(folder.path().join(host).join("a.jsonl.gz"), gzip.finish().unwrap()).unwrap();
    }
    std::fs::write(folder.path().join("web-2/notes.txt"), "no record\n").unwrap();
    folder
}

/// Exit status, standard output and standard error.
fn said(arguments: &[&str]) -> (i32, String, String) {
    let output = handshake(arguments).output().unwrap();
    (output.status.code().unwrap(), text(&output.stdout).to_owned(), text(&output.stderr).to_owned())
}

#[test]
fn records_of_several_hosts_are_told_apart_and_the_hosts_named() {
    let folder = of_two_hosts();
    let path = folder.path().to_str().unwrap();
    let (status, drawn, err) = said(&["explain", path]);
    assert_eq!((status, &*err), (0, ""));
    for once in ["\nhost web-1\ncurl/1234 ", "\nhost web-2\ncurl/1234 "] {
        assert_eq!(drawn.matches(once).count(), 1, "{drawn}");
    }
    let (status, report, _) = said(&["report", path]);
    assert!(status == 0 && report.contains("2 connections, 4 records"), "{report}");
    assert!(report.contains("\nhost web-1\ncurl/1234") && report.contains("HOST "), "{report}");
    let (_, report, _) = said(&["report", "--json", path]);
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    let host = |name: &str| serde_json::json!({"host": name, "records": 2, "connections": 1});
    assert_eq!(report["hosts"], serde_json::json!([host("web-1"), host("web-2")]));

    // One host needs no name.
    let one = folder.path().join("web-1").to_str().unwrap().to_owned();
    let (_, drawn, _) = said(&["explain", &one]);
    assert!(drawn.contains("curl/1234") && !drawn.contains("host web-1"), "{drawn}");
    let (status, report, _) = said(&["report", "--host", "web-2", path]);
    assert!(
        status == 0 && report.contains("1 connection, 2 records") && !report.contains("HOST"),
        "{report}"
    );
}

#[test]
fn trace_reads_files_in_every_form_and_with_every_filter() {
    let folder = of_two_hosts();
    let path = folder.path().to_str().unwrap();
    let output = unprivileged(&["trace", "-r", "/dev/null"]);
    assert_eq!(output.status.code(), Some(0), "it needs no root: {}", text(&output.stderr));

    let (status, json, err) = said(&["trace", "-r", path]);
    assert_eq!(status, 0, "{err}");
    let events: Vec<serde_json::Value> =
        json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<_> = events.iter().map(|event| (&event["host"], &event["event"])).collect();
    let expected = [("web-1", "open"), ("web-1", "close"), ("web-2", "open"), ("web-2", "close")];
    assert!(names.iter().zip(expected).all(|(a, b)| *a == (&b.0.into(), &b.1.into())), "{names:?}");
    assert!(err.contains("four_segments by local"), "the summary: {err}");

    let (_, table, err) = said(&["trace", "-r", path, "--output", "table"]);
    let lines: Vec<_> = table.lines().take(5).collect();
    assert!(lines[0].starts_with("TIME         HOST "), "{table}");
    let hosts: Vec<_> = lines[1..].iter().map(|line| line.split_whitespace().nth(1).unwrap()).collect();
    assert_eq!((hosts, &*err), (vec!["web-1", "web-1", "web-2", "web-2"], ""));
    let one = folder.path().join("web-1/a.jsonl.gz").to_str().unwrap().to_owned();
    assert!(said(&["trace", "-r", &one, "--output", "table"]).1.starts_with("TIME         STAGE"));
    // Standard input begins with one host, and has another.
    let mut child = handshake(&["trace", "-r", "-", "--output", "table"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(json.as_bytes()).unwrap();
    let table = child.wait_with_output().unwrap().stdout;
    let headings: Vec<_> = text(&table).lines().filter(|line| line.starts_with("TIME ")).collect();
    assert!(headings.len() == 2 && headings[1].contains("HOST"), "{}", text(&table));

    // A ladder is whole, whichever of its records passes.
    for form in [&["explain", path][..], &["trace", "--output", "ladder", "-r", path]] {
        let (status, drawn, err) = said(&[form, &["--slower-than", "1s", "--stage", "open"]].concat());
        assert_eq!((status, &*err), (0, ""));
        assert_eq!((drawn.matches("host web-2").count(), drawn.matches("web-1").count()), (1, 0), "{drawn}");
        assert!(drawn.contains("FIN+ACK") || drawn.contains("FIN ─"), "with its close: {drawn}");
    }
    for (filter, records) in [
        (&["--id", "1007"][..], 4),
        (&["--id", "1,1007"], 4),
        (&["--id", "1"], 0),
        (&["--id", "1007", "--host", "web-1"], 2),
        (&["--slower-than", "1s"], 1),
        (
            &["--port", "443", "--comm", "curl", "--pid", "1234", "--remote", "10.0.0.2", "--role", "client"],
            4,
        ),
        (&["--comm", "wget"], 0),
        (&["--count", "3"], 3),
    ] {
        let (status, json, err) = said(&[&["trace", "-r", path], filter].concat());
        assert_eq!((status, json.lines().count()), (0, records), "{filter:?}: {err}");
    }
    let (status, _, err) = said(&["trace", "-r", folder.path().join("web-2/notes.txt").to_str().unwrap()]);
    assert!(status == 1 && err.contains("notes.txt, line 1: not a record"), "{err}");
    std::fs::create_dir(folder.path().join("empty")).unwrap();
    let (status, _, err) = said(&["trace", "-r", folder.path().join("empty").to_str().unwrap()]);
    assert!(status == 1 && err.contains("no files of records"), "{err}");
}

#[test]
fn damaged_file_does_not_hide_those_after_it() {
    let folder = of_two_hosts();
    let damaged = folder.path().join("web-1/a.jsonl.gz");
    let mut bytes = std::fs::read(&damaged).unwrap();
    *bytes.iter_mut().nth_back(4).unwrap() ^= 1;
    std::fs::write(&damaged, bytes).unwrap();
    let (status, report, err) = said(&["report", "--json", folder.path().to_str().unwrap()]);
    assert!(status == 1 && err.contains("web-1/a.jsonl.gz, line 3: damaged gzip data"), "{err}");
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!((&report["records"], &report["cut_off"]), (&4.into(), &1.into()), "{report}");
}

#[test]
fn records_are_redacted_as_they_are_read() {
    let folder = of_two_hosts();
    let key = folder.path().join("key");
    std::fs::write(&key, "0123456789abcdef\n").unwrap();
    let (path, key) = (folder.path().to_str().unwrap(), key.to_str().unwrap());
    let redacted = ["--redact", "addr=hash,comm=drop,host=hash", "--redact-key", key];
    // The filter is on the true values.
    let (status, json, err) = said(&[&["trace", "-r", path, "--remote", "10.0.0.2"], &redacted[..]].concat());
    assert_eq!((status, json.lines().count()), (0, 4), "{err}");
    for forbidden in ["10.0.0.", "curl", "web-", "\"b1\""] {
        assert!(!json.contains(forbidden) && !err.contains(forbidden), "{forbidden}: {json}");
    }
    // What comes out can be read again, and still has two hosts.
    let file = folder.path().join("redacted.jsonl");
    std::fs::write(&file, &json).unwrap();
    let (status, drawn, _) = said(&["explain", file.to_str().unwrap()]);
    assert_eq!((status, drawn.matches("\n?/1234 ipv4-").count()), (0, 2), "{drawn}");
    for form in [
        &["explain", path][..],
        &["report", path],
        &["report", "--json", path],
        &["report", "--html", "-", path],
    ] {
        let (status, out, err) = said(&[form, &redacted[..]].concat());
        assert_eq!(status, 0, "{err}");
        for forbidden in ["10.0.0.", "curl", "web-"] {
            assert!(!out.contains(forbidden), "{forbidden}: {out}");
        }
    }
    let (status, out, err) = said(&["explain", path, "--redact", "addr=hash"]);
    assert!(status == 1 && out.is_empty() && err.contains("a hash needs a key"), "{err}");
    let (status, out, err) =
        said(&["daemon", "--check-config", "--redact", "comm=drop", "--label", "process"]);
    assert!(status == 1 && out.is_empty() && err.contains("the label process"), "{err}");
}

#[test]
fn missing_file_is_named() {
    let output = handshake(&["explain", "/nonexistent/records.jsonl"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.starts_with("handshake: ") && said.contains("/nonexistent/records.jsonl"), "{said}");
}

/// Clears the screen, forges a line, reverses the text direction.
const HOSTILE: &str = "a\x1b[2J\u{9b}31m\u{202e}\u{2028}\u{200b}\n  ok  forged\x07";

#[track_caller]
fn assert_harmless(output: &[u8]) {
    let said = text(output);
    let harmful = |c: char| {
        c != '\n' && c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    assert!(!said.chars().any(harmful), "{said:?}");
    assert!(!said.lines().any(|line| line.trim_start().starts_with("ok  forged")), "{said}");
}

#[test]
fn untrusted_records_do_not_control_the_terminal() {
    let mut record: serde_json::Value = serde_json::from_str(CLOSED).unwrap();
    record["event"] = "tls".into();
    let long = HOSTILE.repeat(50);
    record["tls"] = serde_json::json!({"outcome": "failed", "source": "both", "version": "1.3", "cipher": HOSTILE, "sni": long,
        "alpn": HOSTILE, "alert": HOSTILE, "error": HOSTILE});
    record["process"] = serde_json::json!({"pid": 1, "comm": HOSTILE, "cgroup": HOSTILE});
    record["id"] = HOSTILE.into();
    let mut lines = record.to_string();
    // What is no record quotes the line.
    for (key, value) in
        [("event", HOSTILE), ("role", HOSTILE), ("time", HOSTILE), (HOSTILE, "x"), ("family", &long)]
    {
        let mut broken: serde_json::Value = serde_json::from_str(CLOSED).unwrap();
        broken[key] = value.into();
        lines.push('\n');
        lines.push_str(&broken.to_string());
    }
    let output = explained(lines.as_bytes());
    assert_harmless(&output.stdout);
    assert_harmless(&output.stderr);
    assert!(text(&output.stdout).contains("sni a\\x1b[2J"), "{}", text(&output.stdout));
    assert!(
        text(&output.stdout).contains('…')
            && text(&output.stdout).lines().all(|line| line.chars().count() < 200)
    );
    assert_eq!(
        text(&output.stderr).lines().count(),
        4,
        "an unknown key is none of our business: {}",
        text(&output.stderr)
    );
}

#[test]
fn untrusted_arguments_do_not_control_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(HOSTILE);
    let (there, missing) = (file.to_str().unwrap(), "/nonexistent/\x1b[2J\n  ok  forged");
    std::fs::write(&file, "no record\n").unwrap();
    for (arguments, status) in [
        (&["explain", there][..], 1),
        (&["explain", missing], 1),
        (&["explain", there, there], 1),
        (&["trace", "-r", there], 1),
        (&["trace", "-r", missing], 1),
        (&["explain", "--redact", HOSTILE], 2),
        (&["explain", "--redact", "sni=hash", "--redact-key", missing], 1),
        (&[HOSTILE], 2),
        (&["trace", "--netns", missing], 2),
        (&["trace", "--role", HOSTILE], 2),
        (&["daemon", "--config", missing], 1),
        (&["daemon", "--config", there], 1),
    ] {
        let output = handshake(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {}", text(&output.stderr));
        assert_harmless(&output.stdout);
        assert_harmless(&output.stderr);
        assert!(text(&output.stderr).contains("\\x1b[2J"), "{arguments:?}: {}", text(&output.stderr));
    }
}

#[test]
fn checked_configuration_is_ok_or_an_error_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("handshake.toml");
    let check = |content: &str, variable: (&str, &str), more: &[&str]| {
        std::fs::write(&file, content).unwrap();
        let mut command = handshake(&["daemon", "--check-config", "--config", file.to_str().unwrap()]);
        let output = command.args(more).env(variable.0, variable.1).output().unwrap();
        (output.status.code().unwrap(), text(&output.stdout).to_owned(), text(&output.stderr).to_owned())
    };
    let none = ("HANDSHAKE_RING_KIB", "64");
    // An address that cannot be bound: checking does not try.
    let (status, out, err) = check("listen = \"192.0.2.1:9\"\nmax_series = 7\n", none, &[]);
    assert_eq!((status, &out[..], &err[..]), (0, "OK\n", ""));
    let shipped = include_str!("../../config/handshake.toml");
    assert_eq!(check(shipped, none, &["--label", "sni"]).0, 0);

    let (status, out, err) = check("# a\nmax_series = -1\n", none, &[]);
    assert_eq!((status, &out[..]), (1, ""));
    assert!(err.contains("handshake.toml, line 2: max_series: ") && err.lines().count() == 1, "{err}");
    // What a flag overrides must be valid all the same.
    assert_eq!(check("max_series = -1\n", none, &["--max-series", "7"]).0, 1);
    // A wrong environment is a wrong command line.
    let (status, out, err) = check("", ("HANDSHAKE_RING_KIB", "3"), &[]);
    assert_eq!((status, &out[..]), (2, ""));
    assert!(err.contains("not between 4 and"), "{err}");
    std::fs::remove_file(&file).unwrap();
    let missing =
        handshake(&["daemon", "--check-config", "--config", file.to_str().unwrap()]).output().unwrap();
    assert_eq!(missing.status.code(), Some(1));
}

#[test]
fn arguments_that_are_not_utf8_are_usage_errors() {
    use std::os::unix::ffi::OsStrExt as _;
    let output =
        handshake(&["trace", "--comm"]).arg(std::ffi::OsStr::from_bytes(b"\xff\x1b[2J")).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_harmless(&output.stderr);
}

#[test]
fn empty_input_is_not_an_error() {
    let output = explained(b"");
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), ""));
}
