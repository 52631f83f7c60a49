//! Processes in real cgroups of the shapes that systemd, the kubelet and the container runtimes make.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use handshake::host;
use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::program::{Daemon, Scrape, Trace, child_guard::ChildGuard};

const ID: &str = "3f4e5d6c7b8a99887766554433221100ffeeddccbbaa99887766554433221100";
/// Of the test of labels: the daemon sees the other tests too.
const OTHER: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
const UID: &str = "8d7c6b5a-1234-4abc-9def-0123456789ab";

/// A path of cgroups that this test makes, and removes again.
struct Cgroup {
    folder: PathBuf,
    /// How many of its last folders are the test's.
    made: usize,
}

impl Cgroup {
    fn new(mount: &Path, path: &str) -> Self {
        let folder = mount.join(path);
        fs::create_dir_all(&folder).unwrap();
        Self { made: Path::new(path).components().count(), folder }
    }

    /// A shell that enters it and connects; it is gone at once, or waits for the end of its standard input.
    fn client(&self, port: u16, waits: bool) -> ChildGuard {
        let script = format!(
            "echo $$ >'{}/cgroup.procs' && exec 3<>/dev/tcp/127.0.0.1/{port}{}",
            self.folder.display(),
            if waits { " && read -r" } else { "" }
        );
        let mut command = Command::new("bash");
        command.args(["-c", &script]).stdin(Stdio::piped());
        ChildGuard::start(&mut command)
    }

