//! What connections are grouped by.

use std::fmt;

use clap::ValueEnum;
use handshake_common::Role;
use ipnet::IpNet;

use crate::{event::ConnectionEvent, untrusted::Untrusted};

/// Longest name of a group, bytes: a server name has 253 (RFC 1035 §2.3.4), a process 15.
const MAX_NAME: usize = 255;

/// Which property makes connections belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Grouping {
    /// The name of the process: processes with the same name are one group.
    Process,
    /// Server: the port. Client: the port of the peer, and the name that the client asked for by SNI.
    Service,
    /// The network of the peer.
    Network,
}

impl Grouping {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Process, Self::Service, Self::Network];

    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Service => "service",
            Self::Network => "network",
        }
    }
}

/// The connections that have a property, and in which this host has one role. `None` is unknown.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group {
    /// The property.
    pub what: What,
    /// The role of this host: the two are not comparable.
    pub role: Option<Role>,
}

/// A property that connections share. `None` is unknown.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// The name of the process.
    Process(Option<Untrusted>),
    /// What is served.
    Service {
        /// The server name that the client asked for, in small letters: equal whatever the case (RFC 6066
        /// §3). Not told of a server: its clients choose it.
        name: Option<Untrusted>,
        /// The server's port.
        port: Option<u16>,
    },
    /// The network of the peer.
    Network(Option<IpNet>),
}

impl Group {
    /// The group of an event.
    #[must_use]
    pub fn of(event: &ConnectionEvent, grouping: Grouping, networks: (u8, u8)) -> Self {
        let what = match grouping {
            Grouping::Process => {
                What::Process(event.process.as_ref().and_then(|process| process.comm.as_ref()).map(kept))
            }
            Grouping::Service => service(event),
            Grouping::Network => {
                let addr = event.remote.and_then(|end| end.addr);
                What::Network(addr.and_then(|addr| addr.network(networks)))
            }
        };
        Self { what, role: event.role }
    }

    /// Whether this group says less of the connection than the other: a later event may.
    pub(super) fn is_vaguer_than(&self, other: &Self) -> bool {
        let known = |what: &What| match what {
            What::Process(name) => u8::from(name.is_some()),
            What::Service { name, port } => u8::from(name.is_some()) + u8::from(port.is_some()),
            What::Network(network) => u8::from(network.is_some()),
        };
        let known = |group: &Self| (known(&group.what), group.role.is_some());
        known(self) < known(other)
    }
}

/// `?` is unknown; names are escaped.
impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(Some(name)) => f.pad(&name.to_string()),
            Self::Service { name, port } => {
                let name = name.as_ref().map(Untrusted::to_string).unwrap_or_default();
                let port = port.map_or_else(|| "?".to_owned(), |port| port.to_string());
                f.pad(&format!("{name}:{port}"))
            }
            Self::Network(Some(network)) => f.pad(&network.to_string()),
            Self::Process(None) | Self::Network(None) => f.pad("?"),
        }
    }
}

fn service(event: &ConnectionEvent) -> What {
    let end = match event.role {
        Some(Role::Client) => event.remote,
        Some(Role::Server) => event.local,
        None => None,
    };
    let sni = event.tls.as_ref().and_then(|tls| tls.sni.as_ref());
    let name = sni.filter(|_| event.role == Some(Role::Client)).map(lower);
    What::Service { name, port: end.map(|end| end.port) }
}

fn lower(name: &Untrusted) -> Untrusted {
    kept(&Untrusted::from(name.raw().to_ascii_lowercase()))
}

/// As much of a name as is kept; records that this program did not write may have longer ones.
fn kept(name: &Untrusted) -> Untrusted {
    let raw = name.raw();
    let end = (0..=raw.len().min(MAX_NAME)).rev().find(|&end| raw.is_char_boundary(end)).unwrap_or(0);
    if end == raw.len() { name.clone() } else { Untrusted::from(&raw[..end]) }
}
