//! `cargo xtask dist`: everything that is given away, in target/dist.

mod oci;
mod sbom;
mod tree;
mod verify;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    build,
    process::{self, step},
    setup::{self, Ready},
    target::Target,
    tools::Tool,
    vm,
    workspace::{Profile, Workspace},
};

const CARGO_DEB: Tool = Tool {
    name: "cargo-deb",
    version: "3.8.0",
    arguments: &["--debug"],
    purpose: "it writes the package for Debian (two minutes, once)",
};

const CARGO_GENERATE_RPM: Tool = Tool {
    name: "cargo-generate-rpm",
    version: "0.21.1",
    arguments: &["--debug"],
    purpose: "it writes the package for Fedora and its relatives (two minutes, once)",
};

/// Make the packages: tarball, .deb, .rpm, OCI image, SBOM and checksums, in target/dist
///
/// The program inside is static. The same commit, built again, gives the same bytes.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask dist                  # x86_64 and aarch64\n  \
        cargo xtask dist --verify         # and build again, install, upgrade, remove and purge\n  \
        cargo xtask dist --target x86_64-unknown-linux-musl\n\
        How to install each of them:  docs/install.md")]
pub(crate) struct Args {
    /// Only for this target; repeatable
    #[arg(long)]
    target: Vec<Target>,
    /// Build everything a second time, from a copy of the sources, and compare the bytes; install, upgrade,
    /// remove and purge this machine's packages in throw-away roots; needs root
    #[arg(long)]
    verify: bool,
    /// Boot Debian in a virtual machine, with the .deb of this machine under its systemd
    #[arg(long)]
    verify_systemd: bool,
}

pub(crate) fn main(args: &Args) -> Result<()> {
    let workspace = Workspace::locate()?;
    let ready = setup::ensure(&workspace)?;
    let both = [Target::X86_64, Target::Aarch64];
    let targets = if args.target.is_empty() { &both[..] } else { &args.target };
    let tools = Tools {
        deb: CARGO_DEB.ensure(&workspace)?,
        rpm: CARGO_GENERATE_RPM.ensure(&workspace)?,
        date: date(&workspace)?,
    };
    let folder = make(&workspace, &ready, &tools, targets)?;
    step(format!("dist: everything is in {}", folder.display()));
    if args.verify {
        verify::all(&folder)?;
        same_again(&workspace, &ready, &tools, targets)?;
    }
    if args.verify_systemd {
        let target = Target::of_arch(ready.toolchain.bpf_target_arch())
            .context("there is no package for this machine's processor")?;
        let deb = verify::deb(&folder, target.debian())?;
        let work = tempfile::tempdir().context("cannot create a temporary folder")?;
        let newer = verify::newer(&deb, work.path())?;
        vm::systemd::verify([&deb, &newer], target, &workspace)?;
    }
    Ok(())
}

/// What all packages need.
struct Tools {
    /// What writes them.
    deb: PathBuf,
    rpm: PathBuf,
    /// The time in them, seconds since 1970.
    date: String,
}

/// Makes everything. Returns the folder with it.
fn make(workspace: &Workspace, ready: &Ready, tools: &Tools, targets: &[Target]) -> Result<PathBuf> {
    let folder = workspace.target.join("dist");
    fs::remove_dir_all(&folder).ok();
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let generated = generate(workspace, ready)?;
    for target in targets {
        Package::new(workspace, tools, *target, &folder)?.make(ready, &generated)?;
    }
    checksums(&folder)?;
    Ok(folder)
}

/// Copies the sources to another folder, makes everything there, from nothing, and compares.
fn same_again(workspace: &Workspace, ready: &Ready, tools: &Tools, targets: &[Target]) -> Result<()> {
    let began = Instant::now();
    // Not /tmp, which may be in memory: a build takes gigabytes.
    let parent = env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    let copy = tempfile::tempdir_in(&parent)
        .with_context(|| format!("cannot create a folder in {}", parent.display()))?;
    let root = copy.path().join("sources");
    copy_sources(&workspace.root, &root)?;
    step(format!("verify: building again in {}", root.display()));
    let again = Workspace { target: root.join("target"), root, packages: workspace.packages.clone() };
    let folder = make(&again, ready, tools, targets)?;
    let sums = |folder: &Path| {
        let sums = folder.join("SHA256SUMS");
        fs::read_to_string(&sums).with_context(|| format!("cannot read {}", sums.display()))
    };
    let (one, two) = (sums(&workspace.target.join("dist"))?, sums(&folder)?);
    if one != two {
        let differ: Vec<_> = two.lines().filter(|line| !one.lines().any(|other| other == *line)).collect();
        bail!(
            "the second build differs, and is kept in {}:\n  {}",
            copy.keep().display(),
            differ.join("\n  ")
        );
    }
    let took = Duration::from_secs(began.elapsed().as_secs());
    step(format!("verify: built again from nothing in {took:?}: the same {} files", one.lines().count()));
    copy.close().context("cannot remove the second build")
}

