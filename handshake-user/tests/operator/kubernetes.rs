//! The Helm chart by Helm's own engine, and its container as a kubelet's runtime would run it: by runc, from
//! the manifest, beside the container of another pod.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    container::{Bundle, Container, TIMEOUT},
    program::{Scrape, binary, tls_server::certificate},
    prometheus::file,
};

/// The names of the other pod and its container.
const POD: &str = "1f0c9b3e-5d6a-4c7b-8e9f-0a1b2c3d4e5f";
const CONTAINER: &str = "5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed";

/// Capabilities and their numbers in `include/uapi/linux/capability.h`: those that the wire view needs.
const WIRE: &[(&str, u32)] = &[("NET_ADMIN", 12), ("PERFMON", 38), ("BPF", 39)];
/// And those to find, read and probe libraries of other users' processes.
const LIBRARIES: &[(&str, u32)] =
    &[("DAC_READ_SEARCH", 2), ("SYS_PTRACE", 19), ("SYS_ADMIN", 21), ("CHECKPOINT_RESTORE", 40)];

#[test]
fn manifests_are_what_the_chart_renders_and_are_valid() {
    let packages = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("tools/python/kubernetes");
    assert!(packages.exists(), "there is no {}: run through `cargo xtask test`", packages.display());
    let mut script = Command::new("/usr/bin/python3");
    script.arg(file("packaging/kubernetes/render.py")).arg("--check");
    let output = script.env("PYTHONPATH", packages).env("PYTHONDONTWRITEBYTECODE", "1").output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
}

/// Of the tests with containers one runs at a time: their workloads have the same names.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn container_of_the_chart_sees_names_and_covers_the_processes_of_another_pod() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let daemon = Pod::read("packaging/kubernetes/handshake.yaml").run(&["container_id", "pod_uid"]);
    assert_eq!(daemon.get("/readyz").0, 200);
    daemon.assert_confined(&[WIRE, LIBRARIES].concat());
    let workload = Workload::start();
    // Its library is found within seconds; from then on every handshake is timed in it.
    let labels = ["role=\"server\"", &format!("container_id=\"{CONTAINER}\""), &format!("pod_uid=\"{POD}\"")];
    let computed = |scrape: &Scrape| scrape.sum("handshake_tls_compute_seconds_count", &labels);
    let (begin, mut made) = (Instant::now(), 0);
    while computed(&daemon.scrape()) < 1.0 {
        assert!(begin.elapsed() < TIMEOUT, "the library is not probed:\n{}", daemon.0.log());
        workload.connect();
        made += 1;
        thread::sleep(Duration::from_millis(300));
    }
    let before = computed(&daemon.scrape());
    (0..5).for_each(|_| workload.connect());
    let scrape = daemon.scrape_until(|scrape| computed(scrape) >= before + 5.0);
    let found = computed(&scrape);
    assert!(found >= before + 5.0 && found <= f64::from(made + 5), "{found} of {made} and 5");
    let by_openssl = [&labels[..], &["library=\"openssl\""]].concat();
    assert!(scrape.sum("handshake_tls_duration_seconds_count", &by_openssl) >= 5.0);
    daemon.0.stop();
}

#[test]
fn container_with_the_wire_alone_needs_three_capabilities() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let daemon = Pod::read("packaging/kubernetes/handshake-wire-only.yaml").run(&[]);
    daemon.assert_confined(WIRE);
    let workload = Workload::start();
    let seen = |scrape: &Scrape| {
        let labels = ["role=\"server\"", "version=\"1.3\"", "outcome=\"completed\""];
        scrape.sum("handshake_tls_handshakes_total", &labels)
    };
    let before = seen(&daemon.scrape());
    (0..5).for_each(|_| workload.connect());
    let scrape = daemon.scrape_until(|scrape| seen(scrape) >= before + 5.0);
    assert!(seen(&scrape) >= before + 5.0, "{} of 5", seen(&scrape) - before);
    assert!(scrape.sum("handshake_tls_compute_seconds_count", &[]) < 1.0);
}

/// The pod of a manifest, and its configuration.
struct Pod {
    spec: Value,
    config: String,
}

impl Pod {
    fn read(manifest: &str) -> Self {
        let text = fs::read_to_string(file(manifest)).unwrap();
        let documents: Vec<Value> =
            text.split("---\n").map(|document| serde_saphyr::from_str(document).unwrap()).collect();
        let of_kind = |kind: &str| documents.iter().find(|document| document["kind"] == kind).unwrap();
        Self {
            spec: of_kind("DaemonSet")["spec"]["template"]["spec"].clone(),
            config: of_kind("ConfigMap")["data"]["handshake.toml"].as_str().unwrap().to_owned(),
        }
    }

