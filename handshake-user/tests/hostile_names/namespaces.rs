//! `check` and `trace` in their own namespaces, as in containers.

use std::{fs, path::PathBuf, process::Command, thread, time::Duration};

use handshake::host;
use serde_json::Value;

use crate::{
    hostile_process::{HostileProcess, Server, client_hello},
    program::{Trace, binary},
};

/// A cgroup in which the program runs, as in a container.
struct Inside(PathBuf);

impl Inside {
    fn new(name: &str) -> Self {
        let mount = host::cgroup2().expect("cgroup v2 is mounted");
        assert!(mount.is_whole, "the tests run on the host");
        let cgroup = mount.mount.join(format!("handshake-{name}-{}", std::process::id()));
        fs::create_dir(&cgroup).unwrap();
        Self(cgroup)
    }

    /// The program in a cgroup namespace with this root, either with its own mount, as in containers, or with
    /// the host's.
    fn command(&self, own_mount: bool, arguments: &[&str]) -> Command {
        let mount = host::cgroup2().unwrap().mount;
        let then = if own_mount {
            format!("umount -l {0} && mount -t cgroup2 none {0} && exec \"$@\"", mount.display())
        } else {
            "exec \"$@\"".to_owned()
        };
        let script = format!(
            "echo $$ > {}/cgroup.procs && exec unshare -C -m --propagation private sh -c '{then}' sh \"$@\"",
            self.0.display()
        );
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh"]).arg(binary()).args(arguments).env_remove("RUST_LOG");
        command
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

fn said(command: &mut Command) -> String {
    let output = command.env_remove("RUST_LOG").output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn json(command: &mut Command) -> Value {
    let text = said(command);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// What the report says about a namespace: whether it is the host's, and what cannot be seen.
fn namespace(report: &Value, name: &str) -> (Option<bool>, Option<String>) {
    let namespaces = report["namespaces"].as_array().unwrap();
    let one = namespaces.iter().find(|it| it["name"] == name).unwrap();
    (one["initial"].as_bool(), one["lost"].as_str().map(str::to_owned))
}

/// `unshare` with these options, running the program in the new namespaces.
fn unshared(options: &[&str], arguments: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    command.args(options).arg(binary()).args(arguments);
    command
}

#[test]
fn check_on_the_host_reports_every_namespace_as_the_hosts() {
    let report = json(Command::new(binary()).args(["check", "--json"]));
    for name in ["cgroup", "pid", "net", "user"] {
        assert_eq!(namespace(&report, name), (Some(true), None), "{name}");
    }
    assert_eq!(report["kernel"]["cgroup2_is_root"], true);
}

#[test]
fn check_reports_a_foreign_namespace_and_its_consequences() {
    for (name, options, remedy) in [
        ("pid", &["-p", "-f", "--mount-proc"][..], "--pid=host"),
        ("pid", &["-p", "-f"], "--pid=host"),
        ("net", &["-n"], "--network=host"),
        ("user", &["-U", "-r"], "--userns=host"),
    ] {
        let report = json(&mut unshared(options, &["check", "--json"]));
        let (initial, lost) = namespace(&report, name);
        assert_eq!(initial, Some(false), "{options:?}");
        assert!(lost.as_ref().is_some_and(|lost| lost.contains(remedy)), "{options:?}: {lost:?}");
        let others: Vec<_> = ["cgroup", "pid", "net", "user"]
            .into_iter()
            .filter(|it| *it != name && namespace(&report, it) != (Some(true), None))
            .collect();
        assert!(others.is_empty(), "{options:?} {others:?}");
        let text = said(&mut unshared(options, &["check"]));
        assert_eq!(text.matches(remedy).count(), 1, "{options:?}: {text}");
    }
}

#[test]
fn partial_cgroup_mount_is_not_mistaken_for_the_root() {
    let inside = Inside::new("check");
    let report = json(&mut inside.command(true, &["check", "--json"]));
    assert_eq!(report["kernel"]["cgroup2_is_root"], false);
    let (initial, lost) = namespace(&report, "cgroup");
    assert!(initial == Some(false) && lost.unwrap().contains("--cgroupns=host"));
    let text = said(&mut inside.command(true, &["check"]));
    assert!(!text.contains("on the root of cgroup v2"), "{text}");
    assert_eq!(text.matches("--cgroupns=host").count(), 1, "{text}");
}

/// The close record of a connection without TLS by a process outside of the program's cgroup.
fn closing_without_tls(trace: &Trace, hostile: &mut HostileProcess, server: &Server) -> Value {
    hostile.connect(server.port(), b"this is no handshake");
    let find = |said: &str| {
        let mut records = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        records.rfind(|record| record["event"] == "close" && record["role"] == "client")
    };
    trace.wait_for("the closing", |said| find(said).is_some());
    find(&trace.said()).unwrap()
}

#[test]
fn partial_cgroup_view_does_not_claim_absence_of_tls() {
    let inside = Inside::new("part");
    let server = Server::start();
    let port = server.port().to_string();
    let arguments = ["trace", "--port", &port, "--output", "json", "--tls-libraries", "off"];
    let mut hostile = HostileProcess::start();

    let below = Trace::spawn(&mut inside.command(true, &arguments));
    let closing = closing_without_tls(&below, &mut hostile, &server);
    assert!(closing.get("setup").is_none(), "{closing}");
    let (_, stderr) = below.stop();
    let notes = String::from_utf8(stderr).unwrap();
    assert!(notes.contains("--cgroupns=host"), "{notes}");

    // With the host's mount it sees the whole host, even from inside the same cgroup namespace.
    let whole = Trace::spawn(&mut inside.command(false, &arguments));
    let closing = closing_without_tls(&whole, &mut hostile, &server);
    assert_eq!(closing["setup"]["round_trips"], 1, "{closing}");
    hostile.connect(server.port(), &client_hello(b"example.org"));
    whole.wait_for("the handshake on the wire", |said| said.contains(r#""sni":"example.org""#));
    let (_, stderr) = whole.stop();
    assert!(!String::from_utf8(stderr).unwrap().contains("--cgroupns"));
    let report = json(&mut inside.command(false, &["check", "--json"]));
    assert_eq!(namespace(&report, "cgroup"), (Some(false), None));
}
