//! The programs of the wire view, and how much of the host they see.

use std::fs::File;

use aya::{
    Ebpf,
    programs::{CgroupAttachMode, CgroupSkb, CgroupSkbAttachType},
};

use super::{error::HookError, load::load as load_program};
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

/// Both programs, and the direction of the packets that each sees.
const PROGRAMS: [(&str, CgroupSkbAttachType); 2] =
    [("wire_egress", CgroupSkbAttachType::Egress), ("wire_ingress", CgroupSkbAttachType::Ingress)];

/// Loads both programs.
///
/// # Errors
/// Why the kernel refuses them.
pub(super) fn load(ebpf: &mut Ebpf) -> Result<(), HookError> {
    for (name, _) in PROGRAMS {
        let program = program(ebpf, name)?;
        load_program(|| program.load()).map_err(|error| HookError::refused(name, error))?;
    }
    Ok(())
}

/// Attaches them to the root of cgroup v2, which every socket of the host is below; in a container that has a
/// hierarchy of its own, to the root of that.
///
/// # Errors
/// Why that is not possible.
pub(super) fn attach(ebpf: &mut Ebpf, wire: TlsWire) -> Result<WireView, HookError> {
    let cgroup2 = host::cgroup2().ok_or(HookError::NoCgroup2)?;
    let mount = &cgroup2.mount;
    let root = File::open(mount).map_err(|error| HookError::Cgroup2 { mount: mount.clone(), error })?;
    for (name, direction) in PROGRAMS {
        // A link stands beside other programs, whatever the mode.
        let attached = program(ebpf, name)?.attach(&root, direction, CgroupAttachMode::Single);
        attached.map_err(|error| HookError::refused(name, error))?;
    }
    let coverage = if cgroup2.is_whole { wire.into() } else { WireCoverage::Some };
    Ok(WireView { coverage, shortfall: cgroup2.shortfall() })
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut CgroupSkb, HookError> {
    ebpf.program_mut(name).ok_or(HookError::NoProgram)?.try_into().map_err(|_| HookError::OtherType)
}
