//! Finds network namespaces by their inode, and enters them. No descriptor is kept: it would keep a namespace
//! alive, and with it the devices in it.

use std::{
    collections::HashMap,
    fs::{self, File},
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{host, join::time_wait::Wanted};

/// The most that one look enters.
const MAX_NAMESPACES: usize = 1024;
/// Threads and descriptors of a process that are examined.
const MAX_ENTRIES: usize = 4096;
/// Processes of the host that are examined.
const MAX_PROCESSES: usize = 65_536;
/// The namespace of this thread, as long as it has not entered another one.
const OWN: &str = "/proc/thread-self/ns/net";

/// Remembers where namespaces were found.
#[derive(Debug, Default)]
pub(super) struct Finder {
    paths: HashMap<u32, PathBuf>,
}

impl Finder {
    /// Calls `work` in each of these namespaces that can be found and entered, and returns to the own one.
    pub(super) fn enter_each(&mut self, wanted: &[Wanted], mut work: impl FnMut(u32)) {
        let wanted = &wanted[..wanted.len().min(MAX_NAMESPACES)];
        let Ok(own) = File::open(OWN) else { return };
        let own_inode = inode(&own);
        let (here, others): (Vec<_>, Vec<_>) =
            wanted.iter().copied().partition(|wanted: &Wanted| Some(wanted.netns) == own_inode);
        for Wanted { netns, .. } in here {
            work(netns);
        }
        self.find(&others);
        for Wanted { netns, .. } in others {
            let Some(namespace) = self.paths.get(&netns).and_then(|path| at(path, netns)) else { continue };
            if let Err(error) = enter(&namespace) {
                tracing::debug!(netns, %error, "cannot enter a network namespace");
                continue;
            }
            work(netns);
        }
        if let Err(error) = enter(&own) {
            tracing::debug!(%error, "cannot return to the own network namespace");
        }
    }

    /// Looks for a path to each: where it was, at the process that closed a connection in it, at every
    /// process, where namespaces are mounted, and at last among what that process holds.
    fn find(&mut self, wanted: &[Wanted]) {
        self.paths.retain(|&netns, path| {
            wanted.iter().any(|wanted| wanted.netns == netns) && at(path, netns).is_some()
        });
        let hints = wanted.iter().map(|wanted| PathBuf::from(format!("/proc/{}/ns/net", wanted.pid)));
        self.add(wanted, hints);
        if self.paths.len() < wanted.len() {
            self.add(
                wanted,
                entries(Path::new("/proc"), MAX_PROCESSES).map(|process| process.join("ns/net")),
            );
        }
        if self.paths.len() < wanted.len() {
            let mountinfo = host::mountinfo();
            self.add(wanted, host::mounts(&mountinfo, "nsfs"));
        }
        for missing in wanted {
            if self.paths.contains_key(&missing.netns) || missing.pid == 0 {
                continue;
            }
            let process = PathBuf::from(format!("/proc/{}", missing.pid));
            let (threads, descriptors) = (process.join("task"), process.join("fd"));
            self.add(wanted, entries(&threads, MAX_ENTRIES).map(|thread| thread.join("ns/net")));
            self.add(wanted, entries(&descriptors, MAX_ENTRIES).filter(|link| leads_to_namespace(link)));
        }
    }

    /// Adds those of these paths that lead to a namespace that is wanted and not found yet.
    fn add(&mut self, wanted: &[Wanted], paths: impl Iterator<Item = PathBuf>) {
        for path in paths {
            if self.paths.len() == wanted.len() {
                return;
            }
            let Some(netns) = fs::metadata(&path).ok().and_then(|found| u32::try_from(found.ino()).ok())
            else {
                continue;
            };
            if wanted.iter().any(|wanted| wanted.netns == netns) && at(&path, netns).is_some() {
                self.paths.entry(netns).or_insert(path);
            }
        }
    }
}

/// The numbered entries of a folder of /proc.
fn entries(folder: &Path, most: usize) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit))
        .take(most)
        .map(|entry| entry.path())
}

/// The namespace at this path, if it is this one.
fn at(path: &Path, netns: u32) -> Option<File> {
    let is_namespace =
        |file: &File| rustix::fs::fstatfs(file).is_ok_and(|found| found.f_type == host::NSFS_MAGIC);
    File::open(path).ok().filter(|file| inode(file) == Some(netns) && is_namespace(file))
}

/// Links to namespaces read `net:[4026531840]`.
fn leads_to_namespace(link: &Path) -> bool {
    fs::read_link(link).is_ok_and(|target| target.as_os_str().as_encoded_bytes().starts_with(b"net:["))
}

/// Moves this thread into a network namespace.
fn enter(namespace: &File) -> rustix::io::Result<()> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
}

fn inode(file: &File) -> Option<u32> {
    u32::try_from(file.metadata().ok()?.ino()).ok()
}

#[cfg(test)]
mod tests {
    use std::thread;

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    fn own() -> u32 {
        inode(&File::open(OWN).unwrap()).unwrap()
    }

    #[test]
    fn own_namespace_is_entered_and_strangers_are_not() {
        let wanted = [Wanted { netns: own(), pid: 0 }, Wanted { netns: 1, pid: std::process::id() }];
        let mut entered = Vec::new();
        Finder::default().enter_each(&wanted, |netns| entered.push(netns));
        assert_eq!(entered, [own()]);
    }

    #[test]
    fn namespace_that_only_a_descriptor_holds_is_found() {
        if !nix::unistd::geteuid().is_root() {
            crate::skip_test::skip_test("making a network namespace needs root");
            return;
        }
        let held = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open(OWN).unwrap()
        })
        .join()
        .unwrap();
        let netns = inode(&held).unwrap();
        let before = own();
        let mut inside = Vec::new();
        let wanted = [Wanted { netns, pid: std::process::id() }];
        Finder::default().enter_each(&wanted, |netns| inside.push((netns, own())));
        assert_eq!(inside, [(netns, netns)]);
        assert_eq!(own(), before, "the thread is back");
    }
}
