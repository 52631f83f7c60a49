//! The programs that the tests start and cargo does not build, and other releases of OpenSSL, in
//! `target/tools/peers`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    debian::Suite,
    process::{self, step},
    python,
    target::Target,
    workspace::Workspace,
};

/// A release of OpenSSL that the system does not have.
struct Release {
    name: &'static str,
    suite: &'static str,
    packages: &'static [&'static str],
}

const RELEASES: [Release; 3] = [
    Release { name: "openssl-1.1.1", suite: "bullseye", packages: &["openssl", "libssl1.1", "libc6"] },
    Release { name: "openssl-3.5", suite: "trixie", packages: NEWER },
    Release { name: "openssl-3.6", suite: "sid", packages: NEWER },
];

/// openssl and its libraries down to the C library, which may be newer than the system's.
const NEWER: &[&str] = &["openssl", "libssl3t64", "zlib1g", "libzstd1", "libc6"];

/// Flags of Go's linker, and the build mode: with symbols, without, and position-independent.
const GO: [(&str, &str, &str); 3] =
    [("go-plain", "", "exe"), ("go-stripped", "-s -w", "exe"), ("go-pie", "", "pie")];

/// Those for this machine.
pub(crate) fn ensure(workspace: &Workspace) -> Result<()> {
    let folder = workspace.tools().join("peers");
    ensure_for(workspace, &folder, None)?;
    for packages in [python::CHART, python::DUCKDB] {
        packages.ensure(workspace)?;
    }
    build_c(workspace, &folder.join("coroutines"))
}

/// Those that can be had for any machine, in `folder`.
pub(crate) fn ensure_for(workspace: &Workspace, folder: &Path, target: Option<Target>) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| {
        format!("cannot create {}: is it root's? `sudo chown -R $USER target`", folder.display())
    })?;
    for (name, flags, mode) in GO {
        build_go(workspace, &folder.join(name), flags, mode, target)?;
    }
    for release in &RELEASES {
        let home = folder.join(release.name);
        if !home.join("openssl").exists() {
            unpack(release, &home, &folder.join("apt"), target.map(Target::debian))?;
        }
    }
    Ok(())
}

/// Go itself knows when there is nothing to do. The program needs only the standard library: nothing is
/// downloaded.
fn build_go(
    workspace: &Workspace,
    program: &Path,
    flags: &str,
    mode: &str,
    target: Option<Target>,
) -> Result<()> {
    if !program.exists() {
        step(format!("building {} (half a minute the first time)", program.display()));
    }
    let mut go = Command::new("go");
    if let Some(target) = target {
        go.env("GOOS", "linux").env("GOARCH", target.debian());
    }
    process::run(
        go.args(["build", "-trimpath", "-buildvcs=false", "-ldflags", flags, "-buildmode", mode, "-o"])
            .arg(program)
            .arg(".")
            .current_dir(workspace.root.join("handshake-user/tests/programs/go"))
            .env("CGO_ENABLED", "0")
            .env("GOPROXY", "off")
            .env("GOTOOLCHAIN", "local")
            .env("GOCACHE", workspace.tools().join("go-cache")),
        "`go build` of the tests' Go program",
        "see its messages above",
    )
}

/// Uses the compiler that Rust links with, and only the libraries, since their headers may be missing.
fn build_c(workspace: &Workspace, program: &Path) -> Result<()> {
    let source = workspace.root.join("handshake-user/tests/programs/c/coroutines.c");
    process::run(
        Command::new("cc")
            .args(["-std=gnu11", "-O1", "-Wall", "-Wextra", "-o"])
            .arg(program)
            .arg(source)
            .args(["-l:libssl.so.3", "-l:libcrypto.so.3"]),
        "`cc` of the tests' C program",
        "see its messages above; it needs the libraries of OpenSSL 3",
    )
}

/// Gives the program, its libraries and their loader fixed names, wherever a release keeps them.
fn unpack(release: &Release, home: &Path, downloads: &Path, architecture: Option<&str>) -> Result<()> {
    step(format!("unpacking {} of Debian's {} for the tests (8 MB)", release.name, release.suite));
    let root = Suite::open(release.suite, architecture, downloads)
        .and_then(|suite| suite.unpack(release.packages))
        .with_context(|| format!("{} cannot be downloaded", release.name))?;
    let making = home.with_extension("partial");
    fs::remove_dir_all(&making).ok();
    let what = || format!("cannot fill {}: is the disk full?", making.display());
    fs::create_dir_all(making.join("lib")).with_context(what)?;
    fs::copy(root.join("usr/bin/openssl"), making.join("openssl")).with_context(what)?;
    // Releases from before the /usr merge have the C library in /lib.
    for libraries in ["lib", "usr/lib"].map(|folder| root.join(folder)) {
        for file in shared_objects(&libraries)? {
            let to = making.join("lib").join(file.file_name().unwrap_or_default());
            fs::copy(&file, to).with_context(what)?;
        }
    }
    let Some(loader) = shared_objects(&making.join("lib"))?
        .into_iter()
        .find(|file| file.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"ld-linux")))
    else {
        bail!("{} has no dynamic loader: its layout has changed, please report it", release.name);
    };
    fs::copy(&loader, making.join("loader")).with_context(what)?;
    fs::remove_dir_all(downloads).ok();
    fs::rename(&making, home).with_context(what)
}

/// The shared objects in a folder, and in its subfolder for the processor architecture.
fn shared_objects(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.with_context(|| format!("cannot read {}", folder.display()))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                // Other subfolders have modules of the C library and of OpenSSL, whose names look like
                // libraries'.
                if name.ends_with("-linux-gnu") {
                    folders.push(path);
                }
            } else if name.contains(".so") && path.exists() {
                found.push(path);
            }
        }
    }
    Ok(found)
}
