//! What runs, and what it says of itself.

use std::{fs, path::Path};

use super::report::{Finding, Kernel, Tracefs};
use crate::{
    btf::{self, Btf},
    probe,
};

/// Looks at the running kernel; needs no privileges.
pub fn look() -> Kernel {
    let uname = rustix::system::uname();
    let (btf, members, missing_members) = match types() {
        Ok(btf) => {
            let audit = btf::audit(&btf);
            (Finding::AVAILABLE, Some(audit.members), audit.missing)
        }
        Err(reason) => (Finding::refused(reason), None, Vec::new()),
    };
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let tracefs = mounted(&mounts, "tracefs");
    Kernel {
        release: uname.release().to_string_lossy().into_owned(),
        arch: uname.machine().to_string_lossy().into_owned(),
        btf,
        members,
        missing_members,
        tracefs: Tracefs {
            readable: tracefs.is_some_and(|mount| fs::read_dir(Path::new(mount).join("events")).is_ok()),
            mount: tracefs.map(str::to_owned),
        },
        cgroup2: mounted(&mounts, "cgroup2").map(str::to_owned),
    }
}

fn types() -> Result<Btf, String> {
    let bytes = fs::read(probe::BTF_PATH).map_err(|error| format!("{}: {error}", probe::BTF_PATH))?;
    Btf::from_bytes(&bytes).map_err(|error| format!("{} cannot be read: {error}", probe::BTF_PATH))
}

/// Where a file system of this type is mounted. Lines of `mountinfo` look like
/// `36 35 98:0 / /sys/kernel/tracing rw,relatime shared:1 - tracefs tracefs rw`.
pub(crate) fn mounted<'a>(mountinfo: &'a str, kind: &str) -> Option<&'a str> {
    mountinfo.lines().find_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        if source.split(' ').next()? != kind {
            return None;
        }
        mount.split(' ').nth(4)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_their_type() {
        let mounts = "22 1 0:20 / /sys rw,nosuid - sysfs sysfs rw\n\
            30 22 0:26 / /sys/fs/cgroup/unified rw shared:4 - cgroup2 cgroup rw\n\
            31 22 0:27 / /sys/kernel/tracing rw - tracefs nodev rw\n";
        assert_eq!(mounted(mounts, "cgroup2"), Some("/sys/fs/cgroup/unified"));
        assert_eq!(mounted(mounts, "tracefs"), Some("/sys/kernel/tracing"));
        assert_eq!(mounted(mounts, "debugfs"), None);
        assert_eq!(mounted("no such line", "tracefs"), None);
        assert_eq!(mounted(" - tracefs", "tracefs"), None);
    }
}
