//! What the host adds to raw records: the wall clock, its own name, and the names of cgroups.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::{ffi::OsStringExt as _, fs::MetadataExt as _},
    },
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use crate::{bounded, cgroup::Names, untrusted::Untrusted};

/// Where cgroup v2 is usually mounted: below a hybrid hierarchy, or alone.
const CGROUP2: [&str; 2] = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
/// The inode of the host's root cgroup: kernfs numbers from its root on, in every version.
const ROOT_INODE: u64 = 1;
/// Hosts have few cgroups; beyond this number the cache is emptied.
const CACHED_CGROUPS: usize = 10_000;

/// What user space adds to a raw record.
pub trait Context {
    /// The wall time of a moment of `CLOCK_MONOTONIC`, nanoseconds.
    fn wall_time(&self, monotonic_ns: u64) -> SystemTime;
    /// The path of a cgroup v2 id.
    fn cgroup(&mut self, id: u64) -> Option<Untrusted>;
    /// Who the process belongs to that had this cgroup v2 path and this id at this moment of
    /// `CLOCK_MONOTONIC`, nanoseconds; 0 is an unknown moment.
    fn names(&mut self, cgroup: Option<&Untrusted>, _pid: u32, _at_ns: u64) -> Names {
        cgroup.map(|cgroup| Names::of(cgroup.raw())).unwrap_or_default()
    }
    /// The host's name.
    fn host(&self) -> Option<Untrusted> {
        None
    }
    /// The kernel's number of this boot.
    fn boot_id(&self) -> Option<Untrusted> {
        None
    }
}

/// The host's clock and cgroups.
#[derive(Debug)]
pub struct Host {
    boot: SystemTime,
    cgroup_root: Option<PathBuf>,
    cgroups: HashMap<u64, Option<Untrusted>>,
    v1: Option<Version1>,
    name: Option<Untrusted>,
    boot_id: Option<Untrusted>,
}

impl Host {
    /// Reads the clocks of the running host and finds its cgroups.
    #[must_use]
    pub fn new() -> Self {
        let mut host = Self {
            boot: SystemTime::UNIX_EPOCH,
            cgroup_root: cgroup2().map(|cgroup2| cgroup2.mount),
            cgroups: HashMap::new(),
            v1: Version1::in_use(),
            name: line("/proc/sys/kernel/hostname"),
            boot_id: line("/proc/sys/kernel/random/boot_id"),
        };
        host.refresh_clock();
        host
    }

    /// Reads both clocks again, so that the times of records follow a wall clock that was set.
    pub fn refresh_clock(&mut self) {
        let up = Duration::from_nanos(monotonic_ns());
        // A wall clock may be set to before the boot.
        self.boot = SystemTime::now().checked_sub(up).unwrap_or(SystemTime::UNIX_EPOCH);
    }

    /// Asks the kernel for a cgroup by its id, and walks the tree if it does not answer.
    fn find_cgroup(&mut self, id: u64) -> Option<Untrusted> {
        let root = self.cgroup_root.clone()?;
        if self.cgroups.len() >= CACHED_CGROUPS {
            self.cgroups.clear();
        }
        let found = match folder_of(&root, id) {
            Ok(folder) => folder.starts_with(&root).then(|| cgroup_name(&root, &folder)),
            Err(error) if error.raw_os_error() == Some(libc::ESTALE) => None,
            Err(_) => {
                self.walk(&root);
                self.cgroups.get(&id).cloned().flatten()
            }
        };
        // Ids are never reused: a cgroup that is gone stays unknown.
        self.cgroups.insert(id, found.clone());
        found
    }

    /// Reads the names of all cgroups, up to a limit: a user to whom a subtree is delegated can create any
    /// number.
    fn walk(&mut self, root: &Path) {
        let mut folders = vec![root.to_owned()];
        let mut left = CACHED_CGROUPS;
        while let Some(folder) = folders.pop() {
            if let Ok(metadata) = fs::metadata(&folder) {
                self.cgroups.insert(metadata.ino(), Some(cgroup_name(root, &folder)));
            }
            let Ok(entries) = fs::read_dir(&folder) else { continue };
            let below = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            let before = folders.len();
            folders.extend(below.take(left).map(|entry| entry.path()));
            left -= folders.len() - before;
        }
    }
}

