//! Which records are shown. Pure, except that a namespace is looked up once.

use std::{
    fs::File,
    io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use handshake_common::{Role, Stage};
use ipnet::IpNet;
use thiserror::Error;

use crate::{
    cgroup::Names,
    event::{ConnectionEvent, ConnectionId},
    host::NSFS_MAGIC,
    untrusted::Untrusted,
};

/// Why a text names no network namespace.
#[derive(Debug, Error)]
pub enum NetNsError {
    /// No inode has this number.
    #[error("inodes count from 1")]
    Zero,
    /// The file cannot be opened.
    #[error("no network namespace at {}: {error}; `ip netns list` names them", path.display())]
    Unreachable {
        /// Where it was looked for.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// Something else is there.
    #[error("{} is no network namespace", .0.display())]
    OtherFile(PathBuf),
}

/// A network namespace by its inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetNs(pub u32);

impl NetNs {
    /// Reads an inode, a path, or a name of `ip netns`.
    ///
    /// # Errors
    /// If there is no such namespace.
    pub fn parse(text: &str) -> Result<Self, NetNsError> {
        if let Ok(inode) = text.parse() {
            return if inode == 0 { Err(NetNsError::Zero) } else { Ok(Self(inode)) };
        }
        let path = if text.contains('/') { text.into() } else { Path::new("/run/netns").join(text) };
        match network_namespace(&path) {
            Ok(Some(inode)) => Ok(Self(inode)),
            Ok(None) => Err(NetNsError::OtherFile(path)),
            Err(error) => Err(NetNsError::Unreachable { path, error }),
        }
    }
}

/// The inode of the network namespace at this path; `None` if something else is there.
fn network_namespace(path: &Path) -> io::Result<Option<u32>> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let is_namespace = rustix::fs::fstatfs(&file)?.f_type == NSFS_MAGIC;
    // SAFETY: the request takes no argument.
    let is_network =
        is_namespace && unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) } == libc::CLONE_NEWNET;
    let inode = file.metadata()?.ino();
    Ok(u32::try_from(inode).ok().filter(|_| is_network))
}

/// `include/uapi/linux/nsfs.h`: `_IO(0xb7, 0x3)`.
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;

/// Bytes of its name that the kernel keeps of a process: `TASK_COMM_LEN` less the zero at the end.
const COMM_BYTES: usize = 15;

/// A name as the kernel stores it: cut to 15 bytes, even in the middle of a character, just like in a record.
pub(crate) fn kept(comm: &str) -> Untrusted {
    Untrusted::from_bytes(&comm.as_bytes()[..comm.len().min(COMM_BYTES)])
}

/// Returns a note for the user if the name is longer than the kernel stores.
#[must_use]
pub fn note_on_comm(comm: &str) -> Option<String> {
    (comm.len() > COMM_BYTES).then(|| {
        let kept = kept(comm);
        format!(
            "--comm: the kernel keeps {COMM_BYTES} bytes of a name; shown are all processes called \"{kept}\""
        )
    })
}

/// All conditions must hold; a condition on an unknown value does not.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub(crate) ids: Vec<ConnectionId>,
    pub(crate) hosts: Vec<Untrusted>,
    pub(crate) ports: Vec<u16>,
    pub(crate) remotes: Vec<IpNet>,
    pub(crate) pid: Option<u32>,
    pub(crate) comm: Option<Untrusted>,
    pub(crate) role: Option<Role>,
    pub(crate) stage: Option<Stage>,
    pub(crate) slower_than: Option<Duration>,
    pub(crate) netns: Option<NetNs>,
    pub(crate) unit: Option<Untrusted>,
    /// The beginning of the id is enough.
    pub(crate) container: Option<Untrusted>,
    pub(crate) pod: Option<Untrusted>,
}

impl Filter {
    /// Whether to show the record.
    #[must_use]
    pub fn passes(&self, record: &ConnectionEvent) -> bool {
        let Self {
            ids,
            hosts,
            ports,
            remotes,
            pid,
            comm,
            role,
            stage,
            slower_than,
            netns,
            unit,
            container,
            pod,
        } = self;
        let process = record.process.as_ref();
        let names = process.map(|process| &process.names);
        let is = |wanted: &Option<Untrusted>, name: fn(&Names) -> &Option<Untrusted>| {
            wanted.is_none() || names.is_some_and(|names| name(names) == wanted)
        };
        let mut ends = [record.local, record.remote].into_iter().flatten();
        (ids.is_empty() || ids.contains(&record.id))
            && (hosts.is_empty() || record.host.as_ref().is_some_and(|host| hosts.contains(host)))
            && (ports.is_empty() || ends.any(|end| ports.contains(&end.port)))
            && (remotes.is_empty()
                || record
                    .remote
                    .and_then(|end| end.addr)
                    .is_some_and(|addr| remotes.iter().any(|net| addr.is_in(net))))
            && pid.is_none_or(|pid| process.is_some_and(|process| process.pid == pid))
            && comm
                .as_ref()
                .is_none_or(|comm| process.is_some_and(|process| process.comm.as_ref() == Some(comm)))
            && role.is_none_or(|role| record.role == Some(role))
            && stage.is_none_or(|stage| record.stage == stage)
            && slower_than.is_none_or(|least| record.duration().is_some_and(|took| took >= least))
            && netns.is_none_or(|netns| record.netns == Some(netns.0))
            && is(unit, |names| &names.unit)
            && is(pod, |names| &names.pod_uid)
            && container.as_ref().is_none_or(|wanted| {
                let id = names.and_then(|names| names.container_id.as_ref());
                id.is_some_and(|id| id.raw().starts_with(wanted.raw()))
            })
    }
}

