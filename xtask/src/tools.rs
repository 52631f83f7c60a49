//! Cargo's own extensions in the versions this workspace needs, built once into `target/tools`.

use std::{
    env,
    ffi::OsString,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};

use crate::{
    process::{self, step},
    workspace::Workspace,
};

/// A subcommand of cargo.
pub(crate) struct Tool {
    /// The crate, which is also the program.
    pub(crate) name: &'static str,
    pub(crate) version: &'static str,
    /// More arguments for `cargo install`.
    pub(crate) arguments: &'static [&'static str],
    /// What it is for, and how long building it takes.
    pub(crate) purpose: &'static str,
}

impl Tool {
    /// Installs it unless it is there. Returns its path.
    pub(crate) fn ensure(&self, workspace: &Workspace) -> Result<PathBuf> {
        let program = workspace.tools().join("bin").join(self.name);
        if self.is_installed(&program) {
            return Ok(program);
        }
        // Two terminals, one installation.
        let _lock = lock(workspace)?;
        if !self.is_installed(&program) {
            step(format!("building {} {} into target/tools: {}", self.name, self.version, self.purpose));
            let mut cargo = install(workspace, self.name, self.version)?;
            run_install(workspace, cargo.args(self.arguments), self.name)?;
        }
        Ok(program)
    }

    fn is_installed(&self, program: &Path) -> bool {
        let subcommand = self.name.trim_start_matches("cargo-");
        let output = Command::new(program).args([subcommand, "--version"]).stdin(Stdio::null()).output();
        output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).trim().ends_with(self.version))
    }
}

/// `cargo install` into `target/tools`.
pub(crate) fn install(workspace: &Workspace, name: &str, version: &str) -> Result<Command> {
    let mut cargo = process::cargo(workspace);
    cargo
        .args(["install", name, "--version", version, "--locked", "--force", "--root"])
        .arg(workspace.tools())
        // Otherwise cargo advises adding that folder to PATH, which nobody needs.
        .env("PATH", path_with(&workspace.tools().join("bin").join(name))?)
        .env("CARGO_TARGET_DIR", workspace.tools().join("build"));
    Ok(cargo)
}

pub(crate) fn run_install(workspace: &Workspace, cargo: &mut Command, name: &str) -> Result<()> {
    process::run(
        cargo,
        &format!("building {name}"),
        "see cargo's message above; is the network up, and is there a C compiler (`cc`)?",
    )?;
    // Only the program is needed from now on.
    fs::remove_dir_all(workspace.tools().join("build")).ok();
    Ok(())
}

/// Waits until no other xtask is installing tools.
pub(crate) fn lock(workspace: &Workspace) -> Result<File> {
    let path = workspace.tools().join("lock");
    let lock =
        fs::create_dir_all(workspace.tools()).and_then(|()| File::create(&path)).with_context(|| {
            format!(
                "cannot create {}: if an earlier `sudo cargo` left the folder to root, \
             `sudo chown -R $USER target` gives it back",
                path.display()
            )
        })?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => {
            step("waiting for another `cargo xtask` that is installing tools");
            lock.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        }
        Err(fs::TryLockError::Error(err)) => {
            return Err(err)
                .with_context(|| format!("cannot lock {}: is it on a network disk?", path.display()));
        }
    }
    Ok(lock)
}

/// PATH with this program's folder in front.
pub(crate) fn path_with(program: &Path) -> Result<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folder = program.parent().map(Path::to_path_buf);
    env::join_paths(folder.into_iter().chain(env::split_paths(&path)))
        .context("the workspace's path contains a colon, which PATH cannot hold: move the workspace")
}
