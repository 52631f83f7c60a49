//! `cargo xtask setup`: what a build needs beyond cargo.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    linker,
    process::{self, step},
    toolchain::Toolchain,
    tools,
    workspace::Workspace,
};

/// Install what a build needs: Rust's library sources and bpf-linker
///
/// The other commands do this themselves; when nothing is missing it takes milliseconds.
///
/// rust-src goes into the active Rust toolchain (`rustup component add rust-src`), bpf-linker into
/// target/tools. To remove them: `rustup component remove rust-src`, `rm -r target/tools`.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  cargo xtask setup")]
pub(crate) struct Args {}

pub(crate) fn main(_args: &Args) -> Result<()> {
    let workspace = Workspace::locate()?;
    let ready = ensure(&workspace)?;
    step(format!(
        "ready: rustc {} with its library sources, and {}",
        ready.toolchain.version.semver,
        ready.linker.display()
    ));
    Ok(())
}

/// Everything a build needs.
#[derive(Debug, Clone)]
pub(crate) struct Ready {
    pub(crate) toolchain: Toolchain,
    pub(crate) linker: PathBuf,
}

pub(crate) fn ensure(workspace: &Workspace) -> Result<Ready> {
    let toolchain = Toolchain::detect()?;
    if let Some(linker) = satisfied(workspace, &toolchain) {
        return Ok(Ready { toolchain, linker });
    }

    // Two terminals, one installation.
    let _lock = tools::lock(workspace)?;
    if let Some(linker) = satisfied(workspace, &toolchain) {
        return Ok(Ready { toolchain, linker });
    }
    check_cc()?;
    if !has_library_sources(&toolchain) {
        add("component", "rust-src")?;
        ensure!(
            has_library_sources(&toolchain),
            "rustup added rust-src to a toolchain other than the active one, {}: is RUSTUP_TOOLCHAIN set?",
            toolchain.sysroot.display()
        );
    }
    let linker = linker::ensure(workspace, &toolchain)?;
    let stamp = stamp(workspace);
    fs::write(&stamp, format!("{}\n{}", toolchain.identity(), linker.display()))
        .with_context(|| format!("cannot write {}: is the disk full?", stamp.display()))?;
    Ok(Ready { toolchain, linker })
}

/// Records which linker the last setup chose, and for which compiler.
fn stamp(workspace: &Workspace) -> PathBuf {
    workspace.tools().join("ready")
}

/// Returns the linker, or `None` if anything has changed since the last setup.
fn satisfied(workspace: &Workspace, toolchain: &Toolchain) -> Option<PathBuf> {
    let stamp = fs::read_to_string(stamp(workspace)).ok()?;
    let linker = PathBuf::from(stamp.strip_prefix(&toolchain.identity())?.strip_prefix('\n')?);
    (linker.is_file() && has_library_sources(toolchain)).then_some(linker)
}

fn check_cc() -> Result<()> {
    ensure!(
        process::find_program("cc").is_some(),
        "no C compiler: Rust needs `cc` to link programs; install gcc or clang with your system's package \
         manager (Debian: `sudo apt-get install -y build-essential`)"
    );
    Ok(())
}

fn has_library_sources(toolchain: &Toolchain) -> bool {
    let library = toolchain.library_sources();
    // The lock file too: build-std resolves the dependencies of `core` from it.
    library.join("core/src/lib.rs").is_file() && library.join("Cargo.lock").is_file()
}

/// Makes sure of the programs behind `cargo fmt` and `cargo clippy`. rust-toolchain.toml lists them, but
/// rustup does not add them everywhere to a toolchain that is already installed.
pub(crate) fn ensure_component(toolchain: &Toolchain, component: &str, program: &str) -> Result<()> {
    if toolchain.sysroot.join("bin").join(program).is_file()
        || process::find_program(program).is_some_and(|program| !is_rustup(&program))
    {
        return Ok(());
    }
    add("component", component)
}

/// rustup's proxies exist even for components that do not.
fn is_rustup(program: &Path) -> bool {
    fs::canonicalize(program).is_ok_and(|file| file.file_name().is_some_and(|name| name == "rustup"))
}

/// Adds a component or a target (`kind`) to the active toolchain.
pub(crate) fn add(kind: &str, name: &str) -> Result<()> {
    step(format!("installing {name} into the Rust toolchain (seconds)"));
    let Some(rustup) = process::find_program("rustup") else {
        bail!("{name} is missing, and there is no rustup on PATH: install Rust from https://rustup.rs");
    };
    process::read(
        Command::new(rustup).args([kind, "add", name]),
        &format!("`rustup {kind} add {name}`"),
        "is the network up, and is the Rust toolchain yours to write to?",
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustc_version::{Channel, LlvmVersion, Version, VersionMeta};

    #[test]
    fn stamp_of_another_compiler_is_stale() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let workspace =
            Workspace { root: root.to_owned(), target: root.join("target"), packages: Vec::new() };
        let toolchain = Toolchain {
            rustc: "rustc".into(),
            sysroot: root.join("sysroot"),
            version: VersionMeta {
                semver: Version::new(1, 95, 0),
                commit_hash: Some("a".to_owned()),
                commit_date: None,
                build_date: None,
                channel: Channel::Stable,
                host: "x86_64-unknown-linux-gnu".to_owned(),
                short_version_string: "rustc 1.95.0".to_owned(),
                llvm_version: Some(LlvmVersion { major: 22, minor: 1 }),
            },
        };
        let linker = root.join("bpf-linker");
        fs::create_dir_all(workspace.tools()).unwrap();
        fs::create_dir_all(toolchain.library_sources().join("core/src")).unwrap();
        for file in [&linker, &toolchain.library_sources().join("core/src/lib.rs")] {
            fs::write(file, "").unwrap();
        }
        fs::write(stamp(&workspace), format!("{}\n{}", toolchain.identity(), linker.display())).unwrap();
        assert_eq!(satisfied(&workspace, &toolchain), None, "no Cargo.lock in the sources");

        fs::write(toolchain.library_sources().join("Cargo.lock"), "").unwrap();
        assert_eq!(satisfied(&workspace, &toolchain).as_ref(), Some(&linker));

        let mut other = toolchain.clone();
        other.version.commit_hash = Some("b".to_owned());
        assert_eq!(satisfied(&workspace, &other), None);

        fs::remove_file(&linker).unwrap();
        assert_eq!(satisfied(&workspace, &toolchain), None);
    }
}
