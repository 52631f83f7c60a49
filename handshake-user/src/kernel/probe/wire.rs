//! The program of the wire view, and how much of the host it sees.

use std::fs::File;

use aya::{
    Ebpf,
    programs::{CgroupAttachMode, CgroupSkb, CgroupSkbAttachType},
};

use super::{
    error::HookError,
    program::{Job, Kind},
};
use crate::{host, settings::TlsWire};

/// Which TLS handshakes the wire view reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WireCoverage {
    /// None.
    #[default]
    None,
    /// Some.
    Some,
    /// All, so a connection without a TLS handshake on the wire had none.
    All,
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

/// What the wire view sees.
#[derive(Debug, Default)]
pub(super) struct WireView {
    pub(super) coverage: WireCoverage,
    /// What is out of sight because of where this program runs, for people.
    pub(super) shortfall: Option<String>,
}

const PROGRAM: &str = "tls_wire";

/// What is to be loaded.
pub(super) fn job() -> Job {
    Job { name: PROGRAM.to_owned(), kind: Kind::Packets }
}

/// Attaches it to both directions of the root of cgroup v2, which every socket of the host is below; in a
/// container that has a hierarchy of its own, to the root of that.
///
/// # Errors
/// Why that is not possible.
pub(super) fn attach(ebpf: &mut Ebpf, wire: TlsWire) -> Result<WireView, HookError> {
    let cgroup2 = host::cgroup2().ok_or(HookError::NoCgroup2)?;
    let mount = &cgroup2.mount;
    let root = File::open(mount).map_err(|error| HookError::Cgroup2 { mount: mount.clone(), error })?;
    let program: &mut CgroupSkb = ebpf
        .program_mut(PROGRAM)
        .ok_or(HookError::NoProgram)?
        .try_into()
        .map_err(|_| HookError::OtherType)?;
    for direction in [CgroupSkbAttachType::Egress, CgroupSkbAttachType::Ingress] {
        // A link stands beside other programs, whatever the mode.
        let attached = program.attach(&root, direction, CgroupAttachMode::Single);
        attached.map_err(|error| HookError::refused(PROGRAM, error))?;
    }
    let coverage = if cgroup2.is_whole { wire.into() } else { WireCoverage::Some };
    Ok(WireView { coverage, shortfall: cgroup2.shortfall() })
}
