//! Containers as a kubelet's runtime makes them: an OCI bundle, run by runc, in the cgroup of a pod.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::sys::{
    prctl,
    signal::{self, Signal},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::program::copy_program;

/// How long a container may take to start, to answer and to end.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);
/// What runtimes hide of /proc and /sys, and what nobody may write there.
const MASKED: [&str; 6] =
    ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi", "/sys/firmware"];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// A root file system, and what the runtime is to make of it.
pub(crate) struct Bundle {
    home: TempDir,
    /// In the form of the OCI's runtime specification.
    pub(crate) spec: Value,
    /// The cgroup, below the root of the hierarchies.
    cgroup: PathBuf,
}

impl Bundle {
    /// One for the container `id` of this pod, in these namespaces.
    pub(crate) fn new(pod: &str, id: &str, namespaces: &[&str]) -> Self {
        // Tests that run at once have pods of the same name, and the runtime kills all of a cgroup.
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let cgroup = format!(
            "handshake_kubelet_{}_{}.slice/kubepods.slice/kubepods-pod{}.slice/cri-containerd-{id}.scope",
            std::process::id(),
            NUMBER.fetch_add(1, Ordering::Relaxed),
            pod.replace('-', "_")
        );
        let mount = |destination: &str, kind: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": kind, "options": options});
        let namespaces: Vec<_> = namespaces.iter().map(|name| json!({"type": name})).collect();
        let spec = json!({
            "ociVersion": "1.0.2",
            "process": {"cwd": "/", "user": {"uid": 0, "gid": 0}},
            "root": {"path": "rootfs"},
            "hostname": "pod",
            "mounts": [
                mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
                mount("/dev", "tmpfs", &["nosuid", "mode=755"]),
                mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            ],
            "linux": {
                "cgroupsPath": format!("/{cgroup}"),
                "namespaces": namespaces,
                "maskedPaths": MASKED,
                "readonlyPaths": READ_ONLY,
            },
        });
        let bundle = Self { home: tempfile::tempdir().unwrap(), spec, cgroup: cgroup.into() };
        bundle.folder("rootfs");
        bundle
    }

    /// A new folder beside the root file system, or in it.
    pub(crate) fn folder(&self, path: &str) -> PathBuf {
        let folder = self.home.path().join(path);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.home.path().join("rootfs")
    }

    /// Copies a program, and the libraries that it is linked to.
    pub(crate) fn add_program(&self, program: &Path, to: &str) {
        self.add(program, to);
        let output = Command::new("ldd").arg(program).output().unwrap();
        for library in String::from_utf8(output.stdout).unwrap().split_whitespace() {
            if let Some(path) = library.strip_prefix('/') {
                self.add(Path::new(library), path);
            }
        }
    }

    fn add(&self, file: &Path, to: &str) {
        let to = self.root().join(to);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        copy_program(file, &to);
    }

    /// Mounts a folder of the host, `ro` or `rw`.
    pub(crate) fn bind(&mut self, from: &Path, to: &str, access: &str) {
        let mount = json!({
            "destination": to, "type": "bind", "source": from, "options": ["rbind", "rprivate", access],
        });
        self.spec["mounts"].as_array_mut().unwrap().push(mount);
    }

    /// Runs it. Returns when it is ready; its output is in its log.
    pub(crate) fn run(self, is_ready: impl Fn(&Container) -> bool) -> Container {
        fs::write(self.home.path().join("config.json"), self.spec.to_string()).unwrap();
        let log = File::create(self.home.path().join("log")).unwrap();
        let mut command = self.runc();
        command.arg("run").arg("--bundle").arg(self.home.path()).arg("--pid-file").arg(self.pid_file());
        command.arg(self.id()).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        // SAFETY: between fork and exec only one system call is made. runc passes the signal on.
        unsafe { command.pre_exec(|| Ok(prctl::set_pdeathsig(Signal::SIGTERM)?)) };
        let child = command.spawn().expect("runc, which this test needs");
        let mut container = Container { child, bundle: self, pid: 0 };
        let begin = Instant::now();
        loop {
            let pid = fs::read_to_string(container.bundle.pid_file()).unwrap_or_default();
            container.pid = pid.parse().unwrap_or_default();
            if container.pid != 0 && is_ready(&container) {
                return container;
            }
            let ended = container.child.try_wait().unwrap();
            assert!(ended.is_none() && begin.elapsed() < TIMEOUT, "{ended:?}: {}", container.log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn runc(&self) -> Command {
        let mut command = Command::new("runc");
        command.arg("--root").arg(self.home.path().join("state"));
        command
    }

    fn pid_file(&self) -> PathBuf {
        self.home.path().join("pid")
    }

    /// The runtime's name for it.
    fn id(&self) -> String {
        self.home.path().file_name().unwrap().to_string_lossy().replace('.', "")
    }
}

/// A container that runs. Dropping it kills it.
pub(crate) struct Container {
    child: Child,
    bundle: Bundle,
    /// Its first process, as the host numbers it.
    pub(crate) pid: i32,
}

impl Container {
    /// What its processes, or the runtime, have said so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.bundle.home.path().join("log")).unwrap()
    }

    /// A program of the host in the container's network namespace.
    pub(crate) fn in_its_network(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.pid)).arg(program);
        command
    }

    /// Ends it as a kubelet does, and expects that it ends well.
    pub(crate) fn stop(mut self) {
        let runtime = i32::try_from(self.child.id()).unwrap();
        signal::kill(nix::unistd::Pid::from_raw(runtime), Signal::SIGTERM).unwrap();
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(begin.elapsed() < TIMEOUT, "it does not end");
            thread::sleep(Duration::from_millis(20));
        };
        assert!(status.success(), "{status}: {}", self.log());
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // Where it has ended, the runtime has removed it.
        let mut delete = self.bundle.runc();
        delete.args(["delete", "--force"]).arg(self.bundle.id()).stderr(Stdio::null());
        let _ = delete.status();
        let _ = self.child.wait();
        // The runtime removes only the container's own cgroup, in each hierarchy.
        let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        let roots = hierarchies.map(|hierarchy| hierarchy.path()).chain([PathBuf::from("/sys/fs/cgroup")]);
        for root in roots {
            for folder in self.bundle.cgroup.ancestors().filter(|folder| *folder != Path::new("")) {
                let _ = fs::remove_dir(root.join(folder));
            }
        }
    }
}
