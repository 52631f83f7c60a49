//! Labels on demand. Their values are unbounded, so the number of label sets is limited.

use handshake_common::Role;
use ipnet::IpNet;
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

use crate::{
    cgroup::Names,
    config::{self, Label},
    event::{ConnectionEvent, Process, Tls},
    untrusted::Untrusted,
};

/// What everything over the limit is counted under.
pub(super) const OTHER: &str = "other";
const UNKNOWN: &str = "unknown";
/// Longest value, characters: enough for the path of a container within a container.
const MAX_LEN: usize = 512;

/// The values of one connection that the labels ask for; the others are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Key {
    comm: Option<Untrusted>,
    port: Option<u16>,
    role: Option<Role>,
    network: Option<IpNet>,
    cgroup: Option<Untrusted>,
    sni: Sni,
    unit: Name,
    container_id: Name,
    pod_uid: Name,
}

/// Who a process belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
enum Name {
    #[default]
    Unknown,
    /// Its cgroup says that it belongs to none.
    None,
    Known(Untrusted),
}

impl Name {
    fn of(process: Option<&Process>, name: impl Fn(&Names) -> &Option<Untrusted>) -> Self {
        let Some(process) = process else { return Self::Unknown };
        let is_told = |cgroup: &Untrusted| cgroup.raw() != "/";
        match name(&process.names) {
            Some(name) => Self::Known(name.clone()),
            // At the root are those that no runtime has put anywhere, and with cgroup v1 all of them.
            None if process.names.is_empty() && !process.cgroup.as_ref().is_some_and(is_told) => {
                Self::Unknown
            }
            None => Self::None,
        }
    }

    fn value(&self) -> Option<String> {
        match self {
            Self::Unknown => None,
            Self::None => Some(String::new()),
            Self::Known(name) => Some(shown(name)),
        }
    }
}

/// Which server the client named.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
enum Sni {
    /// There was no TLS, or not yet.
    #[default]
    None,
    Unknown,
    /// In small letters: names are equal whatever the case (RFC 6066 §3).
    Name(Untrusted),
}

impl Sni {
    fn of(tls: Option<&Tls>) -> Self {
        let Some(tls) = tls else { return Self::None };
        tls.sni.as_ref().map_or(Self::Unknown, |sni| Self::Name(sni.raw().to_ascii_lowercase().into()))
    }
}

/// The labels that were asked for.
pub(super) struct Labels {
    wanted: Vec<Label>,
    remote_net: (u8, u8),
    overflow: Vec<IntCounter>,
}

impl Labels {
    /// Every label has its overflow counter from the start, asked for or not.
    pub(super) fn new(registry: &Registry, settings: &config::Metrics) -> prometheus::Result<Self> {
        let family = IntCounterVec::new(
            Opts::new(
                "handshake_label_overflow_total",
                "Observations whose label went to the value other, by label: the metric had max_series label sets.",
            ),
            &["label"],
        )?;
        registry.register(Box::new(family.clone()))?;
        for label in Label::ALL {
            family.with_label_values(&[label.as_str()]);
        }
        let wanted = settings.labels.clone();
        let overflow = wanted.iter().map(|label| family.with_label_values(&[label.as_str()])).collect();
        Ok(Self { wanted, remote_net: settings.remote_net, overflow })
    }

    /// Sets the prefix lengths of the networks of connections from now on.
    pub(super) const fn set_remote_net(&mut self, lengths: (u8, u8)) {
        self.remote_net = lengths;
    }

    /// Their names, in their order.
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.wanted.iter().map(|label| label.as_str())
    }

    /// Whether this label was asked for.
    pub(super) fn wants(&self, label: Label) -> bool {
        self.wanted.contains(&label)
    }

    /// What the labels need to know of an event. Returns `None` if no label was asked for.
    pub(super) fn key(&self, event: &ConnectionEvent) -> Option<Key> {
        if self.wanted.is_empty() {
            return None;
        }
        let process = event.process.as_ref();
        let mut key = Key::default();
        for label in &self.wanted {
            match label {
                Label::Process => key.comm = process.and_then(|process| process.comm.clone()),
                Label::LocalPort => {
                    key.role = event.counted_role();
                    let server = event.local.filter(|_| key.role == Some(Role::Server));
                    key.port = server.map(|end| end.port);
                }
                Label::RemoteNet => {
                    let addr = event.remote.and_then(|end| end.addr);
                    key.network = addr.and_then(|addr| addr.network(self.remote_net));
                }
                Label::Cgroup => key.cgroup = process.and_then(|process| process.cgroup.clone()),
                Label::Sni => key.sni = Sni::of(event.tls.as_ref()),
                Label::Unit => key.unit = Name::of(process, |names| &names.unit),
                Label::ContainerId => key.container_id = Name::of(process, |names| &names.container_id),
                Label::PodUid => key.pod_uid = Name::of(process, |names| &names.pod_uid),
            }
        }
        Some(key)
    }

    /// The label values of a key, in the order of the labels.
    pub(super) fn values(&self, key: &Key) -> Vec<String> {
        let value = |label: &Label| match label {
            Label::Process => key.comm.as_ref().map(shown),
            Label::LocalPort => match (key.port, key.role) {
                (Some(port), _) => Some(port.to_string()),
                // A client's port is arbitrary; an empty value is no label.
                (None, Some(_)) => Some(String::new()),
                (None, None) => None,
            },
            Label::RemoteNet => key.network.map(|network| network.to_string()),
            Label::Cgroup => key.cgroup.as_ref().map(shown),
            Label::Sni => match &key.sni {
                Sni::None => Some(String::new()),
                Sni::Unknown => None,
                Sni::Name(name) => Some(shown(name)),
            },
            Label::Unit => key.unit.value(),
            Label::ContainerId => key.container_id.value(),
            Label::PodUid => key.pod_uid.value(),
        };
        self.wanted.iter().map(|label| value(label).unwrap_or_else(|| UNKNOWN.to_owned())).collect()
    }

    /// Counts an observation that was over the limit.
    pub(super) fn overflowed(&self) {
        self.overflow.iter().for_each(IntCounter::inc);
    }
}

