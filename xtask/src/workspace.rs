//! Where things lie in this workspace.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

#[derive(Debug, Clone)]
pub(crate) struct Workspace {
    /// The folder of the top `Cargo.toml`.
    pub(crate) root: PathBuf,
    /// Cargo's target folder.
    pub(crate) target: PathBuf,
}

impl Workspace {
    pub(crate) fn locate() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context(
                "xtask has no parent folder: was the workspace moved? rebuild with `cargo xtask --help`",
            )?
            .to_path_buf();
        let target = match env::var_os("CARGO_TARGET_DIR") {
            Some(dir) => env::current_dir()
                .context("the current folder cannot be read: was it deleted? change to another one")?
                .join(dir),
            None => root.join("target"),
        };
        Ok(Self { root, target })
    }

    /// Private tools: nothing of them is needed outside this workspace.
    pub(crate) fn tools(&self) -> PathBuf {
        self.target.join("tools")
    }

    /// The target folder of the eBPF side. One of its own: other flags must not rebuild the user side.
    pub(crate) fn ebpf_target(&self) -> PathBuf {
        self.target.join("ebpf")
    }

    /// The eBPF object under a name that does not depend on the machine (`.cargo/config.toml` has it too).
    pub(crate) fn ebpf_object(&self) -> PathBuf {
        self.ebpf_target().join("handshake.bpf.o")
    }

    /// The finished program.
    pub(crate) fn binary(&self, profile: Profile) -> PathBuf {
        self.target.join(profile.folder()).join("handshake")
    }
}

/// How the user side is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    Release,
    Debug,
}

impl Profile {
    fn folder(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Debug => "debug",
        }
    }
}
