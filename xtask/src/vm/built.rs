//! What a virtual machine needs of this workspace: the static program, its tests, and what they start.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::{
    build, peers,
    process::{self, step},
    setup::Ready,
    target::Target,
    workspace::Workspace,
};

/// Emulation is slow, and so is a build with all optimizations: the program of these machines has some. What
/// the build itself runs is shared with other builds.
const PROFILE: [(&str, &str); 4] = [
    ("CARGO_PROFILE_DEV_OPT_LEVEL", "1"),
    ("CARGO_PROFILE_DEV_DEBUG", "none"),
    ("CARGO_PROFILE_DEV_STRIP", "debuginfo"),
    ("CARGO_INCREMENTAL", "0"),
];

/// What this workspace builds for the machines of one processor.
pub(super) struct Built {
    /// The program under test.
    pub(super) binary: PathBuf,
    /// The tests, by their names.
    pub(super) netns: PathBuf,
    pub(super) discover: PathBuf,
    pub(super) daemon: PathBuf,
    /// A program that the tests start.
    pub(super) example: PathBuf,
    /// Go's programs and the releases of OpenSSL.
    pub(super) peers: PathBuf,
}

impl Built {
    /// The standard library of the target must be there.
    pub(super) fn make(workspace: &Workspace, ready: &Ready, target: Target) -> Result<Self> {
        let object = build::ebpf_for(workspace, ready, target.arch())?;
        let cargo = |arguments: &[&str]| {
            let mut cargo = process::cargo(workspace);
            cargo
                .args(arguments)
                .args(["--package", "handshake-user", "--target", target.triple()])
                .envs(target.variables())
                .envs(target.c_compiler())
                .envs(PROFILE)
                .env("HANDSHAKE_EBPF_OBJECT", &object);
            process::executables(&mut cargo, "building the tests for virtual machines")
        };
        step(format!("vm: building the program and its tests for {target}"));
        let tests = ["test", "--no-run", "--test", "netns", "--test", "discover", "--test", "daemon"];
        let built = [cargo(&tests)?, cargo(&["build", "--example", "rustls-peer"])?].concat();
        let named = |name: &str| {
            let is = |path: &&PathBuf| {
                let file = path.file_name().unwrap_or_default().to_string_lossy();
                file == name || file.strip_prefix(name).is_some_and(|hash| hash.starts_with('-'))
            };
            built.iter().find(is).cloned().with_context(|| format!("cargo has not built {name}"))
        };
        let peers = workspace.target.join(target.triple()).join("tools/peers");
        peers::ensure_for(workspace, &peers, Some(target))?;
        Ok(Self {
            binary: named("handshake")?,
            netns: named("netns")?,
            discover: named("discover")?,
            daemon: named("daemon")?,
            example: named("rustls-peer")?,
            peers,
        })
    }
}