#[cfg(test)]
mod tests {
    use handshake_common::Connection;

    use super::*;
    use crate::join::build::tests::{client, event};

    fn record() -> ConnectionEvent {
        let mut record = event(&client());
        let (container_id, pod_uid) = (Some("1f2e".into()), Some("8d7c".into()));
        record.host = Some("web-1".into());
        record.process.as_mut().unwrap().names =
            Names { unit: Some("web.service".into()), container_id, pod_uid };
        record
    }

    #[test]
    fn no_condition_passes_every_record() {
        assert!(Filter::default().passes(&record()));
    }

    #[test]
    fn each_condition_can_hold_and_fail() {
        let net = |text: &str| vec![text.parse().unwrap()];
        let both = [
            (
                Filter { ids: vec!["1".into(), record().id], ..Filter::default() },
                Filter { ids: vec!["1".into()], ..Filter::default() },
            ),
            (
                Filter { hosts: vec!["web-1".into()], ..Filter::default() },
                Filter { hosts: vec!["web".into()], ..Filter::default() },
            ),
            (
                Filter { ports: vec![443], ..Filter::default() },
                Filter { ports: vec![80], ..Filter::default() },
            ),
            (
                Filter { remotes: net("10.0.0.0/8"), ..Filter::default() },
                Filter { remotes: net("10.0.0.1/32"), ..Filter::default() },
            ),
            (Filter { pid: Some(1234), ..Filter::default() }, Filter { pid: Some(1), ..Filter::default() }),
            (
                Filter { comm: Some("curl".into()), ..Filter::default() },
                Filter { comm: Some("cur".into()), ..Filter::default() },
            ),
            (
                Filter { role: Some(Role::Client), ..Filter::default() },
                Filter { role: Some(Role::Server), ..Filter::default() },
            ),
            (
                Filter { stage: Some(Stage::Open), ..Filter::default() },
                Filter { stage: Some(Stage::Close), ..Filter::default() },
            ),
            (
                Filter { slower_than: Some(Duration::from_millis(50)), ..Filter::default() },
                Filter { slower_than: Some(Duration::from_millis(51)), ..Filter::default() },
            ),
            (
                Filter { netns: Some(NetNs(4_026_531_840)), ..Filter::default() },
                Filter { netns: Some(NetNs(1)), ..Filter::default() },
            ),
            (
                Filter { unit: Some("web.service".into()), ..Filter::default() },
                Filter { unit: Some("web".into()), ..Filter::default() },
            ),
            (
                Filter { container: Some("1f".into()), ..Filter::default() },
                Filter { container: Some("2e".into()), ..Filter::default() },
            ),
            (
                Filter { pod: Some("8d7c".into()), ..Filter::default() },
                Filter { pod: Some("8d".into()), ..Filter::default() },
            ),
        ];
        for (holds, fails) in both {
            assert!(holds.passes(&record()), "{holds:?}");
            assert!(!fails.passes(&record()), "{fails:?}");
        }
    }

    #[test]
    fn unknown_value_does_not_pass() {
        let mut unknown = record();
        (unknown.process, unknown.host) = (None, None);
        assert!(!Filter { hosts: vec!["web-1".into()], ..Filter::default() }.passes(&unknown));
        assert!(!Filter { pid: Some(1234), ..Filter::default() }.passes(&unknown));
        assert!(!Filter { container: Some("".into()), ..Filter::default() }.passes(&unknown));
        unknown.open.as_mut().unwrap().duration = None;
        assert!(!Filter { slower_than: Some(Duration::ZERO), ..Filter::default() }.passes(&unknown));
    }

    #[test]
    fn namespaces_by_inode_path_and_name() {
        assert_eq!(NetNs::parse("4026531840").unwrap(), NetNs(4_026_531_840));
        assert!(NetNs::parse("/proc/self/ns/net").is_ok());
        assert!(NetNs::parse("no-such-namespace").unwrap_err().to_string().contains("ip netns list"));
    }

    #[test]
    fn other_files_are_no_network_namespace() {
        for other in ["/proc/self/ns/mnt", "/proc/self/maps", "/", "/dev/null"] {
            assert!(
                NetNs::parse(other).unwrap_err().to_string().contains("is no network namespace"),
                "{other}"
            );
        }
        assert!(NetNs::parse("0").is_err());
    }

    #[test]
    fn long_name_matches_as_the_kernel_stores_it() {
        let process = |comm: &[u8; 16]| {
            let raw = Connection { comm: *comm, ..client() };
            event(&raw)
        };
        let filter = |comm: &str| Filter { comm: Some(kept(comm)), ..Filter::default() };
        assert!(filter("a-program-with-a-long-name").passes(&process(b"a-program-with-\0")));
        assert!(!filter("a-program-with-a-long-name").passes(&process(b"a-program-with\0\0")));
        assert!(filter("a-program-with\u{e9}").passes(&process(b"a-program-with\xc3\0")), "cut in two");
        assert!(note_on_comm("a-program-with-a-long-name").unwrap().contains("\"a-program-with-\""));
        assert_eq!(note_on_comm("fifteen-bytes-x"), None);
    }
}
