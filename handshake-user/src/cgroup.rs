//! Who a process belongs to, by the path of its cgroup: the systemd unit, the container, the Kubernetes pod.
//! Pure.
//!
//! No runtime asks anybody for the name of a cgroup, so the shapes are those that systemd, the kubelet and
//! the container runtimes write:
//!
//! | who | path |
//! | --- | --- |
//! | systemd | `/system.slice/nginx.service`, `/user.slice/user-1000.slice/session-3.scope` |
//! | Docker | `/docker/ID`, `/system.slice/docker-ID.scope` |
//! | podman | `/machine.slice/libpod-ID.scope/container`, `/system.slice/web.service/libpod-payload-ID` |
//! | kubelet, systemd | `/kubepods.slice/…/kubepods-burstable-podUID.slice/cri-containerd-ID.scope` |
//! | kubelet, cgroupfs | `/kubepods/burstable/podUID/ID`, `/kubepods/burstable/podUID/crio-ID` |
//! | containerd, cgroupfs below the kubelet's systemd | `/…/kubepods-podUID.slice:cri-containerd:ID` |

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::untrusted::Untrusted;

/// Who a process belongs to. `None`: to none, or it is not known.
///
/// The container and the pod nearest to the root count: what is below them is in the hands of the container
/// itself, which could take any name there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Names {
    /// Unit of the host's systemd, as `systemctl status` takes it. A scope that is a container is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<Untrusted>,
    /// Id of the container: 64 hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_id: Option<Untrusted>,
    /// Kubernetes' uid of the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<Untrusted>,
}

impl Names {
    /// What the path of a cgroup says, of version 1 or 2.
    #[must_use]
    pub fn of(path: &str) -> Self {
        let mut names = Self { unit: unit(path).map(Untrusted::from), ..Self::default() };
        let mut in_kubepods = false;
        for part in path.split(['/', ':']) {
            if names.pod_uid.is_none() {
                names.pod_uid = pod_uid(part, in_kubepods).map(Untrusted::from);
            }
            if let Some(id) = container_id(part) {
                names.container_id = Some(id.into());
                break;
            }
            in_kubepods |= is_kubepods(part);
        }
        names
    }

    /// Whether it says nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The unit, as systemd itself reads a path (`cg_path_get_unit`): what follows the slices.
fn unit(path: &str) -> Option<&str> {
    /// `UNIT_NAME_MAX`.
    const MOST: usize = 255;
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    let first = parts.find(|part| part.strip_suffix(".slice").is_none())?;
    // systemd escapes a name that could be one of the kernel's own files.
    let name = first.strip_prefix('_').unwrap_or(first);
    let (stem, kind) = name.rsplit_once('.')?;
    let valid = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    let is_unit = matches!(kind, "service" | "scope" | "socket" | "mount" | "swap")
        && !stem.is_empty()
        && name.len() <= MOST
        && stem.chars().all(valid);
    (is_unit && container_id(name).is_none()).then_some(name)
}

/// The id in a part of the path such as `cri-containerd-ID.scope`, `libpod-ID` or `ID`.
fn container_id(part: &str) -> Option<&str> {
    const DIGITS: usize = 64;
    let part = part.strip_suffix(".scope").unwrap_or(part);
    let (prefix, id) = part.split_at_checked(part.len().checked_sub(DIGITS)?)?;
    let is_prefix = prefix.is_empty() || prefix.ends_with('-');
    // The monitor of a container bears its id, but is not in it.
    let is_monitor = prefix.ends_with("conmon-");
    (is_prefix && !is_monitor && id.bytes().all(is_hex)).then_some(id)
}

/// The kubelet's folder of all pods, or a part of it.
fn is_kubepods(part: &str) -> bool {
    let stem = part.strip_suffix(".slice").unwrap_or(part);
    stem.split('-').any(|word| word == "kubepods")
}

/// The uid in `podUID`, within the folder of all pods, or in `kubepods-burstable-podUID.slice`.
fn pod_uid(part: &str, in_kubepods: bool) -> Option<String> {
    if let Some(stem) = part.strip_suffix(".slice") {
        let (before, uid) = stem.rsplit_once("-pod")?;
        // In the name of a slice, a hyphen stands for a level of the tree.
        return Some(uid.replace('_', "-")).filter(|uid| is_kubepods(before) && is_uid(uid));
    }
    part.strip_prefix("pod").filter(|uid| in_kubepods && is_uid(uid)).map(str::to_owned)
}

/// A UUID; or, for a static pod, the hash of its file.
fn is_uid(text: &str) -> bool {
    let groups: Vec<_> = text.split('-').map(str::len).collect();
    matches!(groups[..], [8, 4, 4, 4, 12] | [32]) && text.bytes().all(|byte| byte == b'-' || is_hex(byte))
}

const fn is_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::untrusted::tests::HOSTILE;

