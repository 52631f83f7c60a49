//! What this user may do.

use rustix::thread::CapabilitySet;

use super::report::{Capability, Namespace, Privileges};
use crate::bounded;

/// What loading needs, by capabilities(7). `CAP_SYS_ADMIN` includes `CAP_BPF` and `CAP_PERFMON`.
const CAPABILITIES: &[(&str, CapabilitySet, &str)] = &[
    ("CAP_BPF", CapabilitySet::BPF, "loading eBPF programs"),
    ("CAP_PERFMON", CapabilitySet::PERFMON, "tracing with them"),
    ("CAP_SYS_ADMIN", CapabilitySet::SYS_ADMIN, "uprobes on TLS libraries; includes the two above"),
    ("CAP_NET_ADMIN", CapabilitySet::NET_ADMIN, "programs on packets (cgroup_skb)"),
    ("CAP_DAC_READ_SEARCH", CapabilitySet::DAC_READ_SEARCH, "reading tracefs as a user other than root"),
];

/// Examines this process and the restrictions of the host.
pub(super) fn look(namespaces: &[Namespace]) -> Privileges {
    let effective = rustix::thread::capabilities(None).ok().map(|sets| sets.effective);
    Privileges {
        uid: rustix::process::geteuid().as_raw(),
        initial_user_namespace: namespaces
            .iter()
            .find(|namespace| namespace.name == "user")
            .and_then(|namespace| namespace.initial),
        capabilities: effective.map(|effective| {
            CAPABILITIES
                .iter()
                .map(|&(name, bit, needed_for)| Capability {
                    name,
                    held: effective.contains(bit),
                    needed_for,
                })
                .collect()
        }),
        unprivileged_bpf_disabled: bounded::read_to_string(
            "/proc/sys/kernel/unprivileged_bpf_disabled",
            bounded::SMALL,
        )
        .ok()
        .and_then(|value| value.trim().parse().ok()),
        lockdown: bounded::read_to_string("/sys/kernel/security/lockdown", bounded::SMALL)
            .ok()
            .and_then(|modes| chosen(&modes).map(str::to_owned)),
    }
}

/// The mode in brackets: `[none] integrity confidentiality`.
fn chosen(modes: &str) -> Option<&str> {
    modes.split_whitespace().find_map(|mode| mode.strip_prefix('[')?.strip_suffix(']'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chosen_lockdown_mode_is_in_brackets() {
        assert_eq!(chosen("[none] integrity confidentiality\n"), Some("none"));
        assert_eq!(chosen("none integrity [confidentiality]\n"), Some("confidentiality"));
        assert_eq!(chosen(""), None);
    }
}
