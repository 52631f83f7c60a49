//! bpf-linker: rustc hands it LLVM bitcode and gets an eBPF object back.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    process::{self, step},
    toolchain::Toolchain,
    tools,
    workspace::Workspace,
};

const NAME: &str = "bpf-linker";
const VERSION: &str = "0.13.0";

/// The LLVM versions that this bpf-linker can be built for.
const LLVM: std::ops::RangeInclusive<u64> = 21..=23;

/// A program without `core`: trying a linker with it takes a twentieth of a second.
const PROBE: &str = r#"
#![feature(no_core, lang_items)]
#![no_core]
#![allow(internal_features)]
#[lang = "pointee_sized"] trait PointeeSized {}
#[lang = "meta_sized"] trait MetaSized: PointeeSized {}
#[lang = "sized"] trait Sized: MetaSized {}
#[lang = "copy"] trait Copy {}
impl Copy for i32 {}
#[unsafe(no_mangle)]
#[unsafe(link_section = "socket")]
pub extern "C" fn probe() -> i32 { 0 }
"#;

/// Returns the path of a bpf-linker that reads this rustc's bitcode: the one on PATH if it can, otherwise
/// this workspace's own, which is built if need be.
pub(crate) fn ensure(workspace: &Workspace, toolchain: &Toolchain) -> Result<PathBuf> {
    if let Some(linker) = process::find_program(NAME)
        && links(&linker, workspace, toolchain).is_ok()
    {
        step(format!("using {}: it links what rustc {} emits", linker.display(), toolchain.version.semver));
        return Ok(linker);
    }
    let linker = workspace.tools().join("bin/bpf-linker");
    if !(linker.is_file() && links(&linker, workspace, toolchain).is_ok()) {
        install(workspace, toolchain)?;
        links(&linker, workspace, toolchain).context(
            "the bpf-linker that was just built cannot link an empty eBPF program: \
             delete target/tools and try again; if that does not help, please report it with this text",
        )?;
    }
    Ok(linker)
}

fn install(workspace: &Workspace, toolchain: &Toolchain) -> Result<()> {
    let llvm = toolchain.llvm()?;
    if !LLVM.contains(&llvm) {
        bail!(
            "rustc {} carries LLVM {llvm}, and bpf-linker {VERSION} reads {} to {}: \
             use the compiler of rust-toolchain.toml, as rustup does by itself",
            toolchain.version.semver,
            LLVM.start(),
            LLVM.end(),
        );
    }
    step(format!(
        "building {NAME} {VERSION} for LLVM {llvm} into target/tools: it links the kernel side \
         (one to two minutes, once)"
    ));

    // Linked against the LLVM inside rustc: always the right version, and the system needs none.
    let library = llvm_library(&toolchain.sysroot)?;
    let prefix = workspace.tools().join("llvm");
    link_llvm(&library, &prefix)?;
    let library_folder = library.parent().unwrap_or(&toolchain.sysroot);
    let rpath = format!("-Clink-arg=-Wl,-rpath,{}", library_folder.display());
    let mut cargo = tools::install(workspace, NAME, VERSION)?;
    cargo
        .args(["--no-default-features", "--features", &format!("llvm-{llvm}")])
        .env("LLVM_PREFIX", prefix)
        // It also runs outside of cargo: it has to know by itself where that LLVM is.
        .env("CARGO_ENCODED_RUSTFLAGS", rpath);
    tools::run_install(workspace, &mut cargo, NAME)
}

fn link_llvm(library: &Path, prefix: &Path) -> Result<()> {
    let folder = prefix.join("lib");
    let link = folder.join("libLLVM.so");
    fs::create_dir_all(&folder)
        .with_context(|| format!("cannot create {}: is the target folder writable?", folder.display()))?;
    fs::remove_file(&link).ok();
    std::os::unix::fs::symlink(library, &link)
        .with_context(|| format!("cannot create the link {}: is the target folder writable?", link.display()))
}

/// The shared LLVM of the toolchain: `libLLVM.so.22.1-rust-1.95.0-stable`.
fn llvm_library(sysroot: &Path) -> Result<PathBuf> {
    let folder = sysroot.join("lib");
    let mut found: Vec<_> = fs::read_dir(&folder)
        .with_context(|| format!("cannot read {}: is the toolchain complete?", folder.display()))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|file| file.file_name().and_then(|name| name.to_str()).is_some_and(is_shared_llvm))
        .collect();
    found.sort();
    found.pop().with_context(|| {
        format!(
            "no libLLVM.so in {}: this rustc does not come from rustup; install Rust with rustup, or put a \
             bpf-linker for its LLVM on PATH",
            folder.display()
        )
    })
}

fn is_shared_llvm(name: &str) -> bool {
    name.starts_with("libLLVM.so.")
}

/// Succeeds if this linker reads what this rustc writes.
fn links(linker: &Path, workspace: &Workspace, toolchain: &Toolchain) -> Result<()> {
    let folder = workspace.tools().join("probe");
    fs::create_dir_all(&folder)
        .with_context(|| format!("cannot create {}: is the target folder writable?", folder.display()))?;
    let source = folder.join("probe.rs");
    fs::write(&source, PROBE)
        .with_context(|| format!("cannot write {}: is the disk full?", source.display()))?;
    let mut linker_flag = OsString::from("-Clinker=");
    linker_flag.push(linker);
    process::read(
        process::clean(&toolchain.rustc, workspace)
            .args(["--edition", "2024", "--crate-type", "cdylib", "-Cdebuginfo=2", "-Clink-arg=--btf"])
            .args(["--target", toolchain.ebpf_target()])
            .arg(linker_flag)
            .arg("-o")
            .arg(folder.join("probe.o"))
            .arg(source)
            .env("RUSTC_BOOTSTRAP", "1"),
        &format!("linking an empty eBPF program with {}", linker.display()),
        "it was built for another LLVM",
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_shared_library_itself_is_taken() {
        assert!(is_shared_llvm("libLLVM.so.22.1-rust-1.95.0-stable"));
        assert!(!is_shared_llvm("libLLVM-22-rust-1.95.0-stable.so"), "a linker script or link beside it");
        assert!(!is_shared_llvm("librustc_driver-6108105cd7e839cf.so"));
    }
}
