//! What the daemon uses according to the kernel, and what it counts itself.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::proc_stat::CpuTimes;

/// No scrape may take longer.
const TIMEOUT: Duration = Duration::from_secs(15);

/// The resources of a process at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) resident_kib: f64,
    pub(crate) anonymous_kib: f64,
    /// The memory the kernel charges for its maps.
    pub(crate) maps_kib: f64,
    pub(crate) descriptors: f64,
    /// Attached probes, as links of eBPF programs.
    pub(crate) probes: f64,
    pub(crate) threads: f64,
    pub(crate) cpu_seconds: f64,
    pub(crate) objects: Objects,
}

/// Its objects in the kernel, by id.
#[derive(Clone, Debug, Default)]
pub(crate) struct Objects {
    pub(crate) programs: BTreeSet<u32>,
    pub(crate) links: BTreeSet<u32>,
}

impl Usage {
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let read = |name: &str| {
            fs::read_to_string(format!("/proc/{pid}/{name}"))
                .with_context(|| format!("cannot read /proc/{pid}/{name}: has the daemon ended?"))
        };
        let status = read("status")?;
        let field =
            |name: &str| number(&status, name).with_context(|| format!("/proc/PID/status lacks {name}"));
        let cpu = CpuTimes::parse(&read("stat")?).context("/proc/PID/stat is not as expected")?;
        let mut usage = Self {
            resident_kib: field("VmRSS")?,
            anonymous_kib: field("RssAnon")?,
            threads: field("Threads")?,
            cpu_seconds: cpu.user + cpu.system,
            ..Self::default()
        };
        let mut maps = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))?.flatten() {
            usage.descriptors += 1.0;
            // It may have been closed since.
            let Ok(text) = fs::read_to_string(entry.path()) else { continue };
            if let (Some(map), Some(bytes)) = (id(&text, "map_id"), number(&text, "memlock")) {
                maps.insert(map, bytes / 1024.0);
            }
            if let Some(link) = id(&text, "link_id") {
                usage.objects.links.insert(link);
            }
            usage.objects.programs.extend(id(&text, "prog_id"));
        }
        usage.maps_kib = maps.values().sum();
        #[expect(clippy::cast_precision_loss, reason = "a count of descriptors")]
        let probes = usage.objects.links.len() as f64;
        usage.probes = probes;
        Ok(usage)
    }
}

/// The number after a name in /proc/PID/status or an fdinfo. Returns `None` if there is none.
fn number(text: &str, name: &str) -> Option<f64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.split_whitespace().next()?.parse().ok()
}

fn id(text: &str, name: &str) -> Option<u32> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.trim().parse().ok()
}

impl Objects {
    pub(crate) fn extend(&mut self, other: &Self) {
        self.programs.extend(&other.programs);
        self.links.extend(&other.links);
    }

    /// Those that are still in the kernel. Asked with bpf(2) itself: aya would double the time that xtask
    /// takes to build.
    pub(crate) fn left(&self) -> Self {
        // `enum bpf_cmd` (include/uapi/linux/bpf.h).
        const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
        const BPF_LINK_GET_FD_BY_ID: libc::c_int = 30;
        let still = |ids: &BTreeSet<u32>, command| {
            ids.iter().copied().filter(|&id| exists(command, id)).collect::<BTreeSet<_>>()
        };
        Self {
            programs: still(&self.programs, BPF_PROG_GET_FD_BY_ID),
            links: still(&self.links, BPF_LINK_GET_FD_BY_ID),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.programs.is_empty() && self.links.is_empty()
    }
}

fn exists(command: libc::c_int, id: u32) -> bool {
    use std::os::fd::{FromRawFd as _, OwnedFd};
    // `union bpf_attr`: the id, `next_id` and `open_flags`.
    let attributes = [id, 0, 0];
    // SAFETY: the kernel reads as many bytes as the size says, of an array that outlives the call.
    let descriptor =
        unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(&attributes)) };
    let Some(descriptor) = i32::try_from(descriptor).ok().filter(|descriptor| *descriptor >= 0) else {
        return false;
    };
    // SAFETY: the kernel has just opened it for this call, and nothing else owns it.
    drop(unsafe { OwnedFd::from_raw_fd(descriptor) });
    true
}

/// One response to GET /metrics.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scrape {
    text: String,
    pub(crate) took: Duration,
}

impl Scrape {
    /// Scrapes once, on a connection of its own.
    pub(crate) fn of(address: &str) -> Result<Self> {
        let begin = Instant::now();
        let mut stream = TcpStream::connect(address).context("the daemon does not accept a scrape")?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut text = String::new();
        stream.read_to_string(&mut text).context("the response to a scrape is incomplete")?;
        ensure!(text.starts_with("HTTP/1.1 200 "), "a scrape was answered with {:?}", text.lines().next());
        Ok(Self { text, took: begin.elapsed() })
    }