    const ID: &str = "3f4e5d6c7b8a99887766554433221100ffeeddccbbaa99887766554433221100";
    const OTHER: &str = "00000000000000000000000000000000000000000000000000000000000000aa";
    const UID: &str = "8d7c6b5a-1234-4abc-9def-0123456789ab";
    const STATIC: &str = "0123456789abcdef0123456789abcdef";

    /// Unit, container and pod in the path, in which `ID`, `UID` and `U_D` are filled in.
    fn names(path: &str) -> [Option<String>; 3] {
        let path = path
            .replace("OTHER", OTHER)
            .replace("STATIC", STATIC)
            .replace("UID", UID)
            .replace("U_D", &UID.replace('-', "_"))
            .replace("ID", ID);
        let Names { unit, container_id, pod_uid } = Names::of(&path);
        [unit, container_id, pod_uid].map(|name| name.map(|name| name.raw().to_owned()))
    }

    #[track_caller]
    fn is(path: &str, unit: Option<&str>, container: Option<&str>, pod: Option<&str>) {
        assert_eq!(names(path), [unit, container, pod].map(|name| name.map(str::to_owned)), "{path}");
    }

    #[test]
    fn units_of_systemd_are_found() {
        for (path, unit) in [
            ("/system.slice/nginx.service", "nginx.service"),
            ("/system.slice/system-getty.slice/getty@tty1.service", "getty@tty1.service"),
            (
                r"/system.slice/system-serial\x2dgetty.slice/serial-getty@ttyS0.service",
                "serial-getty@ttyS0.service",
            ),
            ("/user.slice/user-1000.slice/session-3.scope", "session-3.scope"),
            ("/user.slice/user-1000.slice/user@1000.service/app.slice/web.service", "user@1000.service"),
            ("/init.scope", "init.scope"),
            ("/system.slice/docker.service", "docker.service"),
            ("/system.slice/_cpu.service", "cpu.service"),
            ("/system.slice/web.service/worker/3", "web.service"),
            (r"/machine.slice/systemd-nspawn@web.service/payload", "systemd-nspawn@web.service"),
        ] {
            is(path, Some(unit), None, None);
        }
    }

    #[test]
    fn containers_of_docker_and_podman_are_found() {
        for path in [
            "/docker/ID",
            "/system.slice/docker-ID.scope",
            "/user.slice/user-1000.slice/docker-ID.scope",
            "/a-parent-of-their-own/ID",
            "/default/ID",
            "/system.slice/nerdctl-ID.scope",
            "/machine.slice/libpod-ID.scope",
            "/machine.slice/libpod-ID.scope/container",
            "/machine.slice/machine-libpod_pod_OTHER.slice/libpod-ID.scope/container",
            "/libpod_parent/libpod-ID",
            "/docker/ID/system.slice/nginx.service",
            "/docker/ID/docker/OTHER",
            "/docker/ID/kubepods.slice/kubepods-podU_D.slice/cri-containerd-OTHER.scope",
        ] {
            is(path, None, Some(ID), None);
        }
        is("/system.slice/web.service/libpod-payload-ID", Some("web.service"), Some(ID), None);
        is(
            "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope/container",
            Some("user@1000.service"),
            Some(ID),
            None,
        );
    }

