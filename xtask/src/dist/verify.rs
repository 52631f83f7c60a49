//! `cargo xtask dist --verify`: the life of the packages in throw-away roots, and the unit as systemd reads
//! it.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;

use super::files;
use crate::process::{self, step};

/// The configuration file in a root.
const CONFIGURATION: &str = "etc/handshake/handshake.toml";
const UNIT: &str = "usr/lib/systemd/system/handshake.service";

/// What the package must have put somewhere; the rest it lists itself.
const EXPECTED: [&str; 8] = [
    "usr/bin/handshake",
    UNIT,
    CONFIGURATION,
    "usr/share/man/man1/handshake-daemon.1.gz",
    "usr/share/man/man5/handshake.toml.5.gz",
    "usr/share/bash-completion/completions/handshake",
    "usr/share/zsh/vendor-completions/_handshake",
    "usr/share/fish/vendor_completions.d/handshake.fish",
];

/// Verifies the .deb of this machine.
pub(super) fn all(folder: &Path) -> Result<()> {
    let mut print = Command::new("dpkg");
    let arch = process::read(print.arg("--print-architecture"), "asking dpkg", "only Debian has dpkg")?;
    let deb = deb(folder, arch.trim())?;
    ensure!(process::is_root(), "dpkg needs root to install, also in a throw-away root");

    let root = Root::new()?;
    root.dpkg(&["--install"], &deb)?;
    for file in EXPECTED {
        ensure!(root.path(file).is_file(), "the package does not install /{file}");
    }
    root.check_configuration()?;
    root.check_unit()?;
    step("verify: installed; the program accepts its configuration, and systemd the unit");

    let edited = "max_series = 7\n";
    fs::write(root.path(CONFIGURATION), edited).context("cannot edit the configuration")?;
    root.dpkg(&["--force-confdef", "--force-confold", "--install"], &newer(&deb, root.folder.path())?)?;
    ensure!(root.read(CONFIGURATION)? == edited, "the upgrade has overwritten an edited configuration");
    ensure!(root.status()?.contains("Version: 999"), "the newer version is not installed");
    root.check_configuration()?;
    step("verify: upgraded; the edited configuration is kept");

    root.dpkg(&["--remove"], Path::new("handshake"))?;
    ensure!(!root.path("usr/bin/handshake").exists(), "the program is still there after removal");
    ensure!(root.read(CONFIGURATION)? == edited, "removal has taken the configuration away");
    let recorded = root.path("var/log/private/handshake/records.jsonl");
    fs::create_dir_all(recorded.parent().unwrap_or(&recorded))
        .and_then(|()| fs::write(&recorded, ""))
        .context("cannot write a recording")?;
    root.dpkg(&["--purge"], Path::new("handshake"))?;
    let left = root.left()?;
    ensure!(left.is_empty(), "left behind by purge: {left:?}");
    step("verify: removed and purged; nothing is left");
    rpm(folder, &root)
}

/// The .rpm of this machine, where rpm is installed: what it lists, and its life in a root of its own.
fn rpm(folder: &Path, root: &Root) -> Result<()> {
    if process::find_program("rpm").is_none() {
        step("verify: no rpm: the .rpm is not looked at");
        return Ok(());
    }
    let ending = format!(".{}.rpm", env::consts::ARCH);
    let package = files(folder)?.into_iter().find(|file| file.to_string_lossy().ends_with(&ending));
    let package = package.context("there is no .rpm for this machine")?;
    let rpm = |arguments: &[&str]| {
        let mut rpm = Command::new("rpm");
        process::read(
            rpm.args(arguments).arg(&package),
            &format!("`rpm {}`", arguments.join(" ")),
            "see its message",
        )
    };
    let lists = rpm(&["--query", "--list", "--package"])?;
    for file in EXPECTED {
        let file = format!("/{}", file.replace("zsh/vendor-completions", "zsh/site-functions"));
        ensure!(lists.lines().any(|line| line == file), "the .rpm does not have {file}");
    }
    let configuration = rpm(&["--query", "--configfiles", "--package"])?;
    ensure!(
        configuration.trim() == format!("/{CONFIGURATION}"),
        "configuration of the .rpm: {configuration}"
    );

    let at = root.folder.path().join("rpm");
    fs::create_dir_all(&at).context("cannot create a root for rpm")?;
    let at = at.display().to_string();
    // No shell is there for its scripts.
    rpm(&["--root", &at, "--nodeps", "--noscripts", "--install"])?;
    let edited = Path::new(&at).join(CONFIGURATION);
    fs::write(&edited, "max_series = 7\n").context("the .rpm installs no configuration")?;
    rpm(&["--root", &at, "--nodeps", "--noscripts", "--replacepkgs", "--upgrade"])?;
    let kept = fs::read_to_string(&edited).context("the upgrade has removed the configuration")?;
    ensure!(kept == "max_series = 7\n", "the upgrade has overwritten an edited configuration");
    let mut erase = Command::new("rpm");
    erase.args(["--root", &at, "--nodeps", "--noscripts", "--erase", "handshake"]);
    process::read(&mut erase, "`rpm --erase`", "see its message")?;
    ensure!(!Path::new(&at).join("usr/bin/handshake").exists(), "rpm has left the program behind");
    step(format!("verify: the .rpm has {} files; installed, upgraded and erased", lists.lines().count()));
    Ok(())
}

