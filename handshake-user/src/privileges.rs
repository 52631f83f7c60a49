//! Gives up the privileges that only the start needs. Each thread has its own: it keeps what its work needs,
//! and the threads that it starts have no more.

use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

/// Entering other network namespaces to look at their time-wait minisockets takes `CAP_SYS_ADMIN`, and
/// finding them `CAP_SYS_PTRACE`. Kernels before 5.19 read maps only for `CAP_BPF`.
pub const MINISOCKETS: CapabilitySet =
    CapabilitySet::BPF.union(CapabilitySet::SYS_ADMIN).union(CapabilitySet::SYS_PTRACE);

/// What TLS libraries that come into use later need: to be found in other users' processes, read and probed.
pub const LIBRARIES: CapabilitySet = MINISOCKETS
    .union(CapabilitySet::PERFMON)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::CHECKPOINT_RESTORE);

/// Looking at the open files of all processes takes no capability but that of asking the kernel to.
pub const OPEN_FILES: CapabilitySet = CapabilitySet::BPF;

/// Opening cgroups by their ids (`open_by_handle_at`), to name them.
pub const CGROUPS: CapabilitySet = CapabilitySet::DAC_READ_SEARCH;

/// Keeps only these of this thread's capabilities, for good. If the kernel refuses, which is logged, it keeps
/// all of them.
pub fn keep(needed: CapabilitySet) {
    let kept = capabilities(None).and_then(|has| {
        let permitted = has.permitted & needed;
        // Without inheritable ones there are no ambient ones either: what it executed would have none.
        let inheritable = CapabilitySet::empty();
        set_capabilities(
            None,
            CapabilitySets { effective: has.effective & permitted, permitted, inheritable },
        )
    });
    if let Err(error) = kept {
        tracing::warn!(%error, "cannot give up capabilities");
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn thread_and_those_that_it_starts_keep_only_what_is_needed() {
        let before = capabilities(None).unwrap();
        let after = thread::spawn(|| {
            keep(MINISOCKETS);
            thread::spawn(|| capabilities(None).unwrap()).join().unwrap()
        });
        let after = after.join().unwrap();
        assert_eq!(after.permitted, before.permitted & MINISOCKETS);
        assert_eq!(after.effective, before.effective & MINISOCKETS);
        assert!(after.inheritable.is_empty());
        assert_eq!(capabilities(None).unwrap(), before, "other threads are not touched");
    }
}
