//! `cargo xtask setup`: what a build needs beyond cargo.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    apt, linker,
    process::{self, step},
    toolchain::Toolchain,
    workspace::Workspace,
};

/// Install what the build needs: Rust's library sources and bpf-linker
///
/// The other commands call it by themselves; when nothing is missing it takes milliseconds.
///
/// rust-src goes into the active Rust toolchain: by `rustup component add rust-src`, and where rustup
/// cannot download, out of Debian's package of the same version. bpf-linker goes into target/tools.
/// Remove them: `rustup component remove rust-src`, `rm -r target/tools`.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  cargo xtask setup")]
pub(crate) struct Args {}

pub(crate) fn main(_args: &Args) -> Result<()> {
    let workspace = Workspace::locate()?;
    let ready = ensure(&workspace)?;
    step(format!(
        "ready: rustc {} with its library sources, and {}",
        ready.toolchain.version.release,
        ready.linker.display()
    ));
    Ok(())
}

/// Everything a build needs is there.
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
    let _lock = lock(workspace)?;
    if let Some(linker) = satisfied(workspace, &toolchain) {
        return Ok(Ready { toolchain, linker });
    }
    check_cc()?;
    ensure_library_sources(workspace, &toolchain)?;
    let linker = linker::ensure(workspace, &toolchain)?;
    let stamp = stamp(workspace);
    fs::write(&stamp, format!("{}\n{}", toolchain.identity(), linker.display()))
        .with_context(|| format!("cannot write {}: is the disk full?", stamp.display()))?;
    Ok(Ready { toolchain, linker })
}

/// What the last setup found, and for which compiler.
fn stamp(workspace: &Workspace) -> PathBuf {
    workspace.tools().join("ready")
}

/// The linker, if nothing has changed since the last setup.
fn satisfied(workspace: &Workspace, toolchain: &Toolchain) -> Option<PathBuf> {
    let stamp = fs::read_to_string(stamp(workspace)).ok()?;
    let linker = PathBuf::from(stamp.strip_prefix(&toolchain.identity())?.strip_prefix('\n')?);
    (linker.is_file() && has_library_sources(toolchain)).then_some(linker)
}