/// A name that a stranger chose, as a label's value.
pub(super) fn shown(value: &Untrusted) -> String {
    format!("{value:.MAX_LEN$}")
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use handshake_common::{Connection, Family, tls::library::session::Session};

    use super::*;
    use crate::{
        join::{
            build::tests::{client, event, tls_event},
            view::TlsView,
        },
        untrusted::{is_harmless, tests::HOSTILE},
    };

    fn labels(wanted: &[Label]) -> Labels {
        let settings = config::Metrics { labels: wanted.to_vec(), ..config::Config::default().metrics };
        Labels::new(&Registry::new(), &settings).unwrap()
    }

    fn values(raw: &Connection) -> Vec<String> {
        of(&event(raw))
    }

    fn of(event: &ConnectionEvent) -> Vec<String> {
        let labels = labels(Label::ALL);
        labels.values(&labels.key(event).unwrap())
    }

    #[test]
    fn client_has_no_local_port_label() {
        assert_eq!(
            values(&client()),
            ["curl", "", "10.0.0.0/24", "/system.slice/web.service", "", "web.service", "", ""]
        );
    }

    #[test]
    fn server_has_a_local_port_and_maybe_no_process() {
        let mut raw = client();
        raw.role = Role::Server.code();
        raw.family = Family::Ipv6.code();
        raw.remote = "2001:db8:1:2::3".parse::<Ipv6Addr>().unwrap().octets();
        (raw.local_port, raw.pid, raw.comm, raw.cgroup) = (443, 0, [0; 16], 0);
        assert_eq!(
            values(&raw),
            ["unknown", "443", "2001:db8:1::/48", "unknown", "", "unknown", "unknown", "unknown"]
        );
    }

    #[test]
    fn local_port_of_a_preexisting_connection_is_unknown() {
        let mut raw = client();
        raw.role = 0;
        assert_eq!(values(&raw)[1], "unknown");
    }

    #[test]
    fn server_name_is_lower_case_or_unknown() {
        let with = |sni: Option<&str>| {
            let tls = TlsView { sni: sni.map(str::to_owned), ..TlsView::of_library(&Session::default()) };
            of(&tls_event(&client(), &tls))[4].clone()
        };
        assert_eq!([with(Some("Example.ORG")), with(None)], ["example.org", "unknown"]);
    }

    #[test]
    fn untrusted_names_are_escaped_and_bounded() {
        let mut raw = client();
        raw.comm = *b"\x1b[2J\xff\n} 1\0\0\0\0\0\0\0";
        let tls = TlsView { sni: Some(HOSTILE.repeat(99)), ..TlsView::of_library(&Session::default()) };
        let values = of(&tls_event(&raw, &tls));
        assert_eq!(values[0], r"\x1b[2J\xff\n} 1");
        for value in values {
            assert!(value.chars().all(is_harmless) && value.chars().count() <= MAX_LEN, "{value:?}");
        }
    }

    #[test]
    fn names_are_empty_where_the_cgroup_has_none_and_unknown_without_it() {
        let mut event = event(&client());
        let with = |event: &ConnectionEvent| of(event)[5..].to_vec();
        let process = event.process.as_mut().unwrap();
        (process.cgroup, process.names) = (None, Names::default());
        assert_eq!(with(&event), ["unknown"; 3]);
        event.process.as_mut().unwrap().cgroup = Some("/".into());
        assert_eq!(with(&event), ["unknown"; 3]);
        event.process.as_mut().unwrap().cgroup = Some("/work".into());
        assert_eq!(with(&event), ["", "", ""]);
        let (container_id, pod_uid) = (Some("1f".into()), Some("2e".into()));
        event.process.as_mut().unwrap().names = Names { unit: None, container_id, pod_uid };
        assert_eq!(with(&event), ["", "1f", "2e"]);
    }

    #[test]
    fn no_labels_no_key() {
        assert_eq!(labels(&[]).key(&event(&client())), None);
    }
}
