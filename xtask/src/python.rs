//! Packages of Python that tests and commands use, each set in its own folder of `target/tools/python`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    process::{self, step},
    tools,
    workspace::Workspace,
};

/// The system's: another python3 on PATH may lack pip.
const PYTHON: &str = "/usr/bin/python3";

/// Packages in the versions that a file of this workspace lists, all of them: dependencies too.
pub(crate) struct Packages {
    /// The folder in `target/tools/python`.
    pub(crate) name: &'static str,
    /// The list, in the form of pip's requirements.
    pub(crate) list: &'static str,
    /// How much is downloaded, and what for.
    pub(crate) purpose: &'static str,
}

/// What renders and validates the Helm chart.
pub(crate) const CHART: Packages = Packages {
    name: "kubernetes",
    list: "packaging/kubernetes/requirements.txt",
    purpose: "they render the chart and validate its manifests (80 MB, 15 s)",
};

/// What answers queries over records in the tests.
pub(crate) const DUCKDB: Packages = Packages {
    name: "duckdb",
    list: "packaging/fleet/requirements.txt",
    purpose: "it answers queries over records (20 MB)",
};

/// The same, and too large for every run of the tests.
pub(crate) const CLICKHOUSE: Packages = Packages {
    name: "clickhouse",
    list: "packaging/fleet/requirements-clickhouse.txt",
    purpose: "it answers queries over records (180 MB, and 530 MB unpacked)",
};

/// The collector that traces of a simulated fleet pass through.
pub(crate) const COLLECTOR: Packages = Packages {
    name: "collector",
    list: "packaging/fleet/requirements-collector.txt",
    purpose: "it passes on traces (10 MB)",
};

impl Packages {
    /// Installs them unless they are there. Returns their folder.
    pub(crate) fn ensure(&self, workspace: &Workspace) -> Result<PathBuf> {
        let list = workspace.root.join(self.list);
        let wanted = fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
        let folder = workspace.tools().join("python").join(self.name);
        if is_installed(&folder, &wanted) {
            return Ok(folder);
        }
        // Two terminals, one installation.
        let _lock = tools::lock(workspace)?;
        if is_installed(&folder, &wanted) {
            return Ok(folder);
        }
        step(format!("installing Python's packages of {}: {}", self.list, self.purpose));
        let making = folder.with_extension("partial");
        for old in [&folder, &making] {
            fs::remove_dir_all(old).ok();
        }
        process::read(
            Command::new(PYTHON)
                .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"])
                .args(["--no-deps", "--only-binary", ":all:", "--requirement"])
                .arg(&list)
                .arg("--target")
                .arg(&making),
            &format!("installing {}", self.list),
            "is the network up, and is pip installed (Debian: python3-pip)?",
        )?;
        fs::write(stamp(&making), &wanted)
            .and_then(|()| fs::rename(&making, &folder))
            .with_context(|| format!("cannot fill {}: is the disk full?", folder.display()))?;
        Ok(folder)
    }

    /// Runs a script of this workspace that imports them.
    pub(crate) fn run(&self, workspace: &Workspace, script: &str, arguments: &[&str]) -> Result<()> {
        let folder = self.ensure(workspace)?;
        process::run(
            Command::new(PYTHON)
                .arg(workspace.root.join(script))
                .args(arguments)
                .env("PYTHONPATH", folder)
                .env("PYTHONDONTWRITEBYTECODE", "1"),
            script,
            "see its message above",
        )
    }
}

/// A copy of the list that was installed.
fn stamp(folder: &Path) -> PathBuf {
    folder.join("requirements.txt")
}

fn is_installed(folder: &Path, wanted: &str) -> bool {
    fs::read_to_string(stamp(folder)).is_ok_and(|installed| installed == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_list_is_another_installation() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!is_installed(folder.path(), "a==1\n"));
        fs::write(stamp(folder.path()), "a==1\n").unwrap();
        assert!(is_installed(folder.path(), "a==1\n"));
        assert!(!is_installed(folder.path(), "a==2\n"));
    }

    #[test]
    fn every_package_has_one_version() {
        let root = Workspace::locate().unwrap().root;
        for packages in [CHART, DUCKDB, CLICKHOUSE, COLLECTOR] {
            let list = fs::read_to_string(root.join(packages.list)).unwrap();
            let lines = list.lines().filter(|line| !line.starts_with('#'));
            assert!(lines.clone().count() > 0 && lines.clone().all(|line| line.contains("==")), "{list}");
        }
    }
}