/// The folder of a cgroup, whose id is a file handle of its file system. Needs `CAP_DAC_READ_SEARCH` and
/// Linux 5.5; `ESTALE` means that the cgroup is gone.
fn folder_of(root: &Path, id: u64) -> io::Result<PathBuf> {
    /// `struct file_handle`, of the kind `FILEID_KERNFS` of `include/linux/exportfs.h`.
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        id: u64,
    }
    let mut handle = Handle { bytes: 8, kind: 0xfe, id };
    let mount = File::open(root)?;
    // SAFETY: `bytes` is the number of bytes after the header, and the handle lives until the call returns.
    let opened = unsafe {
        libc::open_by_handle_at(mount.as_raw_fd(), (&raw mut handle).cast(), libc::O_PATH | libc::O_CLOEXEC)
    };
    if opened < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened it for us.
    let folder = unsafe { OwnedFd::from_raw_fd(opened) };
    fs::read_link(format!("/proc/self/fd/{}", folder.as_raw_fd()))
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl Context for Host {
    fn wall_time(&self, monotonic_ns: u64) -> SystemTime {
        // 0 means that it was not seen: the moment of reading is the closest approximation.
        if monotonic_ns == 0 {
            return SystemTime::now();
        }
        self.boot.checked_add(Duration::from_nanos(monotonic_ns)).unwrap_or_else(SystemTime::now)
    }

    fn cgroup(&mut self, id: u64) -> Option<Untrusted> {
        if id == 0 {
            return None;
        }
        match self.cgroups.get(&id) {
            Some(known) => known.clone(),
            None => self.find_cgroup(id),
        }
    }

    fn names(&mut self, cgroup: Option<&Untrusted>, pid: u32, at_ns: u64) -> Names {
        let names = cgroup.map(|cgroup| Names::of(cgroup.raw())).unwrap_or_default();
        match &self.v1 {
            Some(v1) if names.is_empty() => v1.names(pid, at_ns).unwrap_or_default(),
            _ => names,
        }
    }

    fn host(&self) -> Option<Untrusted> {
        self.name.clone()
    }

    fn boot_id(&self) -> Option<Untrusted> {
        self.boot_id.clone()
    }
}

/// The only line of a file of the kernel.
fn line(path: &str) -> Option<Untrusted> {
    let text = bounded::read(path, bounded::SMALL).ok()?;
    let line = text.trim_ascii();
    (!line.is_empty()).then(|| Untrusted::from_bytes(line))
}

/// The hierarchies of cgroup v1, where the host still has them: then the runtimes use them alone, and every
/// process is at the root of cgroup v2. The kernel side does not see them, so `/proc` is asked.
#[derive(Debug)]
struct Version1;

impl Version1 {
    /// Returns `None` where there are none, or where `/proc` has the ids of another pid namespace.
    fn in_use() -> Option<Self> {
        let own = bounded::read_to_string("/proc/self/cgroup", bounded::SMALL).ok()?;
        let is_initial =
            fs::metadata("/proc/self/ns/pid").is_ok_and(|pid| pid.ino() == INITIAL_PID_NAMESPACE);
        (is_initial && own.lines().any(|line| !line.starts_with("0::"))).then_some(Self)
    }

    /// Returns `None` if the process has ended: another one may have its id. It is the same process if it
    /// had begun by then.
    #[expect(clippy::unused_self, reason = "it says that there are such hierarchies")]
    fn names(&self, pid: u32, at_ns: u64) -> Option<Names> {
        let began = began(&bounded::read(format!("/proc/{pid}/stat"), bounded::SMALL).ok()?)?;
        let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let asleep = Duration::try_from(boot).ok()?.saturating_sub(Duration::from_nanos(monotonic_ns()));
        if at_ns == 0 || began > Duration::from_nanos(at_ns) + asleep {
            return None;
        }
        let cgroups = bounded::read(format!("/proc/{pid}/cgroup"), bounded::SMALL).ok()?;
        Some(names_of(&String::from_utf8_lossy(&cgroups)))
    }
}

/// What the lines of `/proc/PID/cgroup` say, such as `4:memory:/docker/ID`. Not every runtime makes a cgroup
/// in every hierarchy; systemd's own has no controller.
fn names_of(cgroups: &str) -> Names {
    let mut names = Names::default();
    for line in cgroups.lines() {
        let Some(path) = line.splitn(3, ':').nth(2) else { continue };
        let found = Names::of(path);
        names.unit = names.unit.or(found.unit);
        names.container_id = names.container_id.or(found.container_id);
        names.pod_uid = names.pod_uid.or(found.pod_uid);
    }
    names
}

