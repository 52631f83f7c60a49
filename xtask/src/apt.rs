//! A package out of the Debian archive without installing it, and without touching the system's own lists:
//! the archive's address and key come from the system's apt configuration, only the suite is another one.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::process::{self, step};

/// Where newer packages are, the likeliest first.
const SUITES: [&str; 6] =
    ["trixie-backports", "sid", "forky", "forky-backports", "trixie", "bookworm-backports"];

/// The suites by which an entry of the Debian archive is known, whatever its mirror is called.
const DEBIAN: [&str; 11] = [
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

/// One source of packages, in the words of a deb822 `.sources` file, without its suites.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Source {
    suites: Vec<String>,
    fields: Vec<(String, String)>,
}

impl Source {
    /// The main Debian archive: not its security part, which has no backports, and nobody else's.
    fn is_debian(&self) -> bool {
        let field = |wanted: &str| {
            self.fields
                .iter()
                .find(|(name, _)| name.eq_ignore_ascii_case(wanted))
                .map_or("", |(_, value)| value)
        };
        let is_debian_suite = |suite: &String| {
            !suite.contains("security") && DEBIAN.contains(&suite.split('-').next().unwrap_or(suite))
        };
        field("Components").split_whitespace().any(|component| component == "main")
            && !field("URIs").contains("security")
            && self.suites.iter().any(is_debian_suite)
    }

    fn with_suite(&self, suite: &str) -> String {
        let fields = self.fields.iter().map(|(name, value)| format!("{name}: {value}\n"));
        format!("Types: deb\nSuites: {suite}\n{}", fields.collect::<String>())
    }
}

/// A `.sources` file: stanzas of fields, with continuation lines and comments.
fn parse_deb822(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut stanza: Vec<(String, String)> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            sources.extend(source_of_stanza(std::mem::take(&mut stanza)));
        } else if line.starts_with([' ', '\t']) {
            // A key written into the file itself goes over several lines.
            if let Some((_, value)) = stanza.last_mut() {
                value.push('\n');
                value.push_str(line);
            }
        } else if let Some((name, value)) = line.split_once(':') {
            stanza.push((name.trim().to_owned(), value.trim().to_owned()));
        }
    }
    sources
}

fn source_of_stanza(stanza: Vec<(String, String)>) -> Option<Source> {
    let (mut fields, mut suites, mut binary) = (Vec::new(), Vec::new(), false);
    for (name, value) in stanza {
        match name.to_ascii_lowercase().as_str() {
            "types" => binary = value.split_whitespace().any(|kind| kind == "deb"),
            "suites" => suites = value.split_whitespace().map(str::to_owned).collect(),
            "enabled" if ["no", "false", "off", "0"].contains(&value.to_ascii_lowercase().as_str()) => {
                return None;
            }
            "enabled" => {}
            _ => fields.push((name, value)),
        }
    }
    (binary && !suites.is_empty()).then_some(Source { suites, fields })
}

/// A `.list` file: `deb [option=value …] uri suite component …`, one a line.
fn parse_list(text: &str) -> Vec<Source> {
    text.lines().filter_map(source_of_line).collect()
}

fn source_of_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let rest = line.strip_prefix("deb")?;
    let rest = rest.starts_with([' ', '\t', '[']).then(|| rest.trim_start())?;
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    let components: Vec<_> = words.collect();
    let mut fields =
        vec![("URIs".to_owned(), uri.to_owned()), ("Components".to_owned(), components.join(" "))];
    for (name, value) in options.split_whitespace().filter_map(|option| option.split_once('=')) {
        let name = match name.to_ascii_lowercase().as_str() {
            "arch" => "Architectures".to_owned(),
            "lang" => "Languages".to_owned(),
            "target" => "Targets".to_owned(),
            _ => name.to_owned(),
        };
        fields.push((name, value.replace(',', " ")));
    }
    Some(Source { suites: vec![suite.to_owned()], fields })
}

/// The newest version in `apt-cache madison`'s table whose upstream part is `release`.
fn choose_version(madison: &str, release: &str) -> Option<String> {
    versions(madison).find(|version| upstream(version) == release).map(str::to_owned)
}

/// Those in `apt-cache madison`'s table, newest first.
fn versions(madison: &str) -> impl Iterator<Item = &str> {
    madison.lines().filter_map(|line| line.split('|').nth(1)).map(str::trim)
}

/// `1.95.0` of `1:1.95.0+dfsg1-2~bpo13+1`.
fn upstream(version: &str) -> &str {
    let version = version.split_once(':').map_or(version, |(_, rest)| rest);
    version.split(['+', '-', '~']).next().unwrap_or(version)
}