/// Copies the files that git knows, as they are now.
fn copy_sources(from: &Path, to: &Path) -> Result<()> {
    let mut git = Command::new("git");
    git.current_dir(from).args(["ls-files", "-z"]);
    let files = process::read(&mut git, "asking git for the sources", "is this a clone?")?;
    for file in files.split_terminator('\0') {
        let (from, to) = (from.join(file), to.join(file));
        if !from.is_file() {
            continue;
        }
        to.parent()
            .map_or(Ok(()), fs::create_dir_all)
            .and_then(|()| fs::copy(&from, &to))
            .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    }
    Ok(())
}

/// The packages of one target.
struct Package<'a> {
    workspace: &'a Workspace,
    tools: &'a Tools,
    target: Target,
    folder: &'a Path,
    version: String,
}

impl<'a> Package<'a> {
    fn new(workspace: &'a Workspace, tools: &'a Tools, target: Target, folder: &'a Path) -> Result<Self> {
        let program = workspace.packages.iter().find(|package| package.name == "handshake-user");
        let version = program.context("there is no package handshake-user")?.version.to_string();
        Ok(Self { workspace, tools, target, folder, version })
    }

    fn make(&self, ready: &Ready, generated: &Path) -> Result<()> {
        let binary = build::both_for(self.workspace, ready, Profile::Release, self.target)?;
        step(format!("dist: packages for {}", self.target));
        // handshake-user/Cargo.toml names the files in this folder to those who write .deb and .rpm.
        let tree = self.workspace.root.join("target/dist-tree");
        tree::lay_out(self.workspace, &binary, generated, &tree)?;
        self.tarball(&tree)?;
        self.rpm()?;
        tree::debianize(&tree)?;
        self.deb()?;
        oci::image(&binary, self.target, &self.version, &self.tools.date, &self.named("oci.tar"))?;
        sbom::write(self.workspace, self.target, &self.version, &self.named("cdx.json"))?;
        fs::remove_dir_all(&tree).with_context(|| format!("cannot remove {}", tree.display()))
    }

    /// `handshake-VERSION-ARCHITECTURE.EXTENSION`.
    fn named(&self, extension: &str) -> PathBuf {
        self.folder.join(format!("handshake-{}-{}.{extension}", self.version, self.target.arch()))
    }

    fn tarball(&self, tree: &Path) -> Result<()> {
        let top = format!("handshake-{}-{}", self.version, self.target.arch());
        let archive = self.named("tar");
        tar(&self.tools.date, &archive, &[&format!("--transform=s,^\\.,{top},")], tree)?;
        gzip(&archive)
    }

    fn rpm(&self) -> Result<()> {
        let mut rpm = process::clean(&self.tools.rpm, self.workspace);
        rpm.args(["generate-rpm", "--package", "handshake-user", "--auto-req", "disabled"])
            .args(["--target", self.target.triple(), "--output"])
            .arg(self.folder);
        self.write(&mut rpm, "writing the .rpm")
    }

    fn deb(&self) -> Result<()> {
        let mut deb = process::clean(&self.tools.deb, self.workspace);
        deb.args(["--no-build", "--no-strip", "--locked", "--package", "handshake-user"])
            .args(["--target", self.target.triple(), "--output"])
            .arg(self.folder);
        self.write(&mut deb, "writing the .deb")
    }

    fn write(&self, tool: &mut Command, what: &str) -> Result<()> {
        tool.current_dir(&self.workspace.root)
            .env("CARGO_TARGET_DIR", &self.workspace.target)
            .env("SOURCE_DATE_EPOCH", &self.tools.date);
        process::read(tool, what, "see its message").map(drop)
    }
}

/// When the commit was made, unless the environment says otherwise (reproducible-builds.org).
fn date(workspace: &Workspace) -> Result<String> {
    if let Ok(date) = env::var("SOURCE_DATE_EPOCH") {
        return Ok(date);
    }
    let mut git = Command::new("git");
    git.current_dir(&workspace.root).args(["log", "-1", "--format=%ct"]);
    let date = process::read(
        &mut git,
        "asking git for the date of the commit",
        "outside a clone, set SOURCE_DATE_EPOCH",
    )?;
    Ok(date.trim().to_owned())
}