/// When a process began, since the boot, by its `/proc/PID/stat`. In ticks, rounded down: ids are handed out
/// in turn, so no two processes have the same one within a tick.
fn began(stat: &[u8]) -> Option<Duration> {
    /// `USER_HZ`: the same for every program, whatever the kernel's own tick.
    const TICKS_PER_SECOND: u64 = 100;
    // The name before it may contain anything.
    let name_end = stat.iter().rposition(|&byte| byte == b')')?;
    let fields = std::str::from_utf8(&stat[name_end + 1..]).ok()?;
    let ticks: u64 = fields.split_ascii_whitespace().nth(19)?.parse().ok()?;
    Some(Duration::from_millis(ticks.checked_mul(1000 / TICKS_PER_SECOND)?))
}

/// Its inode: `include/uapi/linux/nsfs.h`, the same since Linux 3.8.
pub(crate) const INITIAL_PID_NAMESPACE: u64 = 0xefff_fffc;

/// A mount of cgroup v2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup2 {
    /// Where.
    pub mount: PathBuf,
    /// Whether it shows the host's whole hierarchy. A mount made inside a cgroup namespace begins at the root
    /// of that namespace, and a bind mount may begin at any cgroup.
    pub is_whole: bool,
}

impl Cgroup2 {
    /// The mount at this path. Returns `None` if it is not cgroup v2.
    fn at(mount: PathBuf) -> Option<Self> {
        let is_cgroup2 = rustix::fs::statfs(&mount).is_ok_and(|found| found.f_type == CGROUP2_SUPER_MAGIC);
        let inode = fs::metadata(&mount).ok().filter(|_| is_cgroup2)?.ino();
        Some(Self { mount, is_whole: inode == ROOT_INODE })
    }

    /// What is out of sight, and what to do. Returns `None` if the mount shows the host's whole hierarchy.
    #[must_use]
    pub fn shortfall(&self) -> Option<String> {
        let mount = Untrusted::from(self.mount.as_path());
        (!self.is_whole).then(|| {
            format!(
                "{mount} is not the root of the host's cgroup v2: TLS handshakes of processes outside it are not seen on \
                 the wire, nor that a connection had no TLS; run it with --cgroupns=host (Kubernetes: mount the host's \
                 /sys/fs/cgroup)"
            )
        })
    }
}

/// `include/uapi/linux/magic.h`: the file system of namespaces.
pub(crate) const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;
/// The same.
const CGROUP2_SUPER_MAGIC: rustix::fs::FsWord = 0x6367_7270;

/// The mount of cgroup v2 that shows the most. Returns `None` if there is none.
#[must_use]
pub fn cgroup2() -> Option<Cgroup2> {
    let mountinfo = mountinfo();
    let places = CGROUP2.iter().map(PathBuf::from).chain(mounts(&mountinfo, "cgroup2"));
    let found: Vec<_> = places.filter_map(Cgroup2::at).collect();
    found.iter().find(|found| found.is_whole).or(found.first()).cloned()
}

/// The mounts that this process sees; empty if they cannot be read.
pub(crate) fn mountinfo() -> String {
    bounded::read_to_string("/proc/self/mountinfo", bounded::MOUNTINFO).unwrap_or_default()
}

/// Where file systems of this type are mounted. Lines of `mountinfo` look like
/// `36 35 98:0 / /sys/kernel/tracing rw,relatime shared:1 - tracefs tracefs rw`.
pub(crate) fn mounts(mountinfo: &str, kind: &str) -> impl Iterator<Item = PathBuf> {
    mountinfo.lines().filter_map(move |line| {
        let (mount, source) = line.split_once(" - ")?;
        (source.split(' ').next()? == kind).then(|| unescape(mount.split(' ').nth(4)?)).flatten()
    })
}

/// Decodes the three octal digits that stand for blanks and backslashes.
fn unescape(text: &str) -> Option<PathBuf> {
    let mut parts = text.split('\\');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(part.get(..3)?, 8).ok()?);
        bytes.extend(&part.as_bytes()[3..]);
    }
    Some(OsString::from_vec(bytes).into())
}

fn cgroup_name(root: &Path, folder: &Path) -> Untrusted {
    let below = folder.strip_prefix(root).unwrap_or(folder);
    Untrusted::from(Path::new("/").join(below).as_path())
}

/// How long this thread has run on a CPU.
#[must_use]
pub fn thread_time() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(spent).unwrap_or_default()
}

