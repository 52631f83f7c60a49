//! Files of strangers: none of them ends the program or keeps it from serving.
//!
//! Needs root: run through `cargo xtask test`.

#[path = "daemon/program.rs"]
#[expect(dead_code, reason = "shared with the tests of the exporter")]
mod program;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use program::Daemon;

/// As nobody: writes copies of a large program with OpenSSL inside, maps each as code, and cuts it short at some moment.
const ATTACK: &str = r#"
import mmap, os, random, shutil, sys, time
os.setgroups([]); os.setgid(65534); os.setuid(65534)
source, folder, end = sys.argv[1], sys.argv[2], time.monotonic() + float(sys.argv[3])
turn = 0
while time.monotonic() < end:
    path = f"{folder}/libssl-{turn}.so.3"
    shutil.copyfile(source, path)
    with open(path, "r+b") as file:
        code = mmap.mmap(file.fileno(), 4096, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_EXEC)
        time.sleep(random.uniform(0, 0.35))
        os.ftruncate(file.fileno(), 4096)
        code.close()
    os.unlink(path)
    turn += 1
"#;

#[test]
fn a_file_that_is_cut_short_while_it_is_read_ends_nothing() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let daemon = Daemon::start(&[]);
    let trace = program::command(&[]);
    let mut trace = Command::new(trace.get_program())
        .args(["trace", "--output", "json", "--duration", "300s"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut attack = Command::new("/usr/bin/python3")
        .args(["-c", ATTACK, "/usr/bin/node"])
        .arg(folder.path())
        .arg("25")
        .spawn()
        .unwrap();
    let mut slowest = Duration::ZERO;
    let status = loop {
        let begin = Instant::now();
        assert_eq!(daemon.request("GET", "/healthz").0, 200);
        slowest = slowest.max(begin.elapsed());
        if let Some(status) = attack.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    assert!(status.success(), "{status}");
    let scrape = daemon.scrape();
    let seen = scrape.sum("handshake_tls_files_skipped_total", &["reason=\"changed\""]);
    assert!(seen >= 1.0, "no file was cut short while it was read");
    assert!(slowest < Duration::from_millis(500), "{slowest:?}");
    assert_eq!(trace.try_wait().unwrap(), None, "the trace goes on");
    // The kernel lets go of each probe in a tenth of a second; the end is not waited for.
    trace.kill().unwrap();
}
