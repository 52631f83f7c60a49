//! What the host adds to raw records: the wall clock, and the names of cgroups.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use crate::record::Context;

/// Where cgroup v2 is mounted: alone, or below a hybrid hierarchy.
const CGROUP2: &[&str] = &["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
/// Names are few; past this many the cache begins anew.
const CACHED_CGROUPS: usize = 10_000;

/// The host's clock and cgroups.
#[derive(Debug)]
pub struct Host {
    boot: SystemTime,
    cgroup_root: Option<PathBuf>,
    cgroups: HashMap<u64, Option<String>>,
}

impl Host {
    /// Looks at the running host.
    #[must_use]
    pub fn new() -> Self {
        let mut host = Self { boot: SystemTime::UNIX_EPOCH, cgroup_root: None, cgroups: HashMap::new() };
        host.cgroup_root = cgroup2();
        host.refresh_clock();
        host
    }

    /// Reads both clocks anew, so that a stepped wall clock does not leave the records behind.
    pub fn refresh_clock(&mut self) {
        self.boot = SystemTime::now() - Duration::from_nanos(monotonic_ns());
    }

    /// Finds a cgroup by its id, which is the inode of its folder; remembers all that it passes.
    fn find_cgroup(&mut self, id: u64) -> Option<String> {
        let root = self.cgroup_root.clone()?;
        if self.cgroups.len() > CACHED_CGROUPS {
            self.cgroups.clear();
        }
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            if let Ok(metadata) = fs::metadata(&folder) {
                self.cgroups.insert(metadata.ino(), Some(cgroup_name(&root, &folder)));
            }
            let Ok(entries) = fs::read_dir(&folder) else { continue };
            folders.extend(
                entries
                    .flatten()
                    .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                    .map(|entry| entry.path()),
            );
        }
        // A cgroup that is gone already stays unknown; do not walk the tree for it again.
        self.cgroups.entry(id).or_insert(None).clone()
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl Context for Host {
    fn wall_time(&self, monotonic_ns: u64) -> SystemTime {
        // 0 is "not seen": the moment of reading is the closest there is.
        if monotonic_ns == 0 { SystemTime::now() } else { self.boot + Duration::from_nanos(monotonic_ns) }
    }

    fn cgroup(&mut self, id: u64) -> Option<String> {
        if id == 0 {
            return None;
        }
        match self.cgroups.get(&id) {
            Some(known) => known.clone(),
            None => self.find_cgroup(id),
        }
    }
}

/// Where cgroup v2 is mounted.
#[must_use]
pub fn cgroup2() -> Option<PathBuf> {
    CGROUP2
        .iter()
        .map(PathBuf::from)
        .find(|root| root.join("cgroup.procs").exists() && root.join("cgroup.controllers").exists())
}

fn cgroup_name(root: &Path, folder: &Path) -> String {
    let below = folder.strip_prefix(root).unwrap_or(folder);
    format!("/{}", below.display())
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
    fn the_wall_clock_and_the_monotonic_one_agree_on_now() {
        let host = Host::new();
        let now = host.wall_time(monotonic_ns());
        let gap = SystemTime::now().duration_since(now).unwrap_or_else(|early| early.duration());
        assert!(gap < Duration::from_secs(1), "{gap:?}");
    }

    #[test]
    fn cgroups_are_named_from_their_root() {
        assert_eq!(cgroup_name(Path::new("/sys/fs/cgroup"), Path::new("/sys/fs/cgroup")), "/");
        assert_eq!(
            cgroup_name(Path::new("/sys/fs/cgroup"), Path::new("/sys/fs/cgroup/system.slice/a.service")),
            "/system.slice/a.service"
        );
    }
}
