//! Where things are in this workspace, as cargo knows it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use cargo_metadata::{MetadataCommand, Package};

#[derive(Debug, Clone)]
pub(crate) struct Workspace {
    /// The folder of the top `Cargo.toml`.
    pub(crate) root: PathBuf,
    /// Cargo's target folder.
    pub(crate) target: PathBuf,
    pub(crate) packages: Vec<Package>,
}

impl Workspace {
    pub(crate) fn locate() -> Result<Self> {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("Cargo.toml");
        let metadata = MetadataCommand::new().manifest_path(manifest).no_deps().exec().context(
            "`cargo metadata` failed; if the workspace has moved, rebuild xtask with `cargo xtask --help`",
        )?;
        Ok(Self {
            root: metadata.workspace_root.into(),
            target: metadata.target_directory.into(),
            packages: metadata.packages,
        })
    }

    /// Private tools: nothing outside this workspace needs them.
    pub(crate) fn tools(&self) -> PathBuf {
        self.target.join("tools")
    }

    /// The target folder of the kernel side, which has other compiler flags: sharing one would rebuild user
    /// space.
    pub(crate) fn ebpf_target(&self) -> PathBuf {
        self.target.join("ebpf")
    }

    /// The same for another processor than the host's, for which the object differs.
    pub(crate) fn ebpf_target_of(&self, arch: &str) -> PathBuf {
        self.target.join(format!("ebpf-{arch}"))
    }
}

/// How user space is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    Release,
    Debug,
}