/// CLOCK_MONOTONIC, nanoseconds: what `bpf_ktime_get_ns` reads.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_time_of_now_is_now() {
        let host = Host::new();
        let now = host.wall_time(monotonic_ns());
        let gap = SystemTime::now().duration_since(now).unwrap_or_else(|early| early.duration());
        assert!(gap < Duration::from_secs(1), "{gap:?}");
    }

    #[test]
    fn cgroups_are_named_from_their_root() {
        let name = |below: &str| {
            let root = Path::new("/sys/fs/cgroup");
            cgroup_name(root, &root.join(below)).raw().to_owned()
        };
        assert_eq!(name(""), "/");
        assert_eq!(name("system.slice/a.service"), "/system.slice/a.service");
    }

    /// By its handle as root, otherwise by walking the tree: the ids of a cgroup file system are inodes.
    #[test]
    fn the_root_cgroup_is_found_by_its_id() {
        let Some(cgroup2) = cgroup2() else {
            crate::skip_test::skip_test("cgroup v2 is not mounted");
            return;
        };
        let id = fs::metadata(&cgroup2.mount).unwrap().ino();
        let root = Some(Untrusted::from("/"));
        assert_eq!(Host::new().cgroup(id), root);
        let mut walked = Host::new();
        walked.walk(&cgroup2.mount);
        assert_eq!(walked.cgroups.get(&id), Some(&root));
        assert_eq!(Host::new().cgroup(u64::MAX), None);
    }

    #[test]
    fn own_names_are_known() {
        let host = Host::new();
        let uname = rustix::system::uname();
        assert_eq!(host.host(), Some(Untrusted::from_bytes(uname.nodename().to_bytes())));
        let boot_id = host.boot_id().unwrap();
        assert!(boot_id.raw().len() == 36 && !boot_id.raw().contains(char::is_whitespace), "{boot_id}");
        assert_eq!(line("/nonexistent"), None);
    }

    #[test]
    fn lines_of_the_hierarchies_are_joined() {
        let id = "1f".repeat(32);
        let names =
            names_of(&format!("4:memory:/docker/{id}\n1:name=systemd:/system.slice/a.service\n0::/\n"));
        assert_eq!(names.container_id, Some(id.as_str().into()));
        assert_eq!(names.unit, Some("a.service".into()));
        for broken in ["", "\n\n", "4", "4:memory", "0::/", ":::", "9:x:/a:b/c"] {
            assert!(names_of(broken).is_empty(), "{broken}");
        }
    }

    #[test]
    fn beginning_of_a_process_is_read_past_any_name() {
        let stat =
            |name: &str, rest: &str| began(format!("7 ({name}) S {}{rest}", "0 ".repeat(18)).as_bytes());
        assert_eq!(stat("a", "250 9"), Some(Duration::from_millis(2500)));
        assert_eq!(stat(") 1 2 (x", "250"), Some(Duration::from_millis(2500)));
        for rest in ["", "x", "99999999999999999999", "18446744073709551615"] {
            assert_eq!(stat("a", rest), None, "{rest}");
        }
        assert_eq!(began(b"7 (a"), None);
        let own = began(&fs::read("/proc/self/stat").unwrap()).unwrap();
        let now = Duration::try_from(rustix::time::clock_gettime(rustix::time::ClockId::Boottime)).unwrap();
        assert!(now.saturating_sub(own) < Duration::from_hours(1), "{own:?} {now:?}");
    }

    /// Of a process that began afterwards, nothing is known.
    #[test]
    fn process_that_began_later_is_another_one() {
        let own = std::process::id();
        assert!(Version1.names(own, monotonic_ns()).is_some());
        assert_eq!(Version1.names(own, 1), None);
        assert_eq!(Version1.names(own, 0), None);
        assert_eq!(Version1.names(u32::MAX, monotonic_ns()), None);
    }

    #[test]
    fn mounts_are_found_by_their_type() {
        let mountinfo = "22 1 0:20 / /sys rw,nosuid - sysfs sysfs rw\n\
            30 22 0:26 / /sys/fs/cgroup/unified rw shared:4 - cgroup2 cgroup rw\n\
            31 22 0:27 / /sys/kernel/a\\040\\134b rw - tracefs nodev rw\n";
        let first = |mountinfo: &str, kind| mounts(mountinfo, kind).next();
        assert_eq!(first(mountinfo, "cgroup2"), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(first(mountinfo, "tracefs"), Some("/sys/kernel/a \\b".into()));
        assert_eq!(first(mountinfo, "debugfs"), None);
        for broken in
            ["no such line", " - tracefs", "1 2 3 / /a\\04 rw - tracefs t", "1 2 3 / /\\é9 - tracefs t"]
        {
            assert_eq!(first(broken, "tracefs"), None, "{broken}");
        }
    }

    #[test]
    fn other_file_systems_are_not_cgroup2() {
        assert_eq!(Cgroup2::at("/proc".into()), None);
        assert_eq!(Cgroup2::at("/nonexistent".into()), None);
    }
}