    /// The sum of the samples of this name whose labels contain all of these.
    pub(crate) fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let value = |line: &str| {
            let (series, value) = line.rsplit_once(' ')?;
            let (found, given) = series.split_once('{').unwrap_or((series, ""));
            (found == name && labels.iter().all(|label| given.contains(label))).then_some(())?;
            value.parse::<f64>().ok()
        };
        self.text.lines().filter_map(value).sum()
    }

    /// The number of series, without those of networks that do not begin with this.
    pub(crate) fn series(&self, network: &str) -> usize {
        let is_ours = |line: &&str| !line.contains("remote_net=\"") || line.contains(network);
        self.text.lines().filter(|line| line.starts_with("handshake_")).filter(is_ours).count()
    }
}

/// The connections that this network namespace has opened and accepted since it exists: the second witness of
/// what others on this host do meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct HostOpens {
    pub(crate) active: u64,
    pub(crate) passive: u64,
}

impl HostOpens {
    pub(crate) fn read() -> Result<Self> {
        let text = fs::read_to_string("/proc/net/snmp").context("is /proc mounted?")?;
        Self::parse(&text).context("/proc/net/snmp lacks ActiveOpens or PassiveOpens")
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp:"));
        let (names, values) = (lines.next()?, lines.next()?);
        let field = |name: &str| {
            let at = names.split_whitespace().position(|found| found == name)?;
            values.split_whitespace().nth(at)?.parse().ok()
        };
        Some(Self { active: field("ActiveOpens")?, passive: field("PassiveOpens")? })
    }
}

/// Processes of this run that are still in one of these network namespaces or hold one open: the daemon, and
/// those whose command line or environment names the load's folder. Others may be in a namespace with the
/// same inode, which the kernel reuses.
pub(crate) fn holders(namespaces: &HashSet<u64>, daemon: u32, folder: &Path) -> Vec<String> {
    let mut holders = Vec::new();
    let Ok(processes) = fs::read_dir("/proc") else { return holders };
    for process in processes.flatten() {
        let path = process.path();
        if !process.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        let names_it = |file: &str| {
            let text = fs::read(path.join(file)).unwrap_or_default();
            let folder = folder.as_os_str().as_bytes();
            text.windows(folder.len()).any(|part| part == folder)
        };
        let is_daemon = process.file_name().to_str() == Some(daemon.to_string().as_str());
        if !is_daemon && !["cmdline", "environ"].into_iter().any(names_it) {
            continue;
        }
        let inside = fs::metadata(path.join("ns/net")).is_ok_and(|meta| namespaces.contains(&meta.ino()));
        let descriptors = fs::read_dir(path.join("fd")).into_iter().flatten().flatten();
        let holds = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok()).any(|target| {
            let inode =
                target.to_str().and_then(|text| text.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok());
            inode.is_some_and(|inode| namespaces.contains(&inode))
        });
        if inside || holds {
            let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
            holders.push(format!("{} ({})", process.file_name().display(), name.trim()));
        }
    }
    holders
}

/// Children of this process, of any thread.
pub(crate) fn children() -> BTreeSet<u32> {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let of_task = |task: fs::DirEntry| fs::read_to_string(task.path().join("children")).unwrap_or_default();
    tasks
        .map(of_task)
        .flat_map(|text| text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_of_this_process_is_plausible() {
        let usage = Usage::of(std::process::id()).unwrap();
        assert!(usage.resident_kib > 100.0 && usage.anonymous_kib > 10.0, "{usage:?}");
        assert!(usage.threads >= 1.0 && usage.descriptors >= 3.0, "{usage:?}");
        assert!(usage.maps_kib == 0.0 && usage.objects.is_empty(), "{usage:?}");
    }

    #[test]
    fn samples_are_summed_by_name_and_labels() {
        let text = "HTTP/1.1 200 OK\r\n\r\n\
                    handshake_a{role=\"client\",x=\"1\"} 2\nhandshake_a{role=\"client\"} 3\n\
                    handshake_a{role=\"server\"} 4\nhandshake_ab 5\n";
        let scrape = Scrape { text: text.to_owned(), took: Duration::ZERO };
        assert!((scrape.sum("handshake_a", &["role=\"client\""]) - 5.0).abs() < 1e-9);
        assert!((scrape.sum("handshake_ab", &[]) - 5.0).abs() < 1e-9);
        assert_eq!(scrape.series("remote_net=\"198.18."), 4);
    }

    #[test]
    fn counters_of_the_host_are_found_by_name() {
        let text = "Ip: Forwarding\nIp: 1\nTcp: RtoMin ActiveOpens PassiveOpens\nTcp: 200 7 9\n";
        assert_eq!(HostOpens::parse(text), Some(HostOpens { active: 7, passive: 9 }));
        assert_eq!(HostOpens::parse("Tcp: RtoMin\nTcp: 1\n"), None);
        assert!(HostOpens::read().is_ok());
    }

    #[test]
    fn process_holds_only_its_own_namespace() {
        let own = fs::metadata("/proc/self/ns/net").unwrap().ino();
        let (pid, folder) = (std::process::id(), Path::new("/nobody/names/this"));
        let holders = |number, pid| holders(&HashSet::from([number]), pid, folder);
        assert!(holders(own, pid)[0].starts_with(&format!("{pid} (")));
        assert!(holders(0, pid).is_empty() && holders(own, 0).is_empty());
    }
}