    /// Runs its container, with these labels on demand. Returns when it listens.
    fn run(&self, labels: &[&str]) -> Daemon {
        let mut bundle = Bundle::new(
            "0a0a0a0a-0b0b-4c0c-8d0d-0e0e0e0e0e0e",
            &"1dea".repeat(16),
            &["mount", "uts", "ipc", "cgroup"],
        );
        let config = bundle.folder("config");
        let labelled = format!("{}\nlabels = {}\n", self.config.trim_end(), json!(labels));
        fs::write(config.join("handshake.toml"), labelled).unwrap();
        bundle.add_program(&binary(), "usr/bin/handshake");

        for (key, name) in [("hostPID", "pid"), ("hostNetwork", "network")] {
            if self.spec[key] != true {
                bundle.spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": name}));
            }
        }
        let container = &self.spec["containers"][0];
        for mount in container["volumeMounts"].as_array().unwrap() {
            let volumes = self.spec["volumes"].as_array().unwrap();
            let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]).unwrap();
            let source = volume["hostPath"]["path"].as_str().map_or_else(|| config.clone(), PathBuf::from);
            let access = if mount["readOnly"] == true { "ro" } else { "rw" };
            bundle.bind(&source, mount["mountPath"].as_str().unwrap(), access);
        }
        let memory = container["resources"]["limits"]["memory"].as_str().unwrap();
        let memory: u64 = memory.strip_suffix("Mi").unwrap().parse().unwrap();
        bundle.spec["linux"]["resources"] = json!({"memory": {"limit": memory << 20}});

        let security = &container["securityContext"];
        bundle.spec["root"]["readonly"] = security["readOnlyRootFilesystem"].clone();
        let process = &mut bundle.spec["process"];
        process["user"] = json!({"uid": security["runAsUser"], "gid": security["runAsGroup"]});
        process["noNewPrivileges"] = json!(security["allowPrivilegeEscalation"] == false);
        let added = security["capabilities"]["add"].as_array().unwrap().iter();
        let added: Vec<_> = added.map(|name| format!("CAP_{}", name.as_str().unwrap())).collect();
        for set in ["bounding", "effective", "permitted"] {
            process["capabilities"][set] = json!(added);
        }
        process["args"] = json!(["/usr/bin/handshake"]);
        let args = process["args"].as_array_mut().unwrap();
        args.extend(container["args"].as_array().unwrap().iter().cloned());
        Daemon(bundle.run(|container| container.log().contains("listening on http")))
    }
}

/// The chart's container.
struct Daemon(Container);

impl Daemon {
    /// What it answers: the status, and the body.
    fn get(&self, path: &str) -> (u16, String) {
        let mut curl = self.0.in_its_network("curl");
        curl.args(["--silent", "--max-time", "30", "--write-out", "\n%{http_code}"]);
        let output = curl.arg(format!("http://127.0.0.1:9966{path}")).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let (body, status) = text.rsplit_once('\n').unwrap();
        (status.parse().unwrap(), body.to_owned())
    }

    fn scrape(&self) -> Scrape {
        let (status, body) = self.get("/metrics");
        assert_eq!(status, 200, "{}", self.0.log());
        Scrape::parse(&body)
    }

    /// The first scrape for which `enough` holds, or the last before the time is over.
    fn scrape_until(&self, enough: impl Fn(&Scrape) -> bool) -> Scrape {
        let begin = Instant::now();
        loop {
            let scrape = self.scrape();
            if enough(&scrape) || begin.elapsed() > TIMEOUT {
                return scrape;
            }
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// It has these capabilities and can get no others, and writes nowhere.
    fn assert_confined(&self, capabilities: &[(&str, u32)]) {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.pid)).unwrap();
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
        let mask = |set: &str| u64::from_str_radix(field(set), 16).unwrap();
        let expected = capabilities.iter().fold(0, |mask, (_, bit)| mask | 1 << bit);
        assert_eq!(mask("CapBnd:"), expected, "{capabilities:?}");
        assert_eq!(mask("CapEff:") & !expected, 0);
        assert_eq!(field("NoNewPrivs:"), "1");
        for folder in ["", "etc/handshake", "sys/fs/cgroup"] {
            let path = format!("/proc/{}/root/{folder}/new", self.0.pid);
            let refused = fs::write(path, "").unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "/{folder}");
        }
    }
}

/// A TLS server in a container of its own: another release of OpenSSL, with its own C library, in mount, pid
/// and network namespaces that only it has.
struct Workload(Container);

impl Workload {
    /// Returns when it listens.
    fn start() -> Self {
        let namespaces = ["mount", "uts", "ipc", "cgroup", "pid", "network"];
        let mut bundle = Bundle::new(POD, CONTAINER, &namespaces);
        let tools = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("tools");
        let home = tools.join("peers/openssl-1.1.1");
        assert!(home.exists(), "there is no {}: run through `cargo xtask test`", home.display());
        let copied = Command::new("cp").arg("-rL").arg(home).arg(bundle.root().join("opt")).status().unwrap();
        assert!(copied.success());
        certificate(&bundle.folder("rootfs/etc"), 2);
        bundle.spec["process"]["env"] = json!(["OPENSSL_CONF=/dev/null"]);
        bundle.spec["process"]["args"] = json!([
            "/opt/loader",
            "--library-path",
            "/opt/lib",
            "/opt/openssl",
            "s_server",
            "-quiet",
            "-www",
            "-accept",
            "127.0.0.1:4433",
            "-key",
            "/etc/key.pem",
            "-cert",
            "/etc/certificate.pem",
        ]);
        Self(bundle.run(|container| {
            let sockets = fs::read_to_string(format!("/proc/{}/net/tcp", container.pid)).unwrap_or_default();
            sockets.contains("0100007F:1151 00000000:0000 0A")
        }))
    }

    /// One handshake with it, by the system's OpenSSL.
    fn connect(&self) {
        let mut client = self.0.in_its_network("openssl");
        client.args(["s_client", "-connect", "127.0.0.1:4433"]).stdin(Stdio::null());
        let output = client.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
