//! The running kernel, and what it says of itself.

use std::fs;

use super::report::{Finding, Kernel, Tracefs};
use crate::{
    host::{self, Cgroup2},
    kernel::{
        btf,
        probe::{self, LoadError},
    },
    untrusted::Untrusted,
};

/// Examines the running kernel; needs no privileges.
pub(super) fn look(known: &Result<probe::Kernel, LoadError>, cgroup2: Option<&Cgroup2>) -> Kernel {
    let uname = rustix::system::uname();
    let (btf, members, missing_members) = match known {
        Ok(known) => {
            let audit = known.audit();
            (Finding::AVAILABLE, Some(audit.members), audit.missing)
        }
        Err(error) => (Finding::refused(types_error(error)), None, Vec::new()),
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

fn types_error(error: &LoadError) -> String {
    match error {
        LoadError::NoBtf(error) => format!("{}: {error}", btf::PATH),
        LoadError::Layout(error) => format!("{} cannot be read: {error}", btf::PATH),
        error => error.to_string(),
    }
}