/// Man pages and completions.
fn generate(workspace: &Workspace, ready: &Ready) -> Result<PathBuf> {
    let object = build::ebpf(workspace, ready)?;
    let folder = workspace.target.join("dist-generated");
    fs::remove_dir_all(&folder).ok();
    process::run(
        process::cargo(workspace)
            .args(["run", "--quiet", "--package", "handshake-user", "--features", "generate"])
            .args(["--bin", "handshake-generate", "--"])
            .arg(&folder)
            .env("HANDSHAKE_EBPF_OBJECT", object),
        "writing man pages and completions",
        "see its message above",
    )?;
    Ok(folder)
}

/// A tar file of a folder that depends on names, modes and contents alone.
fn tar(date: &str, archive: &Path, more: &[&str], folder: &Path) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.args(["--create", "--format=ustar", "--sort=name", "--owner=0", "--group=0", "--numeric-owner"])
        .arg(format!("--mtime=@{date}"))
        .args(more)
        .arg("--file")
        .arg(archive)
        .arg("--directory")
        .arg(folder)
        .arg(".");
    process::read(&mut tar, &format!("writing {}", archive.display()), "is tar GNU tar?").map(drop)
}

/// Replaces the file by one with `.gz` behind its name.
fn gzip(file: &Path) -> Result<()> {
    let mut gzip = Command::new("gzip");
    gzip.args(["-9", "--no-name", "--force"]).arg(file);
    process::read(&mut gzip, &format!("compressing {}", file.display()), "is the disk full?").map(drop)
}

/// SHA-256 in hexadecimal.
fn sha256(file: &Path) -> Result<String> {
    let mut sum = Command::new("sha256sum");
    sum.arg("--").arg(file);
    let line = process::read(&mut sum, "computing a checksum", "is sha256sum installed?")?;
    let digits = line.split_whitespace().next().context("sha256sum printed nothing")?;
    Ok(digits.trim_start_matches('\\').to_owned())
}

/// SHA256SUMS, in the form that `sha256sum --check` reads.
fn checksums(folder: &Path) -> Result<()> {
    let mut lines = Vec::new();
    for file in files(folder)? {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        lines.push(format!("{}  {name}\n", sha256(&file)?));
    }
    let sums = folder.join("SHA256SUMS");
    fs::write(&sums, lines.concat()).with_context(|| format!("cannot write {}", sums.display()))
}

/// The files in a folder, by name.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    Ok(entries(folder)?.into_iter().filter(|path| path.is_file()).collect())
}

/// The folders in a folder, by name.
fn subfolders(folder: &Path) -> Result<Vec<PathBuf>> {
    Ok(entries(folder)?.into_iter().filter(|path| path.is_dir()).collect())
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut paths = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()
        .with_context(|| format!("cannot read {}", folder.display()))?;
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_depends_on_names_modes_and_contents_alone() {
        let folder = tempfile::tempdir().unwrap();
        let archive = |name: &str| {
            let tree = folder.path().join(name);
            fs::create_dir_all(tree.join("usr")).unwrap();
            // In another order, at another time.
            let order = if name == "one" { ["a", "b"] } else { ["b", "a"] };
            for file in order {
                fs::write(tree.join("usr").join(file), file).unwrap();
            }
            let archive = folder.path().join(format!("{name}.tar"));
            tar("1700000000", &archive, &[], &tree).unwrap();
            gzip(&archive).unwrap();
            fs::read(folder.path().join(format!("{name}.tar.gz"))).unwrap()
        };
        assert_eq!(archive("one"), archive("two"));
    }

    #[test]
    fn sources_are_copied_as_they_are_now_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        fs::create_dir_all(from.join("src")).unwrap();
        for file in ["src/changed", "removed", "not added"] {
            fs::write(from.join(file), "before").unwrap();
        }
        for arguments in [&["init", "--quiet"][..], &["add", "src", "removed"]] {
            process::read(Command::new("git").current_dir(&from).args(arguments), "git", "").unwrap();
        }
        fs::write(from.join("src/changed"), "after").unwrap();
        fs::remove_file(from.join("removed")).unwrap();
        copy_sources(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(to.join("src/changed")).unwrap(), "after");
        assert_eq!(fs::read_dir(&to).unwrap().count(), 1);
    }

    #[test]
    fn checksums_are_what_sha256sum_checks() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("empty"), "").unwrap();
        checksums(folder.path()).unwrap();
        let expected = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  empty\n";
        assert_eq!(fs::read_to_string(folder.path().join("SHA256SUMS")).unwrap(), expected);
    }
}
