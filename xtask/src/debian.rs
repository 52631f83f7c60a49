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

/// Downloads the newest versions of these packages in one suite. Returns the folder with the unpacked files,
/// which is below `folder`.
pub(crate) fn fetch(packages: &[&str], suite: &str, folder: &Path) -> Result<PathBuf> {
    let targets = process::read(
        Command::new("apt-get").args(["indextargets", "--format", FORMAT, "Created-By: Packages"]),
        "asking apt for its sources",
        "only Debian has the packages that the tests need",
    )?;
    let source = targets
        .lines()
        .find_map(|target| source(target, suite))
        .context("the system's apt configuration has no entry of the Debian archive")?;
    let folder = folder.join(suite);
    for subfolder in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(folder.join(subfolder))
            .with_context(|| format!("cannot create {}: is the disk full?", folder.display()))?;
    }
    let list = folder.join("debian.list");
    fs::write(&list, source)
        .with_context(|| format!("cannot write {}: is the disk full?", list.display()))?;
    let options = [
        format!("Dir::Etc::sourcelist={}", list.display()),
        "Dir::Etc::sourceparts=-".to_owned(),
        format!("Dir::State::Lists={}", folder.join("lists").display()),
        // Otherwise a newer version that is installed would be the one to download.
        "Dir::State::status=/dev/null".to_owned(),
        format!("Dir::Cache={}", folder.join("cache").display()),
        "Acquire::Languages=none".to_owned(),
        // Otherwise a failed download of the lists is only a warning.
        "APT::Update::Error-Mode=any".to_owned(),
        "APT::Sandbox::User=root".to_owned(),
    ];
    let apt = |arguments: &[&str]| {
        process::read(
            Command::new("apt-get")
                .current_dir(&folder)
                .args(options.iter().flat_map(|option| ["-o", option]))
                .args(arguments),
            &format!("`apt-get {}` of Debian's {suite}", arguments.join(" ")),
            "is the mirror of the system's apt configuration reachable?",
        )
    };
    apt(&["update"])?;
    apt(&[&["download"], packages].concat())?;
    let unpacked = folder.join("unpacked");
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let file = entry.with_context(|| format!("cannot read {}", folder.display()))?.path();
        if file.extension().is_some_and(|extension| extension == "deb") {
            process::read(
                Command::new("dpkg-deb").arg("-x").arg(&file).arg(&unpacked),
                &format!("unpacking {}", file.display()),
                "is the disk full?",
            )?;
        }
    }
    Ok(unpacked)
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
