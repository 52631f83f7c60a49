//! Debian's kernels: which one is meant, and what a virtual machine needs of it.

use std::{
    cmp::Reverse,
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::cpio::Cpio;
use crate::{debian::Suite, process::step, target::Target};

/// The newest kernel that Debian builds for its current release.
pub(super) const NEWEST: &str = "newest";

/// The suites whose kernel is of one series for the whole of their support.
const STABLE: [(&str, &str); 3] = [("5.10", "bullseye"), ("6.1", "bookworm"), ("6.12", "trixie")];
/// The suite with all others.
const OTHERS: &str = "trixie-backports";

/// What the tests need and the kernels of cloud images do not have built in.
const MODULES: [&str; 6] = ["tun", "veth", "overlay", "inet_diag", "tcp_diag", "udp_diag"];

/// A kernel, unpacked and kept.
#[derive(Debug, Clone)]
pub(super) struct Kernel {
    /// As `uname -r` says it.
    pub(super) release: String,
    pub(super) image: PathBuf,
    /// An archive with the modules, numbered in the order in which they load.
    pub(super) modules: PathBuf,
}

impl Kernel {
    /// The kernel of this version, such as 6.1, for this processor: a kept one, or the newest of that series
    /// that Debian has.
    pub(super) fn fetch(version: &str, target: Target, folder: &Path) -> Result<Self> {
        let folder = folder.join("kernels").join(target.arch());
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}: is the disk full?", folder.display()))?;
        // Which one that was when it was downloaded.
        let marked = folder.join(NEWEST);
        if version == NEWEST {
            if let Ok(release) = fs::read_to_string(&marked) {
                return Ok(Self::kept(&folder, &release));
            }
        } else {
            let kept: Vec<_> = fs::read_dir(&folder)?
                .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
                .filter(|release| folder.join(release).join("modules.cpio").exists())
                .collect();
            if let Some(release) = newest(kept.iter().map(String::as_str), &numbers(version)) {
                return Ok(Self::kept(&folder, release));
            }
        }
        let downloads = folder.join("apt");
        let suite = Suite::open(suite(version), Some(target.debian()), &downloads)
            .with_context(|| format!("cannot find Debian's kernel {version}"))?;
        let names = suite.names("linux-")?;
        let Some(release) = choose(&names, target.debian(), version) else {
            bail!("Debian has no kernel near {version} for {}", target.arch());
        };
        if version != NEWEST && !numbers(release).starts_with(&numbers(version)) {
            step(format!("vm: Debian has no kernel {version}: {release} is the nearest"));
        }
        let kernel = Self::kept(&folder, release);
        if !kernel.modules.exists() {
            step(format!("vm: downloading the kernel {release} for {} (40 MB)", target.arch()));
            kernel.unpack(&suite, &names)?;
        }
        if version == NEWEST {
            fs::write(&marked, release).with_context(|| format!("cannot write {}", marked.display()))?;
        }
        fs::remove_dir_all(&downloads).ok();
        Ok(kernel)
    }

    fn kept(folder: &Path, release: &str) -> Self {
        let home = folder.join(release);
        Self { release: release.to_owned(), image: home.join("vmlinuz"), modules: home.join("modules.cpio") }
    }

    fn unpack(&self, suite: &Suite, names: &[String]) -> Result<()> {
        let packages = packages(names, &self.release);
        let root = suite.unpack(&packages)?;
        let release = &self.release;
        let images = [format!("boot/vmlinuz-{release}"), format!("usr/lib/modules/{release}/vmlinuz")];
        let image =
            images.iter().map(|path| root.join(path)).find(|path| path.exists()).with_context(|| {
                format!("no vmlinuz in {}: their layout has changed, please report it", packages.join(", "))
            })?;
        // Since the /usr merge of the packages.
        let modules = [format!("lib/modules/{release}"), format!("usr/lib/modules/{release}")];
        let modules = modules
            .iter()
            .map(|path| root.join(path))
            .find(|path| path.join("kernel").exists())
            .with_context(|| {
                format!("no modules in {}: their layout has changed, please report it", packages.join(", "))
            })?;
        let home = self.image.parent().context("a kept kernel is in a folder")?;
        fs::create_dir_all(home)?;
        fs::copy(image, &self.image).context("cannot keep the kernel: is the disk full?")?;
        let partial = home.join("modules.partial");
        let mut cpio = Cpio::create(&partial)?;
        for (place, (name, content)) in in_order(&Modules::find(&modules)?)?.into_iter().enumerate() {
            cpio.file(Path::new(&format!("/modules/{place:02}-{name}.ko")), false, &content)?;
        }
        cpio.finish()?;
        // Last, and atomically: it says that everything is there.
        fs::rename(partial, &self.modules)?;
        Ok(())
    }
}