pub(crate) fn lock(workspace: &Workspace) -> Result<File> {
    let tools = workspace.tools();
    fs::create_dir_all(&tools).with_context(|| {
        format!(
            "cannot create {}: is it root's, from an earlier `sudo cargo`? `sudo chown -R $USER target` gives it back",
            tools.display()
        )
    })?;
    let path = tools.join("lock");
    let lock = File::create(&path).with_context(|| {
        format!("cannot create {}: is it root's? `sudo chown -R $USER target`", path.display())
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

fn check_cc() -> Result<()> {
    if process::find_program("cc").is_some() {
        return Ok(());
    }
    let command = [
        ("apt-get", "sudo apt-get install -y build-essential"),
        ("dnf", "sudo dnf install -y gcc"),
        ("pacman", "sudo pacman -S --needed gcc"),
        ("zypper", "sudo zypper install -y gcc"),
        ("apk", "sudo apk add build-base"),
    ]
    .into_iter()
    .find(|(tool, _)| process::find_program(tool).is_some())
    .map_or("install gcc or clang with your system's package manager", |(_, command)| command);
    bail!("no C compiler: Rust needs `cc` to link programs; install one: {command}")
}

fn has_library_sources(toolchain: &Toolchain) -> bool {
    let library = toolchain.library_sources();
    // The lock file too: build-std resolves the dependencies of `core` from it.
    library.join("core/src/lib.rs").is_file() && library.join("Cargo.lock").is_file()
}

fn ensure_library_sources(workspace: &Workspace, toolchain: &Toolchain) -> Result<()> {
    if has_library_sources(toolchain) {
        return Ok(());
    }
    let release = &toolchain.version.release;
    step(format!("installing rust-src {release}: `core` is compiled for the eBPF side from it (seconds)"));
    let from_rustup = match add_component("rust-src") {
        Ok(()) if has_library_sources(toolchain) => return Ok(()),
        Ok(()) => "rustup added rust-src to another toolchain than the active one".to_owned(),
        Err(err) => format!("{err:#}"),
    };
    step("rustup could not add rust-src; trying Debian's package of the same sources");
    let library = toolchain.library_sources();
    let parent = library.parent().unwrap_or(&toolchain.sysroot);
    check_writable(parent)?;
    let folder = workspace.tools().join("apt");
    let result = apt::fetch("rust-src", release, &folder)
        .and_then(|unpacked| {
            move_folder(&unpacked.join(format!("usr/src/rustc-{release}/library")), &library)
        })
        .with_context(|| {
            format!(
                "Rust's library sources are missing, and neither way to them worked. rustup: {from_rustup}\n\
                 Mend it with `rustup component add rust-src` where the network allows it. Debian's package"
            )
        });
    fs::remove_dir_all(&folder).ok();
    result
}

fn check_writable(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)
        .and_then(|()| {
            let probe = folder.join(".handshake-xtask");
            File::create(&probe)?;
            fs::remove_file(probe)
        })
        .with_context(|| {
            format!(
                "the Rust toolchain belongs to someone else ({} is not writable): \
                 run `cargo xtask setup` once as its owner, or install Rust for yourself with rustup",
                folder.display()
            )
        })
}

/// Moves also from one disk to another: there it copies, under another name first, so that a broken copy
/// is never taken for the whole.
fn move_folder(from: &Path, to: &Path) -> Result<()> {
    let what = || format!("cannot move {} to {}: is the disk full?", from.display(), to.display());
    if !from.is_dir() {
        bail!("the package holds no {}: its layout has changed, please report it", from.display());
    }
    if to.exists() {
        fs::remove_dir_all(to).with_context(what)?;
    }
    match fs::rename(from, to) {
        Err(err) if err.kind() == io::ErrorKind::CrossesDevices => {}
        other => return other.with_context(what),
    }
    let partial = to.with_extension("partial");
    fs::remove_dir_all(&partial).ok();
    process::run(
        Command::new("cp").arg("-a").arg(from).arg(&partial),
        "copying the sources",
        "is the disk full?",
    )?;
    fs::rename(&partial, to).with_context(what)
}

/// The tools that cargo's own subcommands need; rustup's minimal profile leaves them out.
pub(crate) fn ensure_component(toolchain: &Toolchain, component: &str, program: &str) -> Result<()> {
    if toolchain.sysroot.join("bin").join(program).is_file()
        || process::find_program(program).is_some_and(|program| !is_rustup(&program))
    {
        return Ok(());
    }
    step(format!("installing {component} into the Rust toolchain (seconds)"));
    add_component(component).with_context(|| {
        format!(
            "{component} is missing and rustup cannot add it: `rustup component add {component}` mends it"
        )
    })
}

/// rustup's stand-ins exist for components that do not.
fn is_rustup(program: &Path) -> bool {
    fs::canonicalize(program).is_ok_and(|file| file.file_name().is_some_and(|name| name == "rustup"))
}

fn add_component(component: &str) -> Result<()> {
    let rustup = process::find_program("rustup").context("there is no rustup on PATH")?;
    process::read(
        Command::new(rustup).args(["component", "add", component]),
        &format!("`rustup component add {component}`"),
        "is the network there?",
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::toolchain::Version;

    #[test]
    fn a_stamp_of_another_compiler_does_not_count() {
        let root = std::env::temp_dir().join(format!("handshake-xtask-{}", std::process::id()));
        let workspace = Workspace { root: root.clone(), target: root.join("target") };
        let toolchain = Toolchain {
            rustc: "rustc".into(),
            sysroot: root.join("sysroot"),
            version: Version {
                release: "1.95.0".into(),
                host: "x86_64-unknown-linux-gnu".into(),
                commit: "a".into(),
                llvm: 22,
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
        other.version.commit = "b".into();
        assert_eq!(satisfied(&workspace, &other), None);

        fs::remove_file(&linker).unwrap();
        assert_eq!(satisfied(&workspace, &toolchain), None);
        fs::remove_dir_all(root).unwrap();
    }
}
