//! What the kernel says of itself, read once per run.

use std::path::Path;

use aya::Endianness;
use handshake_common::Layout;

use super::{
    error::LoadError,
    hook::Hook,
    plan::{Offer, Planned, plan},
};
use crate::{
    bounded,
    kernel::btf::{self, Audit, Btf, Prototype, PrototypeError},
    settings::AttachMode,
};

/// Where tracefs is mounted: by systemd, or inside debugfs on older systems.
const TRACEFS: &[&str] = &["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// The kernel's type information, parsed once for us and once for the eBPF loader, which does not say where
/// members are.
pub struct Kernel {
    btf: Btf,
    loader_btf: aya::Btf,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel").finish_non_exhaustive()
    }
}

impl Kernel {
    /// Reads the kernel's type information.
    ///
    /// # Errors
    /// When there is none, or it is damaged.
    pub fn read() -> Result<Self, LoadError> {
        let bytes = bounded::read(btf::PATH, bounded::KERNEL_BTF).map_err(LoadError::NoBtf)?;
        let loader_btf = aya::Btf::parse(&bytes, Endianness::default()).map_err(LoadError::Types)?;
        Ok(Self { btf: Btf::from_bytes(bytes).map_err(LoadError::Layout)?, loader_btf })
    }

    /// The structure members that the programs read, and those of them that are missing.
    #[must_use]
    pub fn audit(&self) -> Audit {
        btf::audit(&self.btf)
    }

    /// Where the structure members are that the programs read.
    ///
    /// # Errors
    /// When one is missing.
    pub fn layout(&self) -> Result<Layout, LoadError> {
        btf::layout(&self.btf).map_err(LoadError::Layout)
    }

    /// The type information in the form of the eBPF loader.
    #[must_use]
    pub const fn loader_btf(&self) -> &aya::Btf {
        &self.loader_btf
    }

    /// The number of parameters of a function, if it is the one that is expected.
    ///
    /// # Errors
    /// How it differs.
    pub fn arity_of(&self, prototype: &Prototype) -> Result<u32, PrototypeError> {
        btf::arity_of(&self.btf, prototype)
    }

    /// What would be attached in this mode.
    #[must_use]
    pub fn plan(&self, mode: AttachMode) -> Vec<Planned> {
        plan(mode, |hook| Offer {
            typed: btf::has_tracepoint(&self.btf, hook.name),
            format: perf_format(hook),
        })
    }
}

/// The `format` file of a perf tracepoint. Returns `None` if it cannot be read.
fn perf_format(hook: &Hook) -> Option<String> {
    TRACEFS.iter().find_map(|root| {
        let format = Path::new(root).join("events").join(hook.category).join(hook.name).join("format");
        bounded::read_to_string(format, bounded::SMALL).ok()
    })
}
