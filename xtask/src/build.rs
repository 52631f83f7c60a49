//! `cargo xtask build`: the eBPF object, then the program that carries it inside.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    linker, process,
    process::step,
    setup::{self, Ready},
    workspace::{Profile, Workspace},
};

/// Build both sides: target/release/handshake, one file with the eBPF object inside
///
/// Installs what is missing first. The eBPF side is always optimized: the verifier wants it so.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  cargo xtask build\n  cargo xtask build --debug    # target/debug/handshake, compiles faster"
)]
pub(crate) struct Args {
    /// Build the user side without optimization
    #[arg(long)]
    debug: bool,
}

pub(crate) fn main(args: &Args) -> Result<()> {
    let workspace = Workspace::locate()?;
    let profile = if args.debug { Profile::Debug } else { Profile::Release };
    let ready = setup::ensure(&workspace)?;
    let binary = both(&workspace, &ready, profile)?;
    step(format!("built {}", binary.display()));
    Ok(())
}

/// The path of the finished program.
pub(crate) fn both(workspace: &Workspace, ready: &Ready, profile: Profile) -> Result<PathBuf> {
    let object = ebpf(workspace, ready)?;
    user(workspace, &object, profile)
}

/// Builds the eBPF object and hands back its path.
pub(crate) fn ebpf(workspace: &Workspace, ready: &Ready) -> Result<PathBuf> {
    if !workspace.ebpf_object().is_file() {
        step("building the eBPF side, and `core` for it (about half a minute the first time)");
    }
    process::run(
        ebpf_cargo(workspace, ready, "build")?.args(ebpf_arguments(ready)),
        "building the eBPF side",
        "see the compiler's messages above",
    )?;
    let built = workspace
        .ebpf_target()
        .join(ready.toolchain.version.ebpf_target())
        .join("ebpf")
        .join("handshake-ebpf");
    let object = workspace.ebpf_object();
    copy_if_different(&built, &object)
        .with_context(|| format!("cannot copy {} to {}", built.display(), object.display()))?;
    Ok(object)
}

/// A cargo for the eBPF side: its own compiler flags, in its own target folder.
pub(crate) fn ebpf_cargo(workspace: &Workspace, ready: &Ready, subcommand: &str) -> Result<Command> {
    let version = &ready.toolchain.version;
    let flags = [
        format!("--cfg=bpf_target_arch=\"{}\"", version.bpf_target_arch()),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // 32-bit registers and all jumps: shorter programs. Every kernel with a BPF ring buffer runs it.
        "-Ctarget-cpu=v3".to_owned(),
        format!("-Clinker={}", ready.linker.display()),
    ];
    let mut cargo = process::cargo(workspace);
    cargo
        .arg(subcommand)
        .env("PATH", linker::path_with(&ready.linker)?)
        // The flags of RUSTFLAGS and of cargo's configuration are for the host: this variable overrules them.
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        // -Z build-std on the stable compiler; no nightly is needed.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_DIR", workspace.ebpf_target());
    Ok(cargo)
}

pub(crate) fn ebpf_arguments(ready: &Ready) -> [&str; 8] {
    let target = ready.toolchain.version.ebpf_target();
    ["--package", "handshake-ebpf", "--profile", "ebpf", "--target", target, "-Z", "build-std=core"]
}

fn user(workspace: &Workspace, object: &Path, profile: Profile) -> Result<PathBuf> {
    let mut cargo = process::cargo(workspace);
    cargo.args(["build", "--package", "handshake-user", "--bin", "handshake"]);
    if profile == Profile::Release {
        cargo.arg("--release");
    }
    let binary = workspace.binary(profile);
    if !binary.is_file() {
        step("building the user side (one to two minutes the first time)");
    }
    process::run(
        cargo.env("HANDSHAKE_EBPF_OBJECT", object),
        "building the user side",
        "see the compiler's messages above",
    )?;
    if !binary.is_file() {
        bail!(
            "cargo built the program, but not at {}: is `build.target` set in your cargo configuration, \
             or CARGO_BUILD_TARGET in the environment? unset it",
            binary.display()
        );
    }
    Ok(binary)
}

/// An unchanged object keeps its time, and so nothing that includes it is rebuilt.
fn copy_if_different(from: &Path, to: &Path) -> io::Result<()> {
    let content = fs::read(from)?;
    if fs::read(to).is_ok_and(|old| old == content) {
        return Ok(());
    }
    // In one step: a compiler that runs at this moment reads the old object or the new one.
    let partial = to.with_extension("partial");
    fs::write(&partial, content)?;
    fs::rename(partial, to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unchanged_object_keeps_its_time() {
        let folder = std::env::temp_dir().join(format!("handshake-xtask-copy-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (from, to) = (folder.join("a.o"), folder.join("b.o"));
        fs::write(&from, "one").unwrap();
        copy_if_different(&from, &to).unwrap();
        let before = fs::metadata(&to).unwrap().modified().unwrap();
        copy_if_different(&from, &to).unwrap();
        assert_eq!(fs::metadata(&to).unwrap().modified().unwrap(), before);
        fs::write(&from, "two").unwrap();
        copy_if_different(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(&to).unwrap(), "two");
        fs::remove_dir_all(folder).unwrap();
    }
}