/// Downloads `package` in the version that belongs to upstream's `release`, and unpacks it below `folder`.
/// Hands back the folder with the unpacked files.
pub(crate) fn fetch(package: &str, release: &str, folder: &Path) -> Result<PathBuf> {
    let source = debian()?;
    let mut seen = Vec::new();
    for suite in SUITES {
        let apt = Apt::new(folder, &source, suite)?;
        // A suite that the mirror does not carry is no reason to stop: the next one may be there.
        if let Err(err) = apt.read("apt-get", &["update"]) {
            seen.push(format!("{suite}: {}", format!("{err:#}").lines().last().unwrap_or_default()));
            continue;
        }
        let table = apt.read("apt-cache", &["madison", package])?;
        let Some(version) = choose_version(&table, release) else {
            seen.push(format!("{suite}: has no {package} {release}"));
            continue;
        };
        step(format!("downloading Debian's {package} {version} from {suite} (about 45 MB)"));
        return apt.download_and_unpack(&[(package, version)]);
    }
    bail!("no suite of the Debian archive has {package} {release} ({})", seen.join("; "))
}

/// Downloads these packages of one suite, in its newest versions, and unpacks them below `folder`.
/// Hands back the folder with the unpacked files.
pub(crate) fn fetch_all(packages: &[&'static str], suite: &str, folder: &Path) -> Result<PathBuf> {
    let apt = Apt::new(folder, &debian()?, suite)?;
    apt.read("apt-get", &["update"])?;
    let wanted = packages
        .iter()
        .map(|&package| {
            let table = apt.read("apt-cache", &["madison", package])?;
            let version = versions(&table).next().with_context(|| format!("{suite} has no {package}"))?;
            Ok((package, version.to_owned()))
        })
        .collect::<Result<Vec<_>>>()?;
    apt.download_and_unpack(&wanted)
}

/// The system's entry of the Debian archive.
fn debian() -> Result<Source> {
    for tool in ["apt-get", "apt-cache", "dpkg-deb"] {
        if process::find_program(tool).is_none() {
            bail!("this is not a Debian-like system (there is no `{tool}`)");
        }
    }
    system_sources()
        .into_iter()
        .find(Source::is_debian)
        .context("the system's apt configuration has no entry of the Debian archive")
}

/// Unreadable files are passed over: what apt itself cannot be asked about is no help here.
fn system_sources() -> Vec<Source> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    files.sort();
    files
        .iter()
        .filter_map(|file| {
            let parse = match file.extension()?.to_str()? {
                "sources" => parse_deb822,
                "list" => parse_list,
                _ => return None,
            };
            Some(parse(&fs::read_to_string(file).ok()?))
        })
        .flatten()
        .collect()
}

/// apt with a source, a state and a cache of its own.
struct Apt {
    folder: PathBuf,
    options: Vec<String>,
}

impl Apt {
    fn new(folder: &Path, source: &Source, suite: &str) -> Result<Self> {
        let folder = folder.join(suite);
        for dir in ["lists/partial", "cache/archives/partial"] {
            let dir = folder.join(dir);
            fs::create_dir_all(&dir).with_context(|| {
                format!("cannot create {}: is the target folder writable?", dir.display())
            })?;
        }
        let list = folder.join("debian.sources");
        fs::write(&list, source.with_suite(suite))
            .with_context(|| format!("cannot write {}: is the disk full?", list.display()))?;
        let options = [
            format!("Dir::Etc::sourcelist={}", list.display()),
            "Dir::Etc::sourceparts=-".to_owned(),
            format!("Dir::State::Lists={}", folder.join("lists").display()),
            format!("Dir::Cache={}", folder.join("cache").display()),
            "Acquire::Languages=none".to_owned(),
            // Otherwise a failed download of the lists is only a warning.
            "APT::Update::Error-Mode=any".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
        ];
        Ok(Self {
            folder,
            options: options.iter().flat_map(|option| ["-o".to_owned(), option.clone()]).collect(),
        })
    }

    fn read(&self, program: &str, args: &[&str]) -> Result<String> {
        process::read(
            Command::new(program).current_dir(&self.folder).args(&self.options).args(args),
            &format!("`{program} {}` with a package list of xtask's own", args.join(" ")),
            "is the mirror of the system's apt configuration reachable?",
        )
    }

