//! Packages of another Debian suite, unpacked and not installed, without touching the system's own package
//! lists: the archive's address and key come from the system's apt configuration, only the suite differs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::process;

/// What `apt-get indextargets` prints for each source of packages.
const FORMAT: &str = "$(REPO_URI)|$(RELEASE)|$(SIGNED_BY)";

/// The suites by which the Debian archive is recognised, whatever its mirror is called. apt knows the origin
/// only once it has downloaded the lists, which a fresh image lacks.
const SUITES: [&str; 11] = [
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "duke",
    "sid",
    "oldoldstable",
    "oldstable",
    "stable",
    "testing",
    "unstable",
];

/// One suite of the archive, for one architecture, with package lists and a cache of its own.
pub(crate) struct Suite {
    name: String,
    folder: PathBuf,
    options: Vec<String>,
}

impl Suite {
    /// Downloads the package lists into a subfolder of `folder`; without an architecture, those of the
    /// system's.
    pub(crate) fn open(name: &str, architecture: Option<&str>, folder: &Path) -> Result<Self> {
        let targets = process::read(
            Command::new("apt-get").args(["indextargets", "--format", FORMAT, "Created-By: Packages"]),
            "asking apt for its sources",
            "only Debian has the packages that the tests need",
        )?;
        let source = targets
            .lines()
            .find_map(|target| source(target, name))
            .context("the system's apt configuration has no entry of the Debian archive")?;
        let folder = folder.join(name);
        for subfolder in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(subfolder))
                .with_context(|| format!("cannot create {}: is the disk full?", folder.display()))?;
        }
        let list = folder.join("debian.list");
        fs::write(&list, source)
            .with_context(|| format!("cannot write {}: is the disk full?", list.display()))?;
        let mut options = vec![
            format!("Dir::Etc::sourcelist={}", list.display()),
            "Dir::Etc::sourceparts=-".to_owned(),
            format!("Dir::State={}", folder.display()),
            format!("Dir::State::Lists={}", folder.join("lists").display()),
            // Otherwise a newer version that is installed would be the one to download.
            "Dir::State::status=/dev/null".to_owned(),
            format!("Dir::Cache={}", folder.join("cache").display()),
            "Acquire::Languages=none".to_owned(),
            // Otherwise a failed download of the lists is only a warning.
            "APT::Update::Error-Mode=any".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
        ];
        if let Some(architecture) = architecture {
            options.push(format!("APT::Architecture={architecture}"));
            options.push(format!("APT::Architectures={architecture}"));
        }
        let suite = Self { name: name.to_owned(), folder, options };
        suite.apt("apt-get", &["update"])?;
        Ok(suite)
    }

    /// The names of all packages that begin with this.
    pub(crate) fn names(&self, beginning: &str) -> Result<Vec<String>> {
        let names = self.apt("apt-cache", &["pkgnames", beginning])?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// Unpacks the newest versions of these packages. Returns the folder with their files.
    pub(crate) fn unpack(&self, packages: &[impl AsRef<str>]) -> Result<PathBuf> {
        let names = packages.iter().map(AsRef::as_ref);
        self.apt("apt-get", &["download"].into_iter().chain(names).collect::<Vec<_>>())?;
        unpack_all(&self.folder, &self.folder.join("unpacked"))
    }

    /// The same with everything that these packages depend on. A name with a minus behind it is left out.
    pub(crate) fn unpack_with_dependencies(&self, packages: &[&str]) -> Result<PathBuf> {
        // Nothing is installed, so that no lock of the system's is needed.
        let install =
            ["-o", "Debug::NoLocking=1", "--yes", "--no-install-recommends", "--download-only", "install"];
        self.apt("apt-get", &[&install, packages].concat())?;
        unpack_all(&self.folder.join("cache/archives"), &self.folder.join("unpacked"))
    }

    fn apt(&self, program: &str, arguments: &[&str]) -> Result<String> {
        process::read(
            Command::new(program)
                .current_dir(&self.folder)
                .args(self.options.iter().flat_map(|option| ["-o", option]))
                .args(arguments),
            &format!("`{program} {}` of Debian's {}", arguments.join(" "), self.name),
            "is the mirror of the system's apt configuration reachable?",
        )
    }
}

fn unpack_all(folder: &Path, to: &Path) -> Result<PathBuf> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let file = entry.with_context(|| format!("cannot read {}", folder.display()))?.path();
        if file.extension().is_some_and(|extension| extension == "deb") {
            process::read(
                Command::new("dpkg-deb").arg("-x").arg(&file).arg(to),
                &format!("unpacking {}", file.display()),
                "is the disk full?",
            )?;
        }
    }
    Ok(to.to_owned())
}

/// The line of a sources.list for another suite of the archive of this index target. Returns `None` if it is
/// not the main Debian archive; the security archive does not carry every suite.
fn source(target: &str, suite: &str) -> Option<String> {
    let mut fields = target.split('|');
    let (uri, release, key) = (fields.next()?, fields.next()?, fields.next()?);
    let (name, rest) = release.split_once(['-', '/']).unwrap_or((release, ""));
    (SUITES.contains(&name) && rest != "security" && !uri.contains("security")).then_some(())?;
    // An unset field keeps its name. The key of an archive without one is in apt's own keyring.
    let option = if key.is_empty() || key.starts_with('$') { "" } else { &format!("[signed-by={key}] ") };
    Some(format!("deb {option}{uri} {suite} main\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_is_the_archive_of_the_system_with_another_suite() {
        let target = "http://mirror.invalid/debian/|bookworm|/usr/share/keyrings/debian.gpg";
        assert_eq!(
            source(target, "sid").as_deref(),
            Some("deb [signed-by=/usr/share/keyrings/debian.gpg] http://mirror.invalid/debian/ sid main\n")
        );
        let target = "http://mirror.invalid/debian/|bookworm-updates|$(SIGNED_BY)";
        assert_eq!(source(target, "sid").as_deref(), Some("deb http://mirror.invalid/debian/ sid main\n"));
    }

    #[test]
    fn security_and_foreign_archives_are_not_the_debian_archive() {
        for target in [
            "http://mirror.invalid/debian-security/|bookworm-security|$(SIGNED_BY)",
            "http://mirror.invalid/debian-security/|bullseye/updates|$(SIGNED_BY)",
            "http://other.invalid/apt/|stuff|$(SIGNED_BY)",
            "no target",
            "",
        ] {
            assert_eq!(source(target, "sid"), None, "{target}");
        }
    }
}