fn suite(version: &str) -> &'static str {
    let series = &version.split('.').take(2).collect::<Vec<_>>().join(".");
    STABLE.iter().find(|(stable, _)| stable == series).map_or(OTHERS, |(_, suite)| suite)
}

/// The numbers of a release: 6.1.0-50-cloud-amd64 is 6, 1, 0, 50.
pub(super) fn numbers(release: &str) -> Vec<u32> {
    let end = release.find(['+', 'c', 'r']).unwrap_or(release.len());
    release[..end].split(['.', '-']).map_while(|number| number.parse().ok()).collect()
}

/// The newest of these releases that begins with these numbers.
fn newest<'a>(releases: impl Iterator<Item = &'a str>, beginning: &[u32]) -> Option<&'a str> {
    releases.filter(|release| numbers(release).starts_with(beginning)).max_by_key(|release| numbers(release))
}

/// The release of the kernel that is meant, by the names of all packages. Where there is none of this series,
/// the newest of the nearest one.
fn choose<'a>(names: &'a [String], architecture: &str, version: &str) -> Option<&'a str> {
    let ending = format!("-cloud-{architecture}");
    let releases = || {
        names.iter().filter_map(|name| name.strip_prefix("linux-image-")).filter(|release| {
            release.ends_with(&ending) && release.starts_with(|first: char| first.is_ascii_digit())
        })
    };
    if version == NEWEST {
        return newest(releases(), &[]);
    }
    let wanted = numbers(version);
    let series = |numbers: &[u32]| {
        let at = |index: usize| numbers.get(index).copied().unwrap_or_default();
        i64::from(at(0)) * 1000 + i64::from(at(1))
    };
    newest(releases(), &wanted).or_else(|| {
        releases().min_by_key(|release| {
            let numbers = numbers(release);
            ((series(&numbers) - series(&wanted)).abs(), Reverse(numbers))
        })
    })
}

/// The packages with the kernel and its modules: newer ones are split.
fn packages(names: &[String], release: &str) -> Vec<String> {
    let all = ["image", "binary", "modules"].map(|part| format!("linux-{part}-{release}"));
    all.into_iter().filter(|package| names.contains(package)).collect()
}

/// The modules of one kernel.
struct Modules {
    files: Vec<PathBuf>,
    /// The names of those that are built in.
    builtin: BTreeSet<String>,
}

impl Modules {
    fn find(folder: &Path) -> Result<Self> {
        let mut files = Vec::new();
        let mut folders = vec![folder.join("kernel")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
                let path = entry?.path();
                if path.is_dir() { folders.push(path) } else { files.push(path) }
            }
        }
        let builtin = fs::read_to_string(folder.join("modules.builtin")).unwrap_or_default();
        let builtin = builtin.lines().map(|line| name_of(Path::new(line))).collect();
        Ok(Self { files, builtin })
    }

    /// The content of a module; `None` if it is built in.
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let Some(file) = self.files.iter().find(|file| name_of(file) == name) else {
            // Not all of them are listed: those that have become a part of another, for example.
            return Ok(None);
        };
        if self.builtin.contains(name) {
            return Ok(None);
        }
        if file.extension().is_some_and(|extension| extension == "xz") {
            let output = Command::new("xz")
                .args(["--decompress", "--stdout"])
                .arg(file)
                .output()
                .context("`xz` cannot be started: is xz-utils installed?")?;
            if !output.status.success() {
                bail!("`xz --decompress {}` failed ({})", file.display(), output.status);
            }
            return Ok(Some(output.stdout));
        }
        fs::read(file).map(Some).with_context(|| format!("cannot read {}", file.display()))
    }
}