    fn download_and_unpack(&self, packages: &[(&str, String)]) -> Result<PathBuf> {
        let wanted: Vec<_> =
            packages.iter().map(|(package, version)| format!("{package}={version}")).collect();
        let words: Vec<_> = ["download"].into_iter().chain(wanted.iter().map(String::as_str)).collect();
        self.read("apt-get", &words)?;
        let unpacked = self.folder.join("unpacked");
        for (package, _) in packages {
            let deb = self.downloaded(package)?;
            process::read(
                Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&unpacked),
                &format!("unpacking {}", deb.display()),
                "is the disk full?",
            )?;
        }
        Ok(unpacked)
    }

    fn downloaded(&self, package: &str) -> Result<PathBuf> {
        fs::read_dir(&self.folder)
            .with_context(|| format!("cannot read {}", self.folder.display()))?
            .flatten()
            .map(|entry| entry.path())
            .find(|file| {
                let name = file.file_name().unwrap_or_default().to_string_lossy();
                name.starts_with(&format!("{package}_")) && name.ends_with(".deb")
            })
            .with_context(|| format!("apt-get left no {package} package in {}", self.folder.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "Types: deb\n# a snapshot\nURIs: http://mirror.invalid/debian\n\
        Suites: bookworm bookworm-updates\nComponents: main\nSigned-By: /usr/share/keyrings/debian.gpg\n\n\
        Types: deb\nURIs: http://mirror.invalid/debian-security\nSuites: bookworm-security\nComponents: main\n";

    #[test]
    fn deb822_keeps_all_but_the_suite() {
        let sources = parse_deb822(DEB822);
        assert_eq!(sources.len(), 2);
        assert!(sources[0].is_debian());
        assert!(!sources[1].is_debian(), "the security archive has no backports");
        assert_eq!(
            sources[0].with_suite("sid"),
            "Types: deb\nSuites: sid\nURIs: http://mirror.invalid/debian\nComponents: main\n\
             Signed-By: /usr/share/keyrings/debian.gpg\n"
        );
    }

    #[test]
    fn deb822_carries_an_embedded_key_along() {
        let text = "Types: deb\nURIs: http://mirror.invalid/debian\nSuites: trixie\nComponents: main\n\
            Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mDMEY865UxYJ\n -----END PGP PUBLIC KEY BLOCK-----\n";
        let sources = parse_deb822(text);
        assert!(sources[0].with_suite("sid").contains("\n .\n mDMEY865UxYJ\n"));
    }

    #[test]
    fn deb822_leaves_out_disabled_and_source_only_entries() {
        let disabled = format!("Enabled: no\n{DEB822}");
        assert_eq!(parse_deb822(&disabled).len(), 1);
        assert!(parse_deb822("Types: deb-src\nURIs: x\nSuites: sid\nComponents: main\n").is_empty());
        assert!(parse_deb822("").is_empty());
    }

    #[test]
    fn one_line_format_with_and_without_options() {
        let text = "# comment\ndeb-src http://mirror.invalid/debian bookworm main\n\
            deb [arch=amd64,i386 signed-by=/k.gpg] http://mirror.invalid/debian bookworm main contrib # tail\n\
            deb http://other.invalid/apt stuff main\n\ndeb\tmirror+file:/etc/apt/mirrors stable main\n";
        let sources = parse_list(text);
        assert_eq!(sources.iter().map(Source::is_debian).collect::<Vec<_>>(), [true, false, true]);
        assert_eq!(
            sources[0].with_suite("sid"),
            "Types: deb\nSuites: sid\nURIs: http://mirror.invalid/debian\nComponents: main contrib\n\
             Architectures: amd64 i386\nsigned-by: /k.gpg\n"
        );
    }

    #[test]
    fn broken_lines_are_passed_over() {
        assert!(
            parse_list("deb\ndeb [arch=amd64 http://x y\ndeb http://x\ndebian http://x sid main\n")
                .is_empty()
        );
    }

    #[test]
    fn the_version_must_be_exactly_the_compilers() {
        let table = "  rust-src | 1.96.1+dfsg1-2~bpo13+1 | http://m.invalid trixie-backports/main amd64 Packages\n\
             \x20 rust-src | 1.95.0+dfsg1-2~bpo13+1 | http://m.invalid trixie-backports/main amd64 Packages\n\
             \x20 rust-src | 1.95.0+dfsg1-1~bpo13+1 | http://m.invalid trixie-backports/main amd64 Packages\n";
        assert_eq!(choose_version(table, "1.95.0").as_deref(), Some("1.95.0+dfsg1-2~bpo13+1"));
        assert_eq!(choose_version(table, "1.95"), None);
        assert_eq!(choose_version("", "1.95.0"), None);
        assert_eq!(versions(table).next(), Some("1.96.1+dfsg1-2~bpo13+1"), "the newest");
        assert_eq!(upstream("1:1.95.0+dfsg1-2"), "1.95.0");
        assert_eq!(upstream("1.95.0-2"), "1.95.0");
    }
}
