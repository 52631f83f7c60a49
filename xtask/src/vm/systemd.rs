//! The units under a real systemd: Debian in a virtual machine, which installs the package, starts, reloads,
//! breaks and upgrades the service, lets systemd hold its port, and removes it.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    cpio::Cpio,
    kernel::Kernel,
    qemu::Machine,
    root::{FILES, WITHOUT},
};
use crate::{debian::Suite, packages, process::step, target::Target, workspace::Workspace};

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

/// Emulated, on a busy host, the service starts more slowly than systemd waits by itself.
const PATIENCE: &[u8] = b"[Manager]\nDefaultTimeoutStartSec=10min\nDefaultTimeoutStopSec=10min\n";

/// How long the machine may run, under emulation.
const LIMIT: Duration = Duration::from_mins(40);

/// The page that says how systemd judges the service.
const PAGE: &str = "docs/install.md";

/// Boots it with this package, and the same with a higher version.
pub(crate) fn verify(debs: [&Path; 2], target: Target, workspace: &Workspace) -> Result<()> {
    packages::ensure_for_vm()?;
    let machines = &workspace.target.join("machines");
    let kernel = Kernel::fetch(KERNEL, target, machines)?;
    let programs = programs(target, machines)?;
    let name = format!("systemd-{}-{}", target.arch(), kernel.release);
    let machine = Machine {
        target,
        parameters: String::new(),
        kernel: kernel.image,
        initramfs: machines.join(format!("{name}.initramfs")),
        log: machines.join(format!("{name}.log")),
        limit: LIMIT,
    };
    assemble(debs, &programs, &machine.initramfs)?;
    step(format!("verify: Debian's systemd on {}: {}", kernel.release, machine.log.display()));
    let (mut failures, mut exposure, mut is_over) = (Vec::new(), None, false);
    let ended = machine.run(|line| {
        // The console begins lines with escape sequences.
        let Some(said) = line.find("@@ ").map(|at| &line[at + 3..]) else { return };
        step(format!("verify: {said}"));
        if said.starts_with("failed ") {
            failures.push(said.to_owned());
        }
        exposure = level(said).map(str::to_owned).or(exposure.take());
        is_over |= said == "end";
    });
    fs::remove_file(&machine.initramfs).context("removing the initramfs")?;
    ended?;
    ensure!(is_over, "the machine ended before its last check: {}", machine.log.display());
    ensure!(failures.is_empty(), "under systemd:\n  {}", failures.join("\n  "));
    let page = workspace.root.join(PAGE);
    let text = fs::read_to_string(&page).with_context(|| format!("cannot read {}", page.display()))?;
    is_said(&text, exposure.as_deref())
}

/// How exposed the service is, out of what `systemd-analyze security` says at its end.
fn level(said: &str) -> Option<&str> {
    let (_, level) = said.split_once("exposure level for handshake.service: ")?;
    level.split_whitespace().next()
}

/// Whether the page says of the service what systemd says, such as "2.9".
fn is_said(page: &str, level: Option<&str>) -> Result<()> {
    let Some(level) = level else { bail!("systemd-analyze has not said how exposed the service is") };
    let words: Vec<_> = page.split_whitespace().collect();
    ensure!(
        words.join(" ").contains(&format!("overall exposure level {level},")),
        "systemd-analyze says \"overall exposure level {level}\", and {PAGE} something else"
    );
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

fn assemble([deb, newer]: [&Path; 2], programs: &Path, to: &Path) -> Result<()> {
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
    cpio.file(Path::new("/etc/systemd/system.conf.d/patience.conf"), false, PATIENCE)?;
    // Without it this would be the first boot, which asks questions.
    cpio.file(Path::new("/etc/machine-id"), false, b"0123456789abcdef0123456789abcdef\n")?;
    // The console is the script's.
    for unit in ["serial-getty@.service", "getty@.service"] {
        cpio.link(&units.join(unit), "/dev/null".as_ref())?;
    }
    for folder in ["/dev", "/proc", "/run", "/sys", "/tmp", "/var/tmp", "/root", "/var/log"] {
        cpio.directory(Path::new(folder))?;
    }
    cpio.host_file(deb, Path::new("/first.deb"))?;
    cpio.host_file(newer, Path::new("/newer.deb"))?;
    cpio.finish()?;
    let what = "cannot write the initramfs: is the disk full?";
    let mut file = File::options().append(true).open(to).context(what)?;
    io::copy(&mut File::open(&own).context(what)?, &mut file).context(what)?;
    fs::remove_file(own).context(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_has_to_say_what_systemd_says() {
        let page = "There it says: overall\nexposure level 2.9, OK.";
        let said = "ok security: -> Overall exposure level for handshake.service: 2.9 OK :-) ";
        assert_eq!(level(said), Some("2.9"));
        assert!(is_said(page, level(said)).is_ok());
        assert!(is_said(page, level(&said.replace("2.9", "3.1"))).is_err());
        assert!(is_said(page, None).is_err());
    }
}
