//! The files of a package at the places where they are installed.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::{files, gzip, subfolders};
use crate::workspace::Workspace;

/// Folders whose files are installed, and where. Of the documents, the README refers to them.
const FOLDERS: [(&str, &str); 5] = [
    ("packaging/systemd", "usr/lib/systemd/system"),
    ("packaging/prometheus", "usr/share/handshake/prometheus"),
    ("packaging/grafana", "usr/share/handshake/grafana"),
    ("packaging/fleet", "usr/share/handshake/fleet"),
    ("docs", "usr/share/doc/handshake/docs"),
];

/// The other files, except program, man pages and completions.
const FILES: [(&str, &str); 6] = [
    ("config/handshake.toml", "etc/handshake"),
    ("README.md", DOC),
    ("CHANGELOG.md", DOC),
    ("LICENSE-MIT", DOC),
    ("LICENSE-APACHE", DOC),
    ("LICENSE-GPL-2.0", DOC),
];

const DOC: &str = "usr/share/doc/handshake";

const ZSH: &str = "usr/share/zsh/site-functions";
/// Where Debian's zsh looks for completions of packages.
const ZSH_OF_DEBIAN: &str = "usr/share/zsh/vendor-completions";

/// Fills a new folder.
pub(super) fn lay_out(workspace: &Workspace, binary: &Path, generated: &Path, tree: &Path) -> Result<()> {
    fs::remove_dir_all(tree).ok();
    put(binary, &tree.join("usr/bin"), "handshake", 0o755)?;
    for (from, to) in FILES {
        install(&workspace.root.join(from), &tree.join(to))?;
    }
    for (from, to) in FOLDERS {
        let from = workspace.root.join(from);
        // A part that this version does not have.
        if !from.is_dir() {
            continue;
        }
        install_all(&from, &tree.join(to))?;
    }
    for file in files(generated)? {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (folder, name) = place(&name).with_context(|| format!("{name} has no place in a package"))?;
        let placed = put(&file, &tree.join(folder), name, 0o644)?;
        if folder.starts_with("usr/share/man") {
            gzip(&placed)?;
        }
    }
    Ok(())
}

/// Moves what Debian has in other places.
pub(super) fn debianize(tree: &Path) -> Result<()> {
    fs::rename(tree.join(ZSH), tree.join(ZSH_OF_DEBIAN)).context("cannot move the completions of zsh")
}

/// Where a generated file is installed, and its name there.
fn place(file: &str) -> Option<(&'static str, &str)> {
    let extension = Path::new(file).extension().and_then(|extension| extension.to_str());
    Some(match (file, extension) {
        ("_handshake", _) => (ZSH, file),
        (_, Some("1")) => ("usr/share/man/man1", file),
        (_, Some("5")) => ("usr/share/man/man5", file),
        (_, Some("bash")) => ("usr/share/bash-completion/completions", "handshake"),
        (_, Some("fish")) => ("usr/share/fish/vendor_completions.d", file),
        _ => return None,
    })
}

/// With its subfolders.
fn install_all(from: &Path, folder: &Path) -> Result<()> {
    for file in files(from)? {
        install(&file, folder)?;
    }
    for subfolder in subfolders(from)? {
        install_all(&subfolder, &folder.join(subfolder.file_name().unwrap_or_default()))?;
    }
    Ok(())
}

fn install(file: &Path, folder: &Path) -> Result<PathBuf> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    put(file, folder, &name, 0o644)
}

fn put(from: &Path, folder: &Path, name: &str, mode: u32) -> Result<PathBuf> {
    let to = folder.join(name);
    fs::create_dir_all(folder)
        .and_then(|()| fs::copy(from, &to))
        .and_then(|_| fs::set_permissions(&to, fs::Permissions::from_mode(mode)))
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_files_have_the_places_that_shells_and_man_look_in() {
        assert_eq!(place("handshake-trace.1"), Some(("usr/share/man/man1", "handshake-trace.1")));
        assert_eq!(place("handshake.toml.5"), Some(("usr/share/man/man5", "handshake.toml.5")));
        assert_eq!(place("handshake.bash"), Some(("usr/share/bash-completion/completions", "handshake")));
        assert_eq!(place("_handshake"), Some(("usr/share/zsh/site-functions", "_handshake")));
        assert_eq!(place("handshake.elv"), None);
    }

    #[test]
    fn folder_is_installed_with_its_subfolders() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        fs::create_dir_all(from.join("images/small")).unwrap();
        fs::write(from.join("page.md"), "page").unwrap();
        fs::write(from.join("images/small/one.png"), "picture").unwrap();
        install_all(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(to.join("page.md")).unwrap(), "page");
        assert_eq!(fs::read_to_string(to.join("images/small/one.png")).unwrap(), "picture");
    }

    #[test]
    fn every_file_of_a_package_is_in_the_workspace() {
        let workspace = Workspace::locate().unwrap();
        for (file, _) in FILES {
            assert!(workspace.root.join(file).is_file(), "{file}");
        }
    }
}
