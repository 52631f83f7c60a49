//! The daemon runs as in the systemd unit: as a user with these capabilities and no others. Once everything
//! is attached, it keeps only those that it still needs.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::program::{Daemon, child_guard::ChildGuard, command, copy_program};

const UNIT: &str = include_str!("../../../packaging/systemd/handshake.service");

/// Numbers in `linux/capability.h`.
const CAPABILITIES: [(&str, u64); 7] = [
    ("CAP_DAC_READ_SEARCH", 1 << 2),
    ("CAP_NET_ADMIN", 1 << 12),
    ("CAP_SYS_PTRACE", 1 << 19),
    ("CAP_SYS_ADMIN", 1 << 21),
    ("CAP_PERFMON", 1 << 38),
    ("CAP_BPF", 1 << 39),
    ("CAP_CHECKPOINT_RESTORE", 1 << 40),
];

/// Starts the daemon as a user with the capabilities of the unit. The folder has a copy of the program,
/// because the binary may be where only root has access.
fn as_in_the_unit(arguments: &[&str]) -> (Daemon, TempDir) {
    let granted = UNIT.lines().find_map(|line| line.strip_prefix("AmbientCapabilities=")).unwrap();
    let bounding = UNIT.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).unwrap();
    assert_eq!(granted, bounding);
    let granted =
        granted.split(' ').map(|name| format!(",+{}", name.trim_start_matches("CAP_").to_lowercase()));
    let granted = format!("-all{}", granted.collect::<String>());

    let folder = tempfile::Builder::new().prefix("handshake-unit").tempdir().unwrap();
    let everybody = || fs::Permissions::from_mode(0o755);
    fs::set_permissions(folder.path(), everybody()).unwrap();
    let program = folder.path().join("handshake");
    let root = command(&[&["--listen", "127.0.0.1:0"], arguments].concat());
    copy_program(Path::new(root.get_program()), &program);
    fs::set_permissions(&program, everybody()).unwrap();

    let mut setpriv = Command::new("setpriv");
    setpriv.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs", "--pdeathsig=KILL"]);
    for set in ["inh-caps", "ambient-caps", "bounding-set"] {
        setpriv.arg(format!("--{set}={granted}"));
    }
    setpriv.arg(&program).args(root.get_args()).current_dir("/");
    setpriv.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    (Daemon::spawn(&mut setpriv), folder)
}

/// The capabilities that any thread of the process has, in any set but the bounding one.
fn held(pid: u32) -> Vec<&'static str> {
    let mut held = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        // It may have ended.
        let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap_or_default();
        for line in status.lines() {
            let sets = ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"];
            if let Some(set) = sets.iter().find_map(|set| line.strip_prefix(set)) {
                held |= u64::from_str_radix(set.trim(), 16).unwrap();
            }
        }
    }
    let names = CAPABILITIES.iter().filter(|(_, bit)| held & bit != 0).map(|(name, _)| *name).collect();
    let known = CAPABILITIES.iter().map(|(_, bit)| bit).sum::<u64>();
    assert_eq!(held & !known, 0, "capabilities that the unit does not name: {held:x}");
    names
}

fn covered(daemon: &Daemon) -> f64 {
    daemon.scrape().sum("handshake_tls_libraries", &["library=\"openssl\"", "covered=\"true\""])
}

/// A server with its own copy of libssl.
fn server(folder: &TempDir) -> ChildGuard {
    let openssl = fs::read_dir("/usr/lib").unwrap().flatten().map(|entry| entry.path().join("libssl.so.3"));
    let libssl = openssl.into_iter().find(|path| path.is_file()).expect("no libssl.so.3 below /usr/lib");
    fs::copy(libssl, folder.path().join("libssl.so.3")).unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut server = Command::new("openssl");
    server.args(["s_server", "-nocert", "-quiet", "-accept", &format!("127.0.0.1:{port}")]);
    server.env("LD_LIBRARY_PATH", folder.path()).stdin(Stdio::piped());
    ChildGuard::start(server.stdout(Stdio::null()).stderr(Stdio::null()))
}

#[test]
fn capabilities_of_the_unit_suffice_and_those_of_the_start_are_given_up() {
    let (daemon, folder) = as_in_the_unit(&[]);
    let scrape = daemon.scrape();
    assert_eq!(scrape.sum("handshake_probe_attached", &[]), 9.0);
    let before = covered(&daemon);
    assert!(before >= 1.0);
    let all_but_packets: Vec<_> =
        CAPABILITIES.iter().map(|(name, _)| *name).filter(|name| *name != "CAP_NET_ADMIN").collect();
    assert_eq!(held(daemon.pid()), all_but_packets);

    // What is left suffices for libraries of other users that come into use later.
    let server = server(&folder);
    let begin = Instant::now();
    while covered(&daemon) < before + 1.0 {
        assert!(begin.elapsed() < Duration::from_mins(1), "a library that came later is not probed");
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(held(daemon.pid()), all_but_packets);
    drop(server);
}

#[test]
fn without_tls_libraries_three_capabilities_are_left() {
    let (daemon, _folder) = as_in_the_unit(&["--tls-libraries", "off"]);
    assert_eq!(daemon.scrape().sum("handshake_probe_attached", &[]), 9.0);
    assert_eq!(held(daemon.pid()), ["CAP_SYS_PTRACE", "CAP_SYS_ADMIN", "CAP_BPF"]);
    drop(daemon);

    // The threads that export and write begin before the others give theirs up.
    let records = tempfile::tempdir().unwrap();
    fs::set_permissions(records.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let records = ["--records", records.path().to_str().unwrap()];
    let both = ["--otlp-endpoint", "http://127.0.0.1:1", "--otlp-signal", "traces,metrics"];
    for names in [&["--label", "cgroup"][..], &both, &records] {
        let (daemon, _folder) = as_in_the_unit(&[&["--tls-libraries", "off"], names].concat());
        daemon.scrape();
        let left = ["CAP_DAC_READ_SEARCH", "CAP_SYS_PTRACE", "CAP_SYS_ADMIN", "CAP_BPF"];
        assert_eq!(held(daemon.pid()), left, "{names:?}");
    }
}

#[test]
fn root_gives_up_all_others_as_well() {
    let daemon = Daemon::start(&["--tls-libraries", "off"]);
    assert_eq!(held(daemon.pid()), ["CAP_SYS_PTRACE", "CAP_SYS_ADMIN", "CAP_BPF"]);
}
