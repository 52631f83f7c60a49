//! Which namespaces of this process are the host's own, and what is out of sight where they are not.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use super::report::Namespace;
use crate::host::{Cgroup2, INITIAL_PID_NAMESPACE};

/// Inodes of the initial namespaces: `include/uapi/linux/nsfs.h`, the same numbers since Linux 3.8.
const CGROUP: u64 = 0xefff_fffb;
const USER: u64 = 0xefff_fffd;

/// Which namespaces are the host's own; `None` where that is unknown.
#[derive(Clone, Copy, Debug, Default)]
struct Own {
    cgroup: Option<bool>,
    pid: Option<bool>,
    net: Option<bool>,
    user: Option<bool>,
}

/// Examines this process.
pub(super) fn look(cgroup2: Option<&Cgroup2>) -> Vec<Namespace> {
    let is = |name: &str, initial: u64| {
        fs::metadata(format!("/proc/self/ns/{name}")).ok().map(|namespace| namespace.ino() == initial)
    };
    let own = Own {
        cgroup: is("cgroup", CGROUP),
        pid: is("pid", INITIAL_PID_NAMESPACE),
        net: net(),
        user: is("user", USER),
    };
    describe(own, cgroup2)
}

/// The initial network namespace has no fixed inode before Linux 6.18, but sysctls that no other one has.
fn net() -> Option<bool> {
    let settings = Path::new("/proc/sys/net");
    settings.exists().then(|| settings.join("core/netdev_budget").exists())
}

fn describe(own: Own, cgroup2: Option<&Cgroup2>) -> Vec<Namespace> {
    let lost = |is_initial: Option<bool>, what: &str| (is_initial == Some(false)).then(|| what.to_owned());
    vec![
        Namespace {
            name: "cgroup",
            initial: own.cgroup,
            // What the mount shows counts, not the namespace.
            lost: cgroup2.and_then(Cgroup2::shortfall),
        },
        Namespace {
            name: "pid",
            initial: own.pid,
            lost: lost(
                own.pid,
                "TLS libraries of processes that /proc does not show here are not probed, and their existing \
                 connections are not counted; run it with --pid=host (Kubernetes: hostPID: true)",
            ),
        },
        Namespace {
            name: "net",
            initial: own.net,
            lost: lost(
                own.net,
                "connections of every namespace are seen regardless, but the sysctls below are those of this one, and \
                 the daemon listens in it; for the host's, use --network=host (Kubernetes: hostNetwork: true)",
            ),
        },
        Namespace {
            name: "user",
            initial: own.user,
            lost: lost(
                own.user,
                "its root is not the host's root, and its capabilities do not count for eBPF; run it as the host's \
                 root (Docker: --userns=host; Podman: as root; Kubernetes: hostUsers: true)",
            ),
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(is_whole: bool) -> Cgroup2 {
        Cgroup2 { mount: "/sys/fs/cgroup".into(), is_whole }
    }

    #[test]
    fn host_namespaces_lose_nothing() {
        let own = Own { cgroup: Some(true), pid: Some(true), net: Some(true), user: Some(true) };
        let namespaces = describe(own, Some(&whole(true)));
        assert_eq!(namespaces.iter().map(|it| it.name).collect::<Vec<_>>(), ["cgroup", "pid", "net", "user"]);
        assert!(namespaces.iter().all(|it| it.initial == Some(true) && it.lost.is_none()));
    }

    #[test]
    fn container_namespaces_have_a_remedy_each() {
        let own = Own { cgroup: Some(false), pid: Some(false), net: Some(false), user: Some(false) };
        let namespaces = describe(own, Some(&whole(false)));
        for (namespace, remedy) in
            namespaces.iter().zip(["--cgroupns=host", "--pid=host", "--network=host", "--userns=host"])
        {
            assert_eq!(namespace.initial, Some(false));
            assert!(namespace.lost.as_ref().unwrap().contains(remedy), "{namespace:?}");
        }
    }

    #[test]
    fn host_cgroup_mount_makes_the_cgroup_namespace_harmless() {
        let own = Own { cgroup: Some(false), ..Own::default() };
        assert_eq!(describe(own, Some(&whole(true)))[0].lost, None);
    }

    #[test]
    fn unreadable_namespaces_are_unknown() {
        let namespaces = describe(Own::default(), None);
        assert!(namespaces.iter().all(|it| it.initial.is_none() && it.lost.is_none()));
    }
}