    #[test]
    fn pods_of_kubernetes_are_found() {
        for path in [
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podU_D.slice/cri-containerd-ID.scope",
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podU_D.slice/crio-ID.scope",
            "/kubepods.slice/kubepods-podU_D.slice/docker-ID.scope",
            "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podU_D.slice/cri-containerd-ID.scope",
            "/kubepods.slice/kubepods-podU_D.slice/crio-ID.scope/container",
            "/kubepods/burstable/podUID/ID",
            "/kubepods/podUID/ID",
            "/kubepods/besteffort/podUID/crio-ID",
            "/kubepods/besteffort/podUID/ID/docker/OTHER",
            "/kubepods-besteffort-podU_D.slice:cri-containerd:ID",
        ] {
            is(path, None, Some(ID), Some(UID));
        }
        is(
            "/system.slice/containerd.service/kubepods-besteffort-podU_D.slice:cri-containerd:ID",
            Some("containerd.service"),
            Some(ID),
            Some(UID),
        );
        is("/kubepods/burstable/podUID", None, None, Some(UID));
        is("/kubepods.slice/kubepods-podSTATIC.slice/crio-ID.scope", None, Some(ID), Some(STATIC));
    }

    #[test]
    fn what_only_looks_like_a_name_is_none() {
        for path in [
            "",
            "/",
            "//",
            "/system.slice",
            "/user.slice/user-1000.slice",
            "/sandbox/caaa89455a1dc49a63ac5a484ff24fef",
            "/podUID",
            "/slices/podUID",
            "/kubepods/podshort",
            "/kubepods/pod",
            "/kubepods.slice/kubepods-pod.slice",
            "/mykubepods.slice/mykubepods-podU_D.slice",
            "/system.slice/.service",
            "/system.slice/web.timer",
            "/system.slice/we b.service",
            "/system.slice/web\n.service",
            "/0::/",
        ] {
            is(path, None, None, None);
        }
        is(&format!("/docker/{}", ID.to_uppercase()), None, None, None);
        is(&format!("/docker/0{ID}"), None, None, None);
        is(&format!("/system.slice/{}.service", "a".repeat(250)), None, None, None);
        is("/machine.slice/libpod-conmon-ID.scope", Some(&format!("libpod-conmon-{ID}.scope")), None, None);
        is("/kubepods/podUID/crio-conmon-ID.scope", None, None, Some(UID));
    }

    fn is_well_formed(names: &Names) -> bool {
        let unit = names.unit.as_ref().is_none_or(|unit| unit.raw().len() <= 255 && unit.raw().is_ascii());
        let container =
            names.container_id.as_ref().is_none_or(|id| id.raw().len() == 64 && id.raw().bytes().all(is_hex));
        unit && container && names.pod_uid.as_ref().is_none_or(|uid| is_uid(uid.raw()))
    }

    #[test]
    fn hostile_names_are_none() {
        assert!(Names::of(&format!("/system.slice/{HOSTILE}.service")).is_empty());
        assert!(Names::of(&format!("/docker/{HOSTILE}{}", HOSTILE.repeat(9))).is_empty());
    }

    proptest! {
        #[test]
        fn names_of_any_path_are_well_formed(path in any::<String>()) {
            prop_assert!(is_well_formed(&Names::of(&path)));
        }

        /// Paths made of what the parser looks for, in any order.
        #[test]
        fn names_of_any_shape_are_well_formed_and_in_the_path(parts in prop::collection::vec(
            prop::sample::select(vec![
                "/", ":", "-", ".", "_", "pod", "kubepods", ".slice", ".scope", ".service", ID, UID, STATIC, "conmon", "é",
                "docker", "system", "\n",
            ]),
            0..24,
        )) {
            let path = parts.concat();
            let names = Names::of(&path);
            prop_assert!(is_well_formed(&names), "{path:?}: {names:?}");
            for name in [&names.unit, &names.container_id, &names.pod_uid].into_iter().flatten() {
                prop_assert!(path.replace('_', "-").contains(&name.raw().replace('_', "-")), "{path:?}: {name:?}");
            }
        }

        /// Whatever a container makes below its own cgroup.
        #[test]
        fn container_cannot_change_its_names_from_below(
            parts in prop::collection::vec(prop::sample::select(vec!["/", "-", "pod", "kubepods", ".slice", ".scope", OTHER, STATIC]), 0..12),
        ) {
            let own = format!("/kubepods/burstable/pod{UID}/{ID}");
            prop_assert_eq!(Names::of(&format!("{own}/{}", parts.concat())), Names::of(&own));
        }
    }
}
