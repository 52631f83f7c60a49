//! The compiler in use: its version and its folder.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use rustc_version::VersionMeta;

use crate::process;

#[derive(Debug, Clone)]
pub(crate) struct Toolchain {
    pub(crate) rustc: PathBuf,
    pub(crate) sysroot: PathBuf,
    pub(crate) version: VersionMeta,
}

impl Toolchain {
    pub(crate) fn detect() -> Result<Self> {
        let hint =
            "is the toolchain of rust-toolchain.toml installed? `rustup toolchain install` installs it";
        let rustc = rustc();
        let version = VersionMeta::for_command(Command::new(&rustc))
            .with_context(|| format!("asking {} for its version failed: {hint}", rustc.display()))?;
        let sysroot = process::read(
            Command::new(&rustc).args(["--print", "sysroot"]),
            "asking rustc for its sysroot",
            hint,
        )?;
        Ok(Self { rustc, sysroot: sysroot.trim_end().into(), version })
    }

    /// Where cargo's build-std looks for the sources of `core`.
    pub(crate) fn library_sources(&self) -> PathBuf {
        self.sysroot.join("lib/rustlib/src/rust/library")
    }

    /// The major version of the LLVM inside rustc, whose bitcode bpf-linker must read.
    pub(crate) fn llvm(&self) -> Result<u64> {
        let version = self.version.llvm_version.as_ref();
        Ok(version.context("`rustc -vV` names no LLVM version: is it really rustc?")?.major)
    }

    /// The eBPF target with this machine's byte order: the kernel runs no other.
    pub(crate) fn ebpf_target(&self) -> &'static str {
        ebpf_target(&self.version.host)
    }

    /// aya-ebpf's name for the host's processor, which decides how registers are read.
    pub(crate) fn bpf_target_arch(&self) -> &str {
        bpf_target_arch(&self.version.host)
    }

    /// Changes whenever installed tools become stale.
    pub(crate) fn identity(&self) -> String {
        let VersionMeta { semver, host, commit_hash, .. } = &self.version;
        let commit = commit_hash.as_deref().unwrap_or("unknown");
        format!("rustc {semver} {commit} {host} {}", self.sysroot.display())
    }
}

/// The rustc beside the cargo that started xtask: the same toolchain, without rustup's detour.
fn rustc() -> PathBuf {
    if let Some(rustc) = env::var_os("RUSTC") {
        return rustc.into();
    }
    env::var_os("CARGO")
        .map(|cargo| Path::new(&cargo).with_file_name("rustc"))
        .filter(|rustc| rustc.is_file())
        .unwrap_or_else(|| "rustc".into())
}

fn ebpf_target(host: &str) -> &'static str {
    let big_endian = ["powerpc64-", "powerpc-", "s390x-", "sparc64-", "aarch64_be-", "mips-", "mips64-"];
    if big_endian.iter().any(|arch| host.starts_with(arch)) {
        "bpfeb-unknown-none"
    } else {
        "bpfel-unknown-none"
    }
}

fn bpf_target_arch(host: &str) -> &str {
    match host.split('-').next().unwrap_or(host) {
        "armv7" | "armv7l" | "armv6" | "arm" | "thumbv7neon" => "arm",
        "riscv64gc" | "riscv64a23" => "riscv64",
        "powerpc64le" => "powerpc64",
        "mips64el" => "mips64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ebpf_target_follows_the_byte_order_and_processor_of_the_host() {
        for (host, target, arch) in [
            ("x86_64-unknown-linux-gnu", "bpfel-unknown-none", "x86_64"),
            ("aarch64-unknown-linux-gnu", "bpfel-unknown-none", "aarch64"),
            ("armv7-unknown-linux-gnueabihf", "bpfel-unknown-none", "arm"),
            ("riscv64gc-unknown-linux-gnu", "bpfel-unknown-none", "riscv64"),
            ("powerpc64le-unknown-linux-gnu", "bpfel-unknown-none", "powerpc64"),
            ("s390x-unknown-linux-gnu", "bpfeb-unknown-none", "s390x"),
        ] {
            assert_eq!(ebpf_target(host), target, "{host}");
            assert_eq!(bpf_target_arch(host), arch, "{host}");
        }
    }
}
