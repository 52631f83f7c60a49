//! What runs, and what it says of itself.

use std::fs;

use super::report::{Finding, Kernel, Tracefs};
use crate::{
    bounded,
    host::{self, Cgroup2},
    kernel::{
        btf::{self, Btf},
        probe,
    },
    untrusted::Untrusted,
};

/// Looks at the running kernel; needs no privileges.
pub fn look(cgroup2: Option<&Cgroup2>) -> Kernel {
    let uname = rustix::system::uname();
    let (btf, members, missing_members) = match types() {
        Ok(btf) => {
            let audit = btf::audit(&btf);
            (Finding::AVAILABLE, Some(audit.members), audit.missing)
        }
        Err(reason) => (Finding::refused(reason), None, Vec::new()),
    };
    let tracefs = host::mounts(&host::mountinfo(), "tracefs").next();
    Kernel {
        release: uname.release().to_string_lossy().into_owned(),
        arch: uname.machine().to_string_lossy().into_owned(),
        btf,
        members,
        missing_members,
        tracefs: Tracefs {
            readable: tracefs.as_ref().is_some_and(|mount| fs::read_dir(mount.join("events")).is_ok()),
            mount: tracefs.as_deref().map(Untrusted::from),
        },
        cgroup2: cgroup2.map(|cgroup2| cgroup2.mount.as_path().into()),
        cgroup2_is_root: cgroup2.map(|cgroup2| cgroup2.is_whole),
    }
}

fn types() -> Result<Btf, String> {
    let bytes = bounded::read(probe::BTF_PATH, bounded::KERNEL_BTF)
        .map_err(|error| format!("{}: {error}", probe::BTF_PATH))?;
    Btf::from_bytes(&bytes).map_err(|error| format!("{} cannot be read: {error}", probe::BTF_PATH))
}
