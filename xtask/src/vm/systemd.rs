//! The unit under a real systemd: Debian in a virtual machine, which installs the package, starts the
//! service, lets the watchdog find it stopped, and removes it.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    cpio::Cpio,
    kernel::Kernel,
    qemu::Machine,
    root::{FILES, WITHOUT},
};
use crate::{debian::Suite, packages, process::step, target::Target};

/// Debian's current release, and its kernel.
const SUITE: &str = "trixie";
const KERNEL: &str = "6.12";

const PACKAGES: [&str; 18] = [
    "base-files",
    "busybox-static",
    "coreutils",
    "dash",
    "diffutils",
    "dpkg",
    "findutils",
    "grep",
    "gzip",
    "init-system-helpers",
    "libc-bin",
    "openssl",
    "perl-base",
    "sed",
    "systemd",
    "systemd-sysv",
    "tar",
    "util-linux",
];

const SCRIPT: &[u8] = include_bytes!("systemd.sh");

/// What runs it, before any terminal is there.
const UNIT: &[u8] = b"[Service]\nType=oneshot\nExecStart=/usr/bin/sh /verify.sh\nStandardOutput=tty\n\
    StandardError=tty\nTTYPath=/dev/console\nTimeoutStartSec=infinity\n";

/// How long the machine may run, under emulation.
const LIMIT: Duration = Duration::from_mins(15);

/// Boots it with this package.
pub(crate) fn verify(deb: &Path, target: Target, machines: &Path) -> Result<()> {
    packages::ensure_for_vm()?;
    let kernel = Kernel::fetch(KERNEL, target, machines)?;
    let programs = programs(target, machines)?;
    let name = format!("systemd-{}-{}", target.arch(), kernel.release);
    let machine = Machine {
        target,
        parameters: "",
        kernel: &kernel.image,
        initramfs: &machines.join(format!("{name}.initramfs")),
        log: machines.join(format!("{name}.log")),
        limit: LIMIT,
    };
    assemble(deb, &programs, machine.initramfs)?;
    step(format!("verify: Debian's systemd on {}: {}", kernel.release, machine.log.display()));
    let (mut failures, mut is_over) = (Vec::new(), false);
    let ended = machine.run(|line| {
        // The console begins lines with escape sequences.
        let Some(said) = line.find("@@ ").map(|at| &line[at + 3..]) else { return };
        step(format!("verify: {said}"));
        if said.starts_with("failed ") {
            failures.push(said.to_owned());
        }
        is_over |= said == "end";
    });
    fs::remove_file(machine.initramfs).context("removing the initramfs")?;
    ended?;
    ensure!(is_over, "the machine ended before its last check: {}", machine.log.display());
    ensure!(failures.is_empty(), "under systemd:\n  {}", failures.join("\n  "));
    Ok(())
}

/// The archive with Debian's programs, made once.
fn programs(target: Target, folder: &Path) -> Result<PathBuf> {
    let folder = folder.join("systemd").join(target.arch());
    let archive = folder.join("programs.cpio");
    if archive.exists() {
        return Ok(archive);
    }
    step("verify: downloading Debian's systemd (40 MB)");
    let downloads = folder.join("apt");
    fs::create_dir_all(&downloads)
        .with_context(|| format!("cannot create {}: is the disk full?", folder.display()))?;
    let root = Suite::open(SUITE, Some(target.debian()), &downloads)?.unpack_with_dependencies(&PACKAGES)?;
    let partial = archive.with_extension("partial");
    let mut cpio = Cpio::create(&partial)?;
    cpio.tree(&root, Path::new("/"), &|path| WITHOUT.iter().any(|without| path == Path::new(without)))?;
    if !root.join("usr/bin/sh").exists() {
        cpio.link(Path::new("/usr/bin/sh"), "dash".as_ref())?;
    }
    cpio.finish()?;
    fs::remove_dir_all(&downloads).ok();
    fs::rename(partial, &archive)?;
    Ok(archive)
}

fn assemble(deb: &Path, programs: &Path, to: &Path) -> Result<()> {
    fs::copy(programs, to).context("cannot write the initramfs: is the disk full?")?;
    let own = to.with_extension("own");
    let mut cpio = Cpio::create(&own)?;
    cpio.link(Path::new("/init"), "usr/lib/systemd/systemd".as_ref())?;
    for (path, content) in FILES {
        cpio.file(Path::new(path), false, content)?;
    }
    // Of a system with nothing installed.
    for folder in ["info", "updates", "triggers", "parts"] {
        cpio.directory(&Path::new("/var/lib/dpkg").join(folder))?;
    }
    cpio.file(Path::new("/var/lib/dpkg/status"), false, b"")?;
    cpio.file(Path::new("/verify.sh"), false, SCRIPT)?;
    let units = Path::new("/etc/systemd/system");
    cpio.file(&units.join("verify.service"), false, UNIT)?;
    cpio.link(&units.join("multi-user.target.wants/verify.service"), "../verify.service".as_ref())?;
    cpio.link(&units.join("default.target"), "/usr/lib/systemd/system/multi-user.target".as_ref())?;
    // Without it this would be the first boot, which asks questions.
    cpio.file(Path::new("/etc/machine-id"), false, b"0123456789abcdef0123456789abcdef\n")?;
    // The console is the script's.
    for unit in ["serial-getty@.service", "getty@.service"] {
        cpio.link(&units.join(unit), "/dev/null".as_ref())?;
    }
    for folder in ["/dev", "/proc", "/run", "/sys", "/tmp", "/var/tmp", "/root", "/var/log"] {
        cpio.directory(Path::new(folder))?;
    }
    cpio.host_file(deb, Path::new("/handshake.deb"))?;
    cpio.finish()?;
    let what = "cannot write the initramfs: is the disk full?";
    let mut file = File::options().append(true).open(to).context(what)?;
    io::copy(&mut File::open(&own).context(what)?, &mut file).context(what)?;
    fs::remove_file(own).context(what)
}