/// The .deb for this processor, by Debian's name.
pub(super) fn deb(folder: &Path, arch: &str) -> Result<PathBuf> {
    let ending = format!("_{arch}.deb");
    let deb = files(folder)?.into_iter().find(|file| file.to_string_lossy().ends_with(&ending));
    deb.with_context(|| format!("there is no .deb for this machine's {arch}"))
}

/// The same package with a higher version and another configuration file.
pub(super) fn newer(deb: &Path, work: &Path) -> Result<PathBuf> {
    let tree = work.join("newer");
    let mut unpack = Command::new("dpkg-deb");
    process::read(
        unpack.arg("--raw-extract").arg(deb).arg(&tree),
        "unpacking the .deb",
        "is the disk full?",
    )?;
    let control = tree.join("DEBIAN/control");
    let text = fs::read_to_string(&control).context("the .deb has no control file")?;
    let lines = text.lines().map(|line| if line.starts_with("Version: ") { "Version: 999-1" } else { line });
    fs::write(&control, lines.collect::<Vec<_>>().join("\n") + "\n")
        .context("cannot write a control file")?;
    let configuration = tree.join(CONFIGURATION);
    let text = fs::read_to_string(&configuration).context("the .deb has no configuration file")?;
    fs::write(&configuration, text + "# newer\n").context("cannot write a configuration file")?;
    let newer = work.join("newer.deb");
    let mut pack = Command::new("dpkg-deb");
    pack.args(["--root-owner-group", "-Zgzip", "-z1", "--build"]).arg(&tree).arg(&newer);
    process::read(&mut pack, "packing a newer .deb", "is the disk full?")?;
    Ok(newer)
}

/// A file system with nothing but the files of dpkg.
struct Root {
    folder: TempDir,
}

impl Root {
    fn new() -> Result<Self> {
        let folder = tempfile::tempdir().context("cannot create a temporary folder")?;
        let root = Self { folder };
        for subfolder in ["info", "updates", "triggers", "parts"] {
            let subfolder = root.path("var/lib/dpkg").join(subfolder);
            fs::create_dir_all(&subfolder)
                .with_context(|| format!("cannot create {}", subfolder.display()))?;
        }
        fs::write(root.path("var/lib/dpkg/status"), "").context("cannot write dpkg's status")?;
        Ok(root)
    }

    fn path(&self, file: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join("root").join(file)
    }

    fn read(&self, file: &str) -> Result<String> {
        fs::read_to_string(self.path(file)).with_context(|| format!("cannot read /{file} in the root"))
    }

    fn status(&self) -> Result<String> {
        self.read("var/lib/dpkg/status")
    }

    fn dpkg(&self, action: &[&str], package: &Path) -> Result<()> {
        let mut dpkg = Command::new("dpkg");
        dpkg.arg(format!("--root={}", self.path("").display()))
            // The root has no shell: the package's scripts run outside, with DPKG_ROOT, as Debian's own
            // helpers understand it.
            .args(["--force-script-chrootless", "--log=/dev/null"])
            .args(action)
            .arg(package);
        process::read(&mut dpkg, &format!("`dpkg {}`", action.join(" ")), "see its message").map(drop)
    }

    fn check_configuration(&self) -> Result<()> {
        let mut check = Command::new(self.path("usr/bin/handshake"));
        check.args(["daemon", "--check-config", "--config"]).arg(self.path(CONFIGURATION));
        let answer = process::read(&mut check, "`handshake daemon --check-config`", "see its message")?;
        if answer == "OK\n" { Ok(()) } else { bail!("the program says of its configuration: {answer}") }
    }

    /// The unit as systemd reads it, where there is one.
    fn check_unit(&self) -> Result<()> {
        let Some(analyze) = process::find_program("systemd-analyze") else {
            step("verify: no systemd-analyze: the unit is not verified");
            return Ok(());
        };
        // It looks for what the unit executes. Every system has a shell, but not this root.
        let shell = self.path("bin/sh");
        fs::create_dir_all(self.path("bin"))
            .and_then(|()| fs::write(&shell, ""))
            .and_then(|()| fs::set_permissions(&shell, fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("cannot write {}", shell.display()))?;
        let mut verify = Command::new(analyze);
        verify
            .args(["verify", "--man=no", "--recursive-errors=no"])
            .arg(format!("--root={}", self.path("").display()))
            .arg("handshake.service");
        process::read(&mut verify, "`systemd-analyze verify`", "see its message").map(drop)
    }

    /// Every file and folder whose name has that of the package in it.
    fn left(&self) -> Result<Vec<String>> {
        let mut find = Command::new("find");
        find.arg(self.path("")).args(["-name", "*handshake*"]);
        let left = process::read(&mut find, "looking for what is left", "is find installed?")?;
        Ok(left.lines().map(str::to_owned).collect())
    }
}
