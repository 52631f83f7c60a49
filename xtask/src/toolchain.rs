//! The compiler in use: which one it is, and where it lies.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::process;

/// What `rustc -vV` says, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Version {
    /// `1.95.0`
    pub(crate) release: String,
    /// `x86_64-unknown-linux-gnu`
    pub(crate) host: String,
    pub(crate) commit: String,
    /// The major version of the LLVM inside, whose bitcode bpf-linker must read.
    pub(crate) llvm: u32,
}

impl Version {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let field = |name: &str| {
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).with_context(|| {
                format!("`rustc -vV` has no line `{name}:`: is it really rustc? it said:\n{text}")
            })
        };
        let llvm = field("LLVM version")?;
        Ok(Self {
            release: field("release")?.to_owned(),
            host: field("host")?.to_owned(),
            commit: field("commit-hash")?.to_owned(),
            llvm: llvm.split('.').next().and_then(|major| major.parse().ok()).with_context(|| {
                format!("`rustc -vV` names an LLVM version `{llvm}` that does not start with a number")
            })?,
        })
    }

    /// The eBPF target with this machine's byte order: the kernel runs nothing else.
    pub(crate) fn ebpf_target(&self) -> &'static str {
        let big = ["powerpc64-", "powerpc-", "s390x-", "sparc64-", "aarch64_be-", "mips-", "mips64-"];
        if big.iter().any(|arch| self.host.starts_with(arch)) {
            "bpfeb-unknown-none"
        } else {
            "bpfel-unknown-none"
        }
    }

    /// The name aya-ebpf knows the host's processor by (it decides how registers are read).
    pub(crate) fn bpf_target_arch(&self) -> &str {
        let arch = self.host.split('-').next().unwrap_or(&self.host);
        match arch {
            "armv7" | "armv7l" | "armv6" | "arm" | "thumbv7neon" => "arm",
            "riscv64gc" | "riscv64a23" => "riscv64",
            "powerpc64le" => "powerpc64",
            "mips64el" => "mips64",
            other => other,
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Toolchain {
    pub(crate) rustc: PathBuf,
    pub(crate) sysroot: PathBuf,
    pub(crate) version: Version,
}

impl Toolchain {
    pub(crate) fn detect() -> Result<Self> {
        let hint =
            "is the toolchain of rust-toolchain.toml installed? `rustup toolchain install` installs it";
        let rustc = rustc();
        let version = process::read(Command::new(&rustc).arg("-vV"), "asking rustc for its version", hint)?;
        let sysroot = process::read(
            Command::new(&rustc).args(["--print", "sysroot"]),
            "asking rustc for its sysroot",
            hint,
        )?;
        Ok(Self { rustc, sysroot: sysroot.trim_end().into(), version: Version::parse(&version)? })
    }

    /// Where cargo's build-std looks for the sources of `core`.
    pub(crate) fn library_sources(&self) -> PathBuf {
        self.sysroot.join("lib/rustlib/src/rust/library")
    }

    /// Changes when anything does that makes installed tools stale.
    pub(crate) fn identity(&self) -> String {
        let Version { release, host, commit, llvm } = &self.version;
        format!("rustc {release} {commit} {host} llvm {llvm} {}", self.sysroot.display())
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

#[cfg(test)]
mod tests {
    use super::*;

    const STABLE: &str = "rustc 1.95.0 (59807616e 2026-04-14)\nbinary: rustc\n\
        commit-hash: 59807616e1fa2540724bfbac14d7976d7e4a3860\ncommit-date: 2026-04-14\n\
        host: x86_64-unknown-linux-gnu\nrelease: 1.95.0\nLLVM version: 22.1.2\n";

    fn on(host: &str) -> Version {
        Version { release: "1.95.0".into(), host: host.into(), commit: "unknown".into(), llvm: 22 }
    }

    #[test]
    fn reads_what_rustc_says_of_itself() {
        let version = Version::parse(STABLE).unwrap();
        assert_eq!(version.release, "1.95.0");
        assert_eq!(version.host, "x86_64-unknown-linux-gnu");
        assert_eq!(version.llvm, 22);
    }

    #[test]
    fn a_missing_line_is_named() {
        let err = Version::parse("rustc 1.95.0\nrelease: 1.95.0\n").unwrap_err();
        assert!(err.to_string().contains("LLVM version"), "{err}");
    }

    #[test]
    fn ebpf_follows_the_byte_order_and_processor_of_the_host() {
        for (host, target, arch) in [
            ("x86_64-unknown-linux-gnu", "bpfel-unknown-none", "x86_64"),
            ("aarch64-unknown-linux-gnu", "bpfel-unknown-none", "aarch64"),
            ("armv7-unknown-linux-gnueabihf", "bpfel-unknown-none", "arm"),
            ("riscv64gc-unknown-linux-gnu", "bpfel-unknown-none", "riscv64"),
            ("powerpc64le-unknown-linux-gnu", "bpfel-unknown-none", "powerpc64"),
            ("s390x-unknown-linux-gnu", "bpfeb-unknown-none", "s390x"),
        ] {
            assert_eq!(on(host).ebpf_target(), target, "{host}");
            assert_eq!(on(host).bpf_target_arch(), arch, "{host}");
        }
    }
}
