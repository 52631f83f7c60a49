//! Records in files: those that the daemon writes, and those of `handshake record`.
#![expect(clippy::cast_precision_loss, reason = "small numbers")]

use std::{
    fs,
    io::{self, ErrorKind, Read as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use flate2::read::MultiGzDecoder;
use nix::{
    mount::{MsFlags, mount},
    sched::{self, CloneFlags},
    sys::signal::Signal,
};
use serde_json::Value;

use crate::{
    close, connect, listen,
    page::own_address,
    program::{Daemon, Running, Said, Scrape, TRACING, command, program, send},
};

/// How long a record may take to the disk.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// The records in a file that end here, by what `decompress` reads of it.
fn records(file: &Path, at: &str) -> Vec<Value> {
    let mut text = String::new();
    let read = MultiGzDecoder::new(fs::File::open(file).unwrap()).read_to_string(&mut text);
    // The last part may be written just now.
    assert!(read.err().is_none_or(|error| error.kind() == ErrorKind::UnexpectedEof));
    text.truncate(text.rfind('\n').map_or(0, |end| end + 1));
    let records = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    records
        .filter(|record| [&record["local"], &record["remote"]].iter().any(|end| end["addr"] == at))
        .collect()
}

/// How many of the records are of this stage and role.
fn count(records: &[Value], stage: &str, role: &str) -> usize {
    records.iter().filter(|record| record["event"] == stage && record["role"] == role).count()
}

/// How many records of each stage and role there are for whole connections between two ends of this host.
fn whole(records: &[Value]) -> [usize; 4] {
    [("open", "client"), ("open", "server"), ("close", "client"), ("close", "server")]
        .map(|(stage, role)| count(records, stage, role))
}

#[track_caller]
pub(crate) fn wait_for(what: &str, mut enough: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !enough() {
        assert!(begin.elapsed() < PATIENCE, "not in time: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn daemon_writes_every_record_once_and_counts_them() {
    let folder = tempfile::tempdir().unwrap();
    let into = folder.path().join("records");
    let daemon = Daemon::start(&["--records", into.to_str().unwrap()]);
    let (listener, at, _) = listen("127.77.40.1");
    for _ in 0..25 {
        close(connect(&listener, at));
    }
    let all = || files(&into).iter().flat_map(|file| records(file, "127.77.40.1")).collect::<Vec<_>>();
    wait_for("25 connections of two ends", || whole(&all()) == [25; 4]);
    let found = all();
    assert!(found.iter().all(|record| record["host"].is_string() && record["boot_id"].is_string()));

    // They are counted when they are on the disk.
    let written = |scrape: &Scrape| scrape.sum("handshake_records_written_total", &[]);
    let scrape = daemon.scrape_until(|scrape| written(scrape) >= 100.0);
    assert!(written(&scrape) >= 100.0, "{}", written(&scrape));
    let bytes: u64 = files(&into).iter().map(|file| fs::metadata(file).unwrap().len()).sum();
    let counted = scrape.sum("handshake_records_written_bytes_total", &[]);
    // More may have been written since the scrape.
    assert!(counted > 0.0 && counted <= bytes as f64, "{counted} of {bytes}");
    assert_eq!(scrape.sum("handshake_records_dropped_total", &[]), 0.0);
    // Histograms are filled by the same records.
    let closings = found.iter().filter(|record| record["event"] == "close" && record["role"] == "client");
    let timed = scrape.sum("handshake_tcp_close_duration_seconds_count", &["role=\"client\""]);
    assert!(timed >= 25.0, "{timed}: {:#?}", closings.collect::<Vec<_>>());
}

#[test]
fn look_back_is_written_at_sigusr1_and_not_before() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&["--records", folder.path().to_str().unwrap(), "--look-back", "1h"]);
    let (listener, at, _) = listen("127.77.41.1");
    for _ in 0..5 {
        close(connect(&listener, at));
    }
    let written = |scrape: &Scrape| scrape.sum("handshake_records_written_total", &[]);
    daemon.scrape_until(|scrape| written(scrape) >= 20.0);
    assert!(files(folder.path()).is_empty(), "{:?}", files(folder.path()));
    // Records of the last second come along.
    close(connect(&listener, at));
    let before =
        daemon.scrape_until(|scrape| scrape.sum("handshake_events_total", &["stage=\"close\""]) >= 12.0);
    assert!(written(&before) >= 20.0);
    send(daemon.pid(), Signal::SIGUSR1);
    wait_for("the file is named", || daemon.said().contains("wrote "));
    let [file] = &files(folder.path())[..] else { panic!("{:?}", files(folder.path())) };
    assert!(daemon.said().contains(file.to_str().unwrap()), "{}", daemon.said());
    assert_eq!(whole(&records(file, "127.77.41.1")), [6; 4]);
}

/// Asks for a look back, as curl does: status and answer.
fn look_back(address: &str, arguments: &[&str]) -> (u16, String) {
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--noproxy", "*", "--max-time", "20", "-w", "\n%{http_code}", "-X", "POST"]);
    let output = curl.args(arguments).arg(format!("http://{address}/look-back")).output().unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    let (answer, status) = said.trim_end().rsplit_once('\n').unwrap();
    (status.parse().unwrap(), answer.trim_end().to_owned())
}

#[test]
fn look_back_is_written_on_request_of_this_host_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let daemon =
        Daemon::spawn(&mut command(&["--listen", "0.0.0.0:0", "--records", path, "--look-back", "1h"]));
    let port = daemon.address.rsplit_once(':').unwrap().1;
    let (listener, at, _) = listen("127.77.46.1");
    for _ in 0..5 {
        close(connect(&listener, at));
    }
    daemon.scrape_until(|scrape| scrape.sum("handshake_events_total", &["stage=\"close\""]) >= 10.0);
    let (status, said) = look_back(&format!("{}:{port}", own_address()), &[]);
    assert!(status == 403 && said.contains("for programs of this host"), "{said}");
    let local = format!("127.0.0.1:{port}");
    let (status, said) = look_back(&local, &["-H", "Origin: http://example.org"]);
    assert!(status == 403 && files(folder.path()).is_empty(), "{said}");

    // What was read from the ring just now comes along.
    let (status, named) = look_back(&local, &[]);
    assert_eq!(status, 200, "{named}");
    let [file] = &files(folder.path())[..] else { panic!("{:?}", files(folder.path())) };
    assert_eq!(named, file.to_str().unwrap());
    assert_eq!(whole(&records(file, "127.77.46.1")), [5; 4]);
    let (status, said) = look_back(&local, &[]);
    assert!(status == 429 && said.contains("one was written just now"), "{said}");
    assert_eq!(files(folder.path()).len(), 1);
}

#[test]
fn look_back_that_is_not_kept_or_needs_a_password_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let web = folder.path().join("web.yml");
    fs::write(&web, format!("basic_auth_users:\n  a: {}\n", bcrypt::hash("b", 4).unwrap())).unwrap();
    let into = folder.path().join("records");
    let (into, web) = (into.to_str().unwrap(), web.to_str().unwrap());
    let daemon =
        Daemon::spawn(&mut command(&["--listen", "0.0.0.0:0", "--records", into, "--web-config", web]));
    let port = daemon.address.rsplit_once(':').unwrap().1;
    assert_eq!(look_back(&format!("127.0.0.1:{port}"), &[]).0, 401);
    let elsewhere = format!("{}:{port}", own_address());
    assert_eq!(look_back(&elsewhere, &["-u", "a:c"]).0, 401);
    // Whoever has the password may ask from anywhere.
    let (status, said) = look_back(&elsewhere, &["-u", "a:b"]);
    assert!(status == 409 && said.contains("set `records` and `look_back`"), "{said}");
}

