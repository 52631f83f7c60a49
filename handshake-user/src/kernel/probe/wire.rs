//! The wire view: which handshakes' packets are looked at, and the programs that look at them.

use std::{fs::File, str::FromStr};

use aya::{
    Ebpf,
    programs::{CgroupAttachMode, CgroupSkb, CgroupSkbAttachType},
};
use handshake_common::tls::wire::raw::MAX_PORTS;
use serde::Deserialize;

use super::{attach::told, plan::Hook};
use crate::{host, join::WireCoverage};

/// The type of both programs.
pub(crate) const CATEGORY: &str = "cgroup_skb";

/// The hook that both programs are.
pub static HOOK: Hook = Hook {
    name: "tls_wire",
    category: CATEGORY,
    required: false,
    lost_without: "TLS handshakes of programs whose library is not known; server names, HelloRetryRequests and a \
                   ClientHello in the SYN",
    perf_fields: &[],
};

/// Which handshakes are looked at on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum TlsWire {
    /// None.
    Off,
    /// All.
    #[default]
    On,
    /// Those with one of these ports at either end; 0 is none.
    Ports([u16; MAX_PORTS]),
}

impl TlsWire {
    /// The ports, as the kernel side has them: all zero for every port.
    #[must_use]
    pub const fn ports(self) -> [u16; MAX_PORTS] {
        match self {
            Self::Ports(ports) => ports,
            Self::Off | Self::On => [0; MAX_PORTS],
        }
    }
}

impl From<TlsWire> for WireCoverage {
    fn from(wire: TlsWire) -> Self {
        match wire {
            TlsWire::Off => Self::None,
            TlsWire::On => Self::All,
            TlsWire::Ports(_) => Self::Some,
        }
    }
}

impl FromStr for TlsWire {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "on" => return Ok(Self::On),
            "off" => return Ok(Self::Off),
            _ => {}
        }
        let list = text.strip_prefix("ports").unwrap_or(text);
        let mut ports = [0; MAX_PORTS];
        let mut slots = ports.iter_mut();
        for word in list.split(',') {
            let slot =
                slots.next().ok_or_else(|| format!("more than {MAX_PORTS} ports; write on for all"))?;
            *slot = match word.trim().parse() {
                Ok(port) if port > 0 => port,
                _ => return Err("neither on, off, nor ports such as 443,8443".to_owned()),
            };
        }
        Ok(Self::Ports(ports))
    }
}

impl TryFrom<String> for TlsWire {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// Both programs, and which way the packets go that they see.
const PROGRAMS: [(&str, CgroupSkbAttachType); 2] =
    [("wire_egress", CgroupSkbAttachType::Egress), ("wire_ingress", CgroupSkbAttachType::Ingress)];

/// Loads both programs.
///
/// # Errors
/// Why the kernel refuses them.
pub(super) fn load(ebpf: &mut Ebpf) -> Result<(), String> {
    for (name, _) in PROGRAMS {
        let program = program(ebpf, name)?;
        super::load(|| program.load()).map_err(|error| told(name, &error))?;
    }
    Ok(())
}

/// Attaches them to the root of cgroup v2, under which every socket of the host is; in a container that has a hierarchy of
/// its own, to the root of that. Returns what is seen there, and
/// what is not, in words.
///
/// # Errors
/// Why that is not possible.
pub(super) fn attach(ebpf: &mut Ebpf, wire: TlsWire) -> Result<(WireCoverage, Option<String>), String> {
    let cgroup2 = host::cgroup2().ok_or("cgroup v2 is not mounted (mount -t cgroup2 none /sys/fs/cgroup)")?;
    let mount = &cgroup2.mount;
    let root = File::open(mount).map_err(|error| format!("cannot open {}: {error}", mount.display()))?;
    for (name, direction) in PROGRAMS {
        // As a link it stands beside other programs, whatever the mode.
        let attached = program(ebpf, name)?.attach(&root, direction, CgroupAttachMode::Single);
        attached.map_err(|error| told(name, &error))?;
    }
    Ok((if cgroup2.is_whole { wire.into() } else { WireCoverage::Some }, cgroup2.shortfall()))
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut CgroupSkb, String> {
    let program = ebpf.program_mut(name).ok_or("the eBPF object lacks the program")?;
    program.try_into().map_err(|error| told(name, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_is_a_word_or_a_list_of_ports() {
        assert_eq!("on".parse(), Ok(TlsWire::On));
        assert_eq!("off".parse(), Ok(TlsWire::Off));
        for list in ["443,8443", "443, 8443", "ports 443,8443"] {
            let TlsWire::Ports(ports) = list.parse().unwrap() else { panic!("{list}") };
            assert_eq!(ports[..3], [443, 8443, 0]);
        }
        for bad in ["", "0", "https", "ports", "443,", "1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17"] {
            assert!(bad.parse::<TlsWire>().is_err(), "{bad}");
        }
    }
}