/// The name of the module in this file.
fn name_of(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    name.split('.').next().unwrap_or_default().replace('-', "_")
}

/// [`MODULES`] and what they depend on, which comes first.
fn in_order(modules: &Modules) -> Result<Vec<(String, Vec<u8>)>> {
    let mut order: Vec<(String, Vec<u8>)> = Vec::new();
    // A module comes up twice: what it depends on is put in front of it in between.
    let mut left: Vec<(String, bool)> =
        MODULES.iter().rev().map(|name| ((*name).to_owned(), false)).collect();
    while let Some((name, is_ready)) = left.pop() {
        if order.iter().any(|(known, _)| *known == name) {
            continue;
        }
        let Some(content) = modules.read(&name)? else { continue };
        if is_ready {
            order.push((name, content));
        } else {
            let needed = depends(&content);
            left.push((name, true));
            left.extend(needed.into_iter().map(|needed| (needed, false)));
        }
    }
    Ok(order)
}

/// The modules that this one says it depends on (`MODULE_INFO`).
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = module[at + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value);
    names.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Vec<String> {
        [
            "linux-image-6.1.0-47-cloud-amd64",
            "linux-image-6.1.0-50-cloud-amd64",
            "linux-image-6.1.0-50-cloud-amd64-dbg",
            "linux-image-6.1.0-50-cloud-arm64",
            "linux-image-6.12.9+deb13-cloud-amd64",
            "linux-image-6.12.107+deb13-cloud-amd64",
            "linux-image-6.12.107+deb13-amd64",
            "linux-image-cloud-amd64",
            "linux-image-7.3.4+deb13-cloud-amd64",
            "linux-binary-7.3.4+deb13-cloud-amd64",
            "linux-modules-7.3.4+deb13-cloud-amd64",
        ]
        .map(str::to_owned)
        .to_vec()
    }

    #[test]
    fn newest_kernel_of_the_series_is_chosen() {
        let names = names();
        let choose = |version| choose(&names, "amd64", version);
        assert_eq!(choose("6.1"), Some("6.1.0-50-cloud-amd64"));
        assert_eq!(choose("6.12"), Some("6.12.107+deb13-cloud-amd64"));
        assert_eq!(choose("6.12.9"), Some("6.12.9+deb13-cloud-amd64"));
        assert_eq!(choose(NEWEST), Some("7.3.4+deb13-cloud-amd64"));
        assert_eq!(choose("6.18"), Some("6.12.107+deb13-cloud-amd64"), "the nearest");
        assert_eq!(choose("7.0"), Some("7.3.4+deb13-cloud-amd64"), "the nearest");
        assert_eq!(super::choose(&names, "riscv64", "6.1"), None);
    }

    #[test]
    fn split_packages_come_together() {
        let names = names();
        assert_eq!(packages(&names, "6.1.0-50-cloud-amd64"), ["linux-image-6.1.0-50-cloud-amd64"]);
        assert_eq!(packages(&names, "7.3.4+deb13-cloud-amd64").len(), 3);
    }

    #[test]
    fn series_of_a_release_leads_to_its_suite() {
        assert_eq!(suite("5.10"), "bullseye");
        assert_eq!(suite("6.1.0"), "bookworm");
        assert_eq!(suite("6.18"), OTHERS);
        assert_eq!(suite(NEWEST), OTHERS);
    }

    #[test]
    fn modules_follow_what_they_depend_on() {
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("kernel/net");
        fs::create_dir_all(&kernel).unwrap();
        for (name, depends) in
            [("tcp_diag", "inet_diag"), ("inet_diag", "base-one"), ("base-one", ""), ("tun", "")]
        {
            fs::write(kernel.join(format!("{name}.ko")), format!("\0depends={depends}\0name=x\0")).unwrap();
        }
        fs::write(folder.path().join("modules.builtin"), "kernel/net/tun.ko\n").unwrap();
        let order = in_order(&Modules::find(folder.path()).unwrap()).unwrap();
        let names: Vec<_> = order.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["base_one", "inet_diag", "tcp_diag"], "tun is built in");
    }
}