#[test]
fn full_disk_costs_records_that_are_counted_and_nothing_else() {
    const NONE: Option<&str> = None;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap().to_owned();
    let mut small = command(&["--listen", "127.0.0.1:0", "--records", &path, "--records-mib", "1"]);
    let on = path.clone();
    let mount_small = move || -> io::Result<()> {
        sched::unshare(CloneFlags::CLONE_NEWNS)?;
        mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
        mount(Some("tmpfs"), &*on, Some("tmpfs"), MsFlags::empty(), Some("size=16k"))?;
        Ok(())
    };
    // SAFETY: between fork and exec only system calls are made, on strings that exist already.
    unsafe { small.pre_exec(mount_small) };
    let daemon = Daemon::spawn(&mut small);
    let (listener, at, _) = listen("127.77.42.1");
    let dropped = |scrape: &Scrape| scrape.sum("handshake_records_dropped_total", &["reason=\"disk\""]);
    let begin = Instant::now();
    while dropped(&daemon.scrape()) == 0.0 {
        for _ in 0..100 {
            close(connect(&listener, at));
        }
        assert!(begin.elapsed() < PATIENCE * 3, "16 KiB hold them all");
    }
    let inside = PathBuf::from(format!("/proc/{}/root{path}", daemon.pid()));
    let kept: usize = files(&inside).iter().map(|file| records(file, "127.77.42.1").len()).sum();
    let scrape = daemon.scrape();
    assert!(kept > 100, "{kept}: whole records in front of what had no room");
    assert!(kept as f64 <= scrape.sum("handshake_records_written_total", &[]));
    assert!(daemon.said().contains("cannot write records"), "{}", daemon.said());
    assert_eq!(daemon.request("GET", "/healthz").0, 200);
}

