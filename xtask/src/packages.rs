//! The system's programs that the tests with root use: real clients and servers, real networks.

use std::{path::Path, process::Command};

use anyhow::{Result, bail};

use crate::process::{self, step};

/// A program, the Debian package it comes in, and what it is for.
struct Needed {
    program: &'static str,
    package: &'static str,
    why: &'static str,
}

const NEEDED: [Needed; 5] = [
    Needed {
        program: "ip",
        package: "iproute2",
        why: "network namespaces, addresses and routes of the testbed",
    },
    Needed { program: "curl", package: "curl", why: "a real client" },
    Needed { program: "nginx", package: "nginx-light", why: "a real server" },
    Needed { program: "openssl", package: "openssl", why: "certificates, and a TLS client and server" },
    Needed {
        program: "python3",
        package: "python3",
        why: "a program that opens a library long after its start",
    },
];

/// Installs what is missing where that needs no question (root and apt), else says the command.
pub(crate) fn ensure() -> Result<()> {
    let missing: Vec<_> =
        NEEDED.iter().filter(|needed| process::find_program(needed.program).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing
        .iter()
        .map(|Needed { program, package: _, why }| format!("{program} ({why})"))
        .collect::<Vec<_>>()
        .join(", ");
    let packages: Vec<_> = missing.iter().map(|needed| needed.package).collect();
    let has_apt = process::find_program("apt-get").is_some();
    if !(has_apt && process::is_root()) {
        let command = if has_apt {
            format!("`sudo apt-get install -y --no-install-recommends {}`", packages.join(" "))
        } else {
            format!("install with your package manager what Debian calls {}", packages.join(", "))
        };
        bail!("the tests with root need {list}: {command}");
    }
    step(format!("installing for the tests with root: {list} (seconds)"));
    // The lists of a fresh image are empty, those of an old one stale: then a second try after an update.
    if apt_get(&install(&packages)).is_err() {
        apt_get(&["update"])?;
        apt_get(&install(&packages))?;
    }
    // Debian starts a server with its installation; the tests start their own, on their own networks.
    if packages.contains(&"nginx-light") && Path::new("/run/systemd/system").exists() {
        process::read(
            Command::new("systemctl").args(["disable", "--now", "nginx"]),
            "stopping the nginx that the installation has started",
            "`systemctl disable --now nginx` does it by hand",
        )?;
    }
    Ok(())
}

fn install<'a>(packages: &[&'a str]) -> Vec<&'a str> {
    ["install", "-y", "--no-install-recommends"].iter().chain(packages).copied().collect()
}

fn apt_get(args: &[&str]) -> Result<()> {
    process::read(
        Command::new("apt-get")
            .args(["-q", "-o", "DPkg::Lock::Timeout=300"])
            .args(args)
            .env("DEBIAN_FRONTEND", "noninteractive"),
        &format!("`apt-get {}`", args.join(" ")),
        "are the system's package sources reachable?",
    )?;
    Ok(())
}
