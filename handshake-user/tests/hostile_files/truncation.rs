//! Files that are truncated while they are read.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    process::{Command, Stdio},
    time::Duration,
};

use crate::{
    alone,
    program::{self, Daemon},
    proper::{LABEL, Proper},
    serving::Serving,
};

/// As user `nobody`: writes copies of a large program that contains OpenSSL, maps each as code, and truncates
/// it after a while.
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
const SECONDS: &str = "20";

#[test]
fn file_truncated_during_inspection_does_not_end_the_daemon() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let daemon = Daemon::start(&LABEL);
    let mut trace = program::program(&["trace", "--output", "json", "--duration", "300s"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut attack = Command::new("/usr/bin/python3")
        .args(["-c", ATTACK, "/usr/bin/node"])
        .arg(folder.path())
        .arg(SECONDS)
        .spawn()
        .unwrap();
    let mut serving = Serving::new(&daemon);
    serving.until("the attack ends", Duration::from_mins(1), |_| attack.try_wait().unwrap().is_some());
    assert!(attack.wait().unwrap().success());
    let seen = daemon.scrape().sum("handshake_tls_files_skipped_total", &["reason=\"changed\""]);
    assert!(seen >= 1.0, "no file was cut short while it was read");
    assert!(serving.slowest < Duration::from_millis(250), "{:?}", serving.slowest);
    assert_eq!(trace.try_wait().unwrap(), None, "the trace goes on");

    Proper::start().is_seen(&mut serving, Duration::from_secs(30));
    // The kernel takes a tenth of a second to detach each probe; the test does not wait for that.
    trace.kill().unwrap();
    trace.wait().unwrap();
}