/// `handshake record`, whose probes are attached.
fn record(arguments: &[&str]) -> (Running, Said) {
    let said = Said::default();
    let running =
        Running::start(&mut program(&[&["record"], arguments].concat()), TRACING, |_| (), said.taker());
    (running.unwrap_or_else(|reason| panic!("{reason}")), said)
}

#[test]
fn recording_ends_with_its_command_and_has_its_exit_status() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.jsonl.gz");
    let (listener, at, _) = listen("127.77.43.1");
    let server = thread::spawn(move || drop(listener.accept().unwrap()));
    let script = format!("exec 3<>/dev/tcp/127.77.43.1/{}; cat <&3; exit 7", at.port());
    let arguments = ["-o", file.to_str().unwrap(), "--tls-libraries", "off", "--", "bash", "-c", &script];
    let (running, said) = record(&arguments);
    let (status, _) = running.wait();
    server.join().unwrap();
    assert_eq!(status.code(), Some(7), "{}", said.text());
    assert!(said.text().contains(" records, "), "{}", said.text());
    let found = records(&file, "127.77.43.1");
    assert_eq!(count(&found, "open", "client"), 1, "{found:?}");
    assert_eq!(count(&found, "close", "server"), 1, "{found:?}");

    // What was recorded is not overwritten.
    let again = program(&[&["record"], &arguments[..]].concat()).output().unwrap();
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("exists and is not overwritten"));
    assert_eq!(records(&file, "127.77.43.1"), found);
}

#[test]
fn recording_that_keeps_the_last_while_writes_at_sigusr1_and_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let (listener, at, _) = listen("127.77.44.1");
    let path = folder.path().to_str().unwrap();
    let (running, said) = record(&["--keep", "1h", "-o", path, "--tls-libraries", "off"]);
    close(connect(&listener, at));
    // Events are read every 50 ms.
    thread::sleep(Duration::from_millis(500));
    assert!(files(folder.path()).is_empty());
    send(running.pid(), Signal::SIGUSR1);
    wait_for("a file", || said.text().contains("wrote "));
    close(connect(&listener, at));
    let (status, _) = running.end(Signal::SIGINT);
    assert!(status.success(), "{}", said.text());
    let [first, second] = &files(folder.path())[..] else { panic!("{:?}", files(folder.path())) };
    assert_eq!(whole(&records(first, "127.77.44.1")), [1; 4]);
    assert_eq!(whole(&records(second, "127.77.44.1")), [2; 4]);
}