    fn run(&self, port: u16) -> u32 {
        let mut client = self.client(port, false);
        assert!(client.wait().unwrap().success());
        client.id()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for folder in self.folder.ancestors().take(self.made) {
            // A cgroup only becomes empty a moment after its last process has ended.
            for _ in 0..100 {
                if fs::remove_dir(folder).is_ok() || !folder.exists() {
                    break;
                }
                thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

fn v2() -> PathBuf {
    host::cgroup2().expect("cgroup v2 is mounted").mount
}

/// A folder of this run and test alone, as a slice.
fn own(test: &str) -> String {
    format!("handshake_{test}_{}.slice", std::process::id())
}

fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

fn tracing(port: u16, filters: &[&str]) -> Trace {
    let port = port.to_string();
    Trace::start(&[&["--port", &port, "--role", "client", "--output", "json"], filters].concat(), None)
}

/// Prints its port, takes one connection, closes after its client, and waits for the end of its input.
const SERVER: &str = "
import socket, sys
listener = socket.create_server((\"127.0.0.1\", 0))
print(listener.getsockname()[1], flush=True)
peer, _ = listener.accept()
peer.recv(1)
peer.close()
sys.stdin.read()
";

/// The record of the opening by this process, once it is there.
#[track_caller]
fn open_of(trace: &Trace, pid: u32) -> Value {
    record_of(trace, "open", pid)
}

/// The record of this event by this process, once it is there.
#[track_caller]
fn record_of(trace: &Trace, event: &str, pid: u32) -> Value {
    let records =
        |said: &str| -> Vec<Value> { said.lines().map(|line| serde_json::from_str(line).unwrap()).collect() };
    let is_it = |record: &Value| record["event"] == event && record["process"]["pid"] == pid;
    trace.wait_for("the record", |said| said.ends_with('\n') && records(said).iter().any(is_it));
    records(&trace.said()).into_iter().find(is_it).unwrap()
}

/// The names in a record.
fn names(record: &Value) -> [&Value; 3] {
    ["unit", "container_id", "pod_uid"].map(|name| &record["process"][name])
}

/// The processes are gone before their records are read.
#[test]
fn short_lived_process_has_the_names_of_its_cgroup() {
    let own = own("names");
    let pod = format!(
        "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{}.slice",
        UID.replace('-', "_")
    );
    let none = Value::Null;
    let cases = [
        (format!("{own}/{pod}/cri-containerd-{ID}.scope"), [&none, &json!(ID), &json!(UID)]),
        (format!("{own}/kubepods/besteffort/pod{UID}/crio-{ID}"), [&none, &json!(ID), &json!(UID)]),
        (format!("{own}/docker-{ID}.scope"), [&none, &json!(ID), &none]),
        (format!("{own}/libpod-{ID}.scope/container"), [&none, &json!(ID), &none]),
        (format!("{own}/handshake-test.service/worker"), [&json!("handshake-test.service"), &none, &none]),
    ];
    let (listener, port) = listener();
    let trace = tracing(port, &[]);
    // A second trace shows only one container.
    let container = tracing(port, &["--container", &ID[..12], "--pod", UID]);
    let unit = tracing(port, &["--unit", "handshake-test.service"]);
    // Each trace looks the cgroups up by itself.
    let (mut pids, mut cgroups) = (Vec::new(), Vec::new());
    for (path, expected) in &cases {
        let cgroup = Cgroup::new(&v2(), path);
        let pid = cgroup.run(port);
        drop(listener.accept().unwrap());
        let record = open_of(&trace, pid);
        assert_eq!(names(&record), *expected, "{record}");
        assert_eq!(record["process"]["cgroup"], format!("/{path}"));
        let witness = |path| fs::read_to_string(path).unwrap().trim().to_owned();
        assert_eq!(record["host"], witness("/proc/sys/kernel/hostname"));
        assert_eq!(record["boot_id"], witness("/proc/sys/kernel/random/boot_id"));
        pids.push(pid);
        cgroups.push(cgroup);
    }
    let shown = |trace: Trace| -> Vec<u64> {
        let (stdout, _) = trace.stop();
        let records = String::from_utf8(stdout).unwrap();
        let records = records.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let opens = records.filter(|record| record["event"] == "open");
        opens.map(|record| record["process"]["pid"].as_u64().unwrap()).collect()
    };
    open_of(&container, pids[1]);
    open_of(&unit, pids[4]);
    assert_eq!(shown(container), [pids[0], pids[1]].map(u64::from));
    assert_eq!(shown(unit), [u64::from(pids[4])]);
}

#[test]
fn daemon_labels_the_histograms_with_the_names() {
    let pod = format!("kubepods-pod{}.slice", UID.replace('-', "_"));
    let pod =
        Cgroup::new(&v2(), &format!("{}/kubepods.slice/{pod}/cri-containerd-{OTHER}.scope", own("labels")));
    let unit = Cgroup::new(&v2(), &format!("{}/handshake-label.service", own("labels_unit")));
    let daemon = Daemon::start(&["--label", "unit,container_id,pod_uid"]);
    let (listener, port) = listener();
    for cgroup in [&pod, &pod, &unit] {
        cgroup.run(port);
        drop(listener.accept().unwrap());
    }
    let opened = |scrape: &Scrape, labels: [&str; 3]| {
        let [unit, container, pod] = labels;
        let labels = [
            format!("unit=\"{unit}\""),
            format!("container_id=\"{container}\""),
            format!("pod_uid=\"{pod}\""),
        ];
        let labels: Vec<_> = labels.iter().map(String::as_str).chain(["role=\"client\""]).collect();
        scrape.sum("handshake_tcp_open_duration_seconds_count", &labels).to_string()
    };
    let expected = ["2", "1"].map(str::to_owned);
    let found = |scrape: &Scrape| {
        [opened(scrape, ["", OTHER, UID]), opened(scrape, ["handshake-label.service", "", ""])]
    };
    assert_eq!(found(&daemon.scrape_until(|scrape| found(scrape) == expected)), expected);
}

/// Where the host has them, runtimes make cgroups of version 1, which the kernel side does not see.
#[test]
fn names_in_cgroup_v1_are_those_of_a_process_that_lives() {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let Some(pids) = fields.find(|fields| fields[2] == "cgroup" && fields[3].contains("pids")) else {
        assert!(!Path::new("/sys/fs/cgroup/pids").exists());
        eprintln!("this host has no cgroup v1: nothing to test");
        return;
    };
    let path = format!("{}/kubepods/burstable/pod{UID}/{ID}", own("v1"));
    let cgroup = Cgroup::new(Path::new(pids[1]), &path);
    let (listener, port) = listener();
    let trace = tracing(port, &[]);
    let mut client = cgroup.client(port, true);
    let _server = listener.accept().unwrap();
    let record = open_of(&trace, client.id());
    assert_eq!(names(&record), [&Value::Null, &json!(ID), &json!(UID)], "{record}");
    drop(client.stdin.take());
    client.wait().unwrap();

    // A server's process is known from its close on, and has begun before the connection.
    let mut server = Command::new("bash");
    let script =
        format!("echo $$ >'{}/cgroup.procs' && exec /usr/bin/python3 -c '{SERVER}'", cgroup.folder.display());
    server.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut server = ChildGuard::start(&mut server);
    let mut port = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut port).unwrap();
    let trace = Trace::start(&["--port", port.trim(), "--role", "server", "--output", "json"], None);
    drop(TcpStream::connect(("127.0.0.1", port.trim().parse().unwrap())).unwrap());
    let record = record_of(&trace, "close", server.id());
    assert_eq!(names(&record), [&Value::Null, &json!(ID), &json!(UID)], "{record}");
    drop(server.stdin.take());
    server.wait().unwrap();

    // Of one that is gone, nothing is known: the records are read only after its end.
    let (listener, port) = self::listener();
    let trace = tracing(port, &[]);
    // Its readers wait until the signal has come.
    let tracer = Pid::from_raw(i32::try_from(trace.pid()).unwrap());
    signal::kill(tracer, Signal::SIGSTOP).unwrap();
    let pid = cgroup.run(port);
    signal::kill(tracer, Signal::SIGCONT).unwrap();
    let record = open_of(&trace, pid);
    assert_eq!(names(&record), [&Value::Null; 3], "{record}");
    drop(listener);
}
