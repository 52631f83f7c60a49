//! The system's programs that the tests with root and the benchmark use.

use std::{path::Path, process::Command};

use anyhow::{Result, bail};

use crate::process::{self, step};

/// A program, the Debian package it comes in, and what it is for.
struct Needed {
    program: &'static str,
    package: &'static str,
    why: &'static str,
}

impl Needed {
    fn is_missing(&self) -> bool {
        // A file that is not a program is named by its whole path.
        process::find_program(self.program).is_none() && !Path::new(self.program).is_file()
    }
}

const NEEDED: [Needed; 17] = [
    Needed {
        program: "ip",
        package: "iproute2",
        why: "network namespaces, addresses and routes of the testbed",
    },
    Needed { program: "curl", package: "curl", why: "a real client" },
    Needed { program: "nginx", package: "nginx-light", why: "a real server" },
    Needed { program: "openssl", package: "openssl", why: "certificates, and a TLS client and server" },
    Needed { program: "haproxy", package: "haproxy", why: "a TLS server and client that never blocks" },
    Needed { program: "gnutls-serv", package: "gnutls-bin", why: "GnuTLS, client and server" },
    // By its path: another python3 on PATH may have its own TLS library.
    Needed {
        program: "/usr/bin/python3",
        package: "python3",
        why: "OpenSSL under asyncio, and a program that opens a library long after its start",
    },
    Needed {
        program: "/usr/lib/python3/dist-packages/pip/__init__.py",
        package: "python3-pip",
        why: "installs what renders the Helm chart",
    },
    Needed { program: "runc", package: "runc", why: "runs the chart's container" },
    Needed { program: "node", package: "nodejs", why: "OpenSSL inside a program" },
    Needed { program: "go", package: "golang-go", why: "Go's own TLS" },
    Needed { program: "javac", package: "default-jdk-headless", why: "Java's own TLS" },
    Needed { program: "pg_ctlcluster", package: "postgresql", why: "TLS after a request in plain text" },
    Needed {
        program: "prometheus",
        package: "prometheus",
        why: "scrapes the daemon, and runs the rules and the dashboard's queries",
    },
    Needed { program: "chromium", package: "chromium", why: "reads the daemon's page" },
    Needed { program: "nft", package: "nftables", why: "a firewall that rejects SYNs" },
    Needed { program: "setpriv", package: "util-linux", why: "PostgreSQL does not run as root" },
];

/// What the benchmark starts.
const BENCH: [Needed; 5] = [
    Needed { program: "ip", package: "iproute2", why: "a network namespace" },
    Needed { program: "nginx", package: "nginx-light", why: "the server" },
    Needed { program: "openssl", package: "openssl", why: "a certificate, and `s_time`: resumed handshakes" },
    Needed { program: "ab", package: "apache2-utils", why: "full handshakes, and their latency" },
    Needed { program: "wrk", package: "wrk", why: "connections for HTTP" },
];

/// What building the fuzz targets needs besides Rust.
const FUZZ: [Needed; 1] = [Needed { program: "c++", package: "g++", why: "libFuzzer is written in C++" }];

/// What virtual machines need.
const VM: [Needed; 6] = [
    Needed { program: "qemu-system-x86_64", package: "qemu-system-x86", why: "the emulator" },
    Needed { program: "qemu-system-aarch64", package: "qemu-system-arm", why: "the same for arm64" },
    Needed { program: "aarch64-linux-gnu-gcc", package: "gcc-aarch64-linux-gnu", why: "tests for arm64" },
    Needed {
        program: "/usr/aarch64-linux-gnu/include/stdio.h",
        package: "libc6-dev-arm64-cross",
        why: "what that compiler includes",
    },
    Needed { program: "go", package: "golang-go", why: "Go's own TLS" },
    Needed { program: "xz", package: "xz-utils", why: "modules of the kernel" },
];

/// Services that Debian starts on installation, and that the tests do not need.
const SERVICES: [&str; 4] = ["nginx", "haproxy", "postgresql", "prometheus"];

/// Installs what the tests with root lack, given root and apt; otherwise the error has the command.
pub(crate) fn ensure() -> Result<()> {
    ensure_for("the tests with root", &NEEDED)
}

/// The same for the benchmark.
pub(crate) fn ensure_for_bench() -> Result<()> {
    ensure_for("the benchmark", &BENCH)
}

/// The same for the fuzz targets.
pub(crate) fn ensure_for_fuzz() -> Result<()> {
    ensure_for("the fuzz targets", &FUZZ)
}

/// The same for virtual machines.
pub(crate) fn ensure_for_vm() -> Result<()> {
    ensure_for("virtual machines", &VM)
}

fn ensure_for(whom: &str, needed: &[Needed]) -> Result<()> {
    let missing: Vec<_> = needed.iter().filter(|needed| needed.is_missing()).collect();
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
        bail!("{whom} need {list}: {command}");
    }
    step(format!("installing for {whom}: {list} (up to a minute)"));
    // On a fresh image the package lists are empty, on an old one stale: update and try again.
    if apt_get(&install(&packages)).is_err() {
        apt_get(&["update"])?;
        apt_get(&install(&packages))?;
    }
    if Path::new("/run/systemd/system").exists() {
        for service in SERVICES
            .iter()
            .filter(|service| missing.iter().any(|needed| needed.package.starts_with(*service)))
        {
            process::read(
                Command::new("systemctl").args(["disable", "--now", service]),
                &format!("stopping the {service} that the installation has started"),
                &format!("`systemctl disable --now {service}` does it by hand"),
            )?;
        }
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
