//! The machines that the program is built for: the one that builds it, and the static binaries.

use std::fmt;

use anyhow::Result;

use crate::{setup, toolchain::Toolchain};

/// A target of rustup with a C library of its own, which rustc links by itself: one file that runs on any
/// distribution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Target {
    #[value(name = "x86_64-unknown-linux-musl")]
    X86_64,
    #[value(name = "aarch64-unknown-linux-musl")]
    Aarch64,
}

impl Target {
    pub(crate) fn of_arch(arch: &str) -> Option<Self> {
        [Self::X86_64, Self::Aarch64].into_iter().find(|target| target.arch() == arch)
    }

    /// rustc's name for it.
    pub(crate) fn triple(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64-unknown-linux-musl",
            Self::Aarch64 => "aarch64-unknown-linux-musl",
        }
    }

    /// aya-ebpf's name for the processor.
    pub(crate) fn arch(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// The name of the processor in Debian and in Go.
    pub(crate) fn debian(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    /// Cargo's variables for it: LLVM's linker comes with the toolchain and links for any of them, so that no
    /// cross compiler is needed.
    pub(crate) fn variables(self) -> [(String, &'static str); 1] {
        let triple = self.triple().replace('-', "_").to_uppercase();
        [(format!("CARGO_TARGET_{triple}_LINKER"), "rust-lld")]
    }

    /// The compiler for what is written in C among the tests' dependencies; the program itself has none.
    pub(crate) fn c_compiler(self) -> [(String, &'static str); 1] {
        let compiler = match self {
            Self::X86_64 => "x86_64-linux-gnu-gcc",
            Self::Aarch64 => "aarch64-linux-gnu-gcc",
        };
        [(format!("CC_{}", self.triple().replace('-', "_")), compiler)]
    }

    /// Makes sure of its standard library.
    pub(crate) fn ensure(self, toolchain: &Toolchain) -> Result<()> {
        if toolchain.sysroot.join("lib/rustlib").join(self.triple()).join("lib").is_dir() {
            return Ok(());
        }
        setup::add("target", self.triple())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.triple())
    }
}
