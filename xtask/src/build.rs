//! `cargo xtask build`: the eBPF object, then the program that embeds it.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    process::{self, step},
    setup::{self, Ready},
    target::Target,
    tools,
    workspace::{Profile, Workspace},
};

/// Build both sides: target/release/handshake, one file with the eBPF object inside
///
/// Installs what is missing first. The kernel side is always optimized: otherwise the verifier rejects it.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask build\n  \
        cargo xtask build --debug    # target/debug/handshake, compiles faster\n  \
        cargo xtask build --target aarch64-unknown-linux-musl")]
pub(crate) struct Args {
    /// Build user space without optimization
    #[arg(long)]
    debug: bool,
    /// A static binary for this target, in target/TARGET/release
    #[arg(long)]
    target: Option<Target>,
}

pub(crate) fn main(args: &Args) -> Result<()> {
    let workspace = Workspace::locate()?;
    let profile = if args.debug { Profile::Debug } else { Profile::Release };
    let ready = setup::ensure(&workspace)?;
    let binary = match args.target {
        None => both(&workspace, &ready, profile)?,
        Some(target) => both_for(&workspace, &ready, profile, target)?,
    };
    step(format!("built {}", binary.display()));
    Ok(())
}

/// Builds both sides and returns the path of the program.
pub(crate) fn both(workspace: &Workspace, ready: &Ready, profile: Profile) -> Result<PathBuf> {
    let object = ebpf(workspace, ready)?;
    user(workspace, ready, &object, profile, None)
}

/// The same for another target: static.
pub(crate) fn both_for(
    workspace: &Workspace,
    ready: &Ready,
    profile: Profile,
    target: Target,
) -> Result<PathBuf> {
    target.ensure(&ready.toolchain)?;
    let object = ebpf_for(workspace, ready, target.arch())?;
    user(workspace, ready, &object, profile, Some(target))
}

/// Builds the eBPF object for this machine and returns its path.
pub(crate) fn ebpf(workspace: &Workspace, ready: &Ready) -> Result<PathBuf> {
    ebpf_for(workspace, ready, ready.toolchain.bpf_target_arch())
}

/// The same for any processor, by aya-ebpf's name.
pub(crate) fn ebpf_for(workspace: &Workspace, ready: &Ready, arch: &str) -> Result<PathBuf> {
    let mut cargo = ebpf_cargo(workspace, ready, arch, "build")?;
    let built = executable(cargo.args(ebpf_arguments(ready)), "building the kernel side")?;
    // A name that does not depend on the machine (also in `.cargo/config.toml`).
    let object = ebpf_target(workspace, ready, arch).join("handshake.bpf.o");
    copy_if_different(&built, &object)
        .with_context(|| format!("cannot copy {} to {}", built.display(), object.display()))?;
    Ok(object)
}

fn ebpf_target(workspace: &Workspace, ready: &Ready, arch: &str) -> PathBuf {
    if arch == ready.toolchain.bpf_target_arch() {
        workspace.ebpf_target()
    } else {
        workspace.ebpf_target_of(arch)
    }
}

/// A cargo for the kernel side on this processor, with its own compiler flags and target folder.
pub(crate) fn ebpf_cargo(
    workspace: &Workspace,
    ready: &Ready,
    arch: &str,
    subcommand: &str,
) -> Result<Command> {
    let mut flags = vec![
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // Instruction set v3 has 32-bit registers and all jumps: shorter programs. Every kernel with a BPF
        // ring buffer runs it.
        "-Ctarget-cpu=v3".to_owned(),
        format!("-Clinker={}", ready.linker.display()),
    ];
    flags.extend(remapped(workspace, ready)?);
    let mut cargo = process::cargo(workspace);
    cargo
        .arg(subcommand)
        // Some build scripts look for the linker there.
        .env("PATH", tools::path_with(&ready.linker)?)
        // RUSTFLAGS and cargo's configuration are meant for the host: this variable overrides them.
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        // -Z build-std on the stable compiler; no nightly is needed.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_DIR", ebpf_target(workspace, ready, arch));
    Ok(cargo)
}

pub(crate) fn ebpf_arguments(ready: &Ready) -> [&str; 8] {
    let target = ready.toolchain.ebpf_target();
    ["--package", "handshake-ebpf", "--profile", "ebpf", "--target", target, "-Z", "build-std=core"]
}

fn user(
    workspace: &Workspace,
    ready: &Ready,
    object: &Path,
    profile: Profile,
    target: Option<Target>,
) -> Result<PathBuf> {
    let mut cargo = process::cargo(workspace);
    cargo.args(["build", "--package", "handshake-user", "--bin", "handshake"]);
    if let Some(target) = target {
        cargo.args(["--target", target.triple()]).envs(target.variables());
        // What is given away says nothing of the folders that it was built in, and does not depend on them.
        cargo.env("CARGO_ENCODED_RUSTFLAGS", remapped(workspace, ready)?.join("\x1f"));
    }
    if profile == Profile::Release {
        cargo.arg("--release");
    }
    executable(cargo.env("HANDSHAKE_EBPF_OBJECT", object), "building user space")
}

/// The flags with which rustc names sources by folders that are the same everywhere. The last one that fits
/// counts.
fn remapped(workspace: &Workspace, ready: &Ready) -> Result<Vec<String>> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".cargo")));
    let home = home.context("cargo's folder is unknown: set HOME or CARGO_HOME")?;
    let folders = [
        (&home, "/cargo"),
        (&ready.toolchain.sysroot, "/rust"),
        (&workspace.root, "/handshake"),
        (&workspace.target, "/handshake/target"),
    ];
    Ok(folders.map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display())).to_vec())
}

/// The one program that this cargo builds.
fn executable(cargo: &mut Command, what: &str) -> Result<PathBuf> {
    let mut built = process::executables(cargo, what)?;
    match (built.pop(), built.is_empty()) {
        (Some(program), true) => Ok(program),
        (None, _) => bail!("{what}: cargo reports no program"),
        (Some(_), false) => bail!("{what}: cargo reports more than one program"),
    }
}

/// An unchanged object keeps its modification time, so that what includes it is not rebuilt.
fn copy_if_different(from: &Path, to: &Path) -> io::Result<()> {
    let content = fs::read(from)?;
    if fs::read(to).is_ok_and(|old| old == content) {
        return Ok(());
    }
    // Atomically: a compiler running at this moment reads either the old object or the new one.
    let partial = to.with_extension("partial");
    fs::write(&partial, content)?;
    fs::rename(partial, to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unchanged_object_keeps_its_modification_time() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("a.o"), folder.path().join("b.o"));
        fs::write(&from, "one").unwrap();
        copy_if_different(&from, &to).unwrap();
        let before = fs::metadata(&to).unwrap().modified().unwrap();
        copy_if_different(&from, &to).unwrap();
        assert_eq!(fs::metadata(&to).unwrap().modified().unwrap(), before);
        fs::write(&from, "two").unwrap();
        copy_if_different(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(&to).unwrap(), "two");
    }
}
