//! Files of processes that have ended, by the paths at which they had mapped them. A path leads nowhere
//! without its mount namespace, which is not known any more: so it is tried in all of them, and only the very
//! file that was mapped is taken.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{
    open::{self, Opened},
    watch::NewMapping,
};

/// The most namespaces in which a path is tried, the oldest processes' first: nobody can crowd those out.
const MAX_NAMESPACES: usize = 512;
/// The most processes that are asked for their namespace.
const MAX_PROCESSES: usize = 65_536;
/// The most files of one path that are opened. Containers of one image have the same numbers in each.
const MAX_FILES: usize = 4;
/// The shortest time between two passes over all processes.
const PAUSE: Duration = Duration::from_secs(1);

/// The mount namespaces of this host (and the root directories in them), each by a process in it: its root is
/// opened anew each time, since a namespace that is held open cannot end.
#[derive(Debug, Default)]
pub(super) struct Namespaces {
    members: Vec<u32>,
    looked: Option<Instant>,
}

impl Namespaces {
    /// A process of each namespace but that of this process.
    pub(super) fn members(&self) -> Vec<u32> {
        self.members.clone()
    }

    /// Lists them again, unless that was done a moment ago.
    pub(super) fn look(&mut self, now: Instant) {
        if self.looked.is_none_or(|looked| now.saturating_duration_since(looked) >= PAUSE) {
            self.looked = Some(now);
            self.members = members();
        }
    }

    /// Whether they are those of this moment, or of a later one.
    pub(super) fn are_of(&self, moment: Instant) -> bool {
        self.looked.is_some_and(|looked| looked >= moment)
    }
}

fn members() -> Vec<u32> {
    // A process of another user may not be asked without `CAP_SYS_PTRACE`.
    let view = |process: &str| {
        let link = |name: &str| fs::read_link(format!("/proc/{process}/{name}")).ok();
        link("ns/mnt").zip(link("root"))
    };
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut pids: Vec<_> = pids.take(MAX_PROCESSES).collect();
    pids.sort_unstable();
    let mut seen: HashSet<_> = view("self").into_iter().collect();
    let is_new = |pid: &u32| view(&pid.to_string()).is_some_and(|view| seen.insert(view));
    pids.into_iter().filter(is_new).take(MAX_NAMESPACES).collect()
}

/// Opens what may be the mapped file, in the root directories of these processes. Whether it is the one is
/// for [`super::source::MappingSource::identify_as`] to say.
pub(super) fn candidates(mapping: &NewMapping, processes: &[u32]) -> Vec<Opened> {
    let roots = processes.iter().map(|pid| PathBuf::from(format!("/proc/{pid}/root")));
    roots.filter_map(|root| candidate(mapping, &root)).take(MAX_FILES).collect()
}

/// The same in the root directory of this process.
pub(super) fn here(mapping: &NewMapping) -> Vec<Opened> {
    candidate(mapping, Path::new("/")).into_iter().collect()
}

fn candidate(mapping: &NewMapping, root: &Path) -> Option<Opened> {
    open::below(root, &mapping.path).ok().filter(|opened| mapping.alias.has_number(opened.stat.number))
}
