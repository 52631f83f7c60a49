//! The root of a virtual machine: Debian's programs, which are kept, and what this workspace has built.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::cpio::Cpio;
use crate::{debian::Suite, process::step, target::Target};

/// The suite that the programs are from, whatever the system is.
const SUITE: &str = "bookworm";

/// The programs that the tests start, and what runs them. The minus leaves out what they only recommend to an
/// interactive user.
const PACKAGES: [&str; 11] = [
    "busybox-static",
    "coreutils",
    "curl",
    "dash",
    "gnutls-bin",
    "haproxy",
    "iproute2",
    "libc-bin",
    "nginx-light",
    "openssl",
    "python3",
];

/// Folders that no test reads.
pub(super) const WITHOUT: [&str; 12] = [
    "/usr/share/doc",
    "/usr/share/man",
    "/usr/share/locale",
    "/usr/share/i18n",
    "/usr/share/info",
    "/usr/share/lintian",
    "/usr/share/perl",
    "/usr/share/perl5",
    "/usr/share/zoneinfo",
    "/usr/share/mime",
    "/usr/share/GeoIP",
    "/var/lib/dpkg",
];

/// Names that none needs either: Perl, conversions between character sets, and data about them.
const WITHOUT_NAMES: [&str; 6] = ["perl", "perl-base", "gconv", "pydoc3.11", "localedef", "test"];

/// What the installation of the packages would have made.
pub(super) const FILES: [(&str, &[u8]); 4] = [
    ("/etc/passwd", b"root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"),
    ("/etc/group", b"root:x:0:\nnogroup:x:65534:\n"),
    ("/etc/hosts", b"127.0.0.1 localhost\n::1 localhost\n"),
    ("/etc/nsswitch.conf", b"passwd: files\ngroup: files\nhosts: files\n"),
];

const INIT: &[u8] = include_bytes!("init.sh");

/// The archive with Debian's programs for this processor, made once.
pub(super) fn programs(target: Target, folder: &Path) -> Result<PathBuf> {
    let folder = folder.join("root").join(target.arch());
    let archive = folder.join("programs.cpio");
    if archive.exists() {
        return Ok(archive);
    }
    step(format!("vm: downloading Debian's programs for {} (70 MB)", target.arch()));
    let downloads = folder.join("apt");
    fs::create_dir_all(&downloads)
        .with_context(|| format!("cannot create {}: is the disk full?", folder.display()))?;
    let root = Suite::open(SUITE, Some(target.debian()), &downloads)?.unpack_with_dependencies(&PACKAGES)?;
    let partial = archive.with_extension("partial");
    let mut cpio = Cpio::create(&partial)?;
    cpio.tree(&root, Path::new("/"), &is_useless)?;
    cpio.finish()?;
    fs::remove_dir_all(&downloads).ok();
    fs::rename(partial, &archive)?;
    Ok(archive)
}

fn is_useless(path: &Path) -> bool {
    WITHOUT.iter().any(|without| path == Path::new(without))
        || path.file_name().is_some_and(|name| WITHOUT_NAMES.iter().any(|without| name == *without))
}

/// What one run brings: files and folders of the host, at the same places in the machine, where the tests
/// expect them.
pub(super) struct Own<'a> {
    pub(super) files: &'a [PathBuf],
    pub(super) trees: &'a [PathBuf],
    /// Folders that the tests write to.
    pub(super) folders: &'a [PathBuf],
    /// The shell commands behind init.sh.
    pub(super) plan: &'a str,
}

/// Puts everything into one file: the kernel unpacks the archives one after the other.
pub(super) fn assemble(own: &Own<'_>, kept: &[&Path], to: &Path) -> Result<()> {
    let mut cpio = Cpio::create(to)?;
    cpio.file(Path::new("/init"), true, INIT)?;
    cpio.file(Path::new("/plan"), false, own.plan.as_bytes())?;
    for (path, content) in FILES {
        cpio.file(Path::new(path), false, content)?;
    }
    for folder in ["/var/log/nginx", "/var/lib/nginx", "/root", "/dev", "/proc", "/sys", "/tmp"] {
        cpio.directory(Path::new(folder))?;
    }
    cpio.link(Path::new("/bin/sh"), "dash".as_ref())?;
    for file in own.files {
        cpio.host_file(file, file)?;
    }
    for tree in own.trees {
        cpio.tree(tree, tree, &|_| false)?;
    }
    for folder in own.folders {
        cpio.directory(folder)?;
    }
    let mut file = cpio.finish()?.into_inner().context("cannot write the initramfs: is the disk full?")?;
    for archive in kept {
        let mut from = File::open(archive).with_context(|| format!("cannot read {}", archive.display()))?;
        io::copy(&mut from, &mut file).context("cannot write the initramfs: is the disk full?")?;
    }
    Ok(())
}
