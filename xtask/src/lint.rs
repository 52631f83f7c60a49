//! `cargo xtask lint`: formatting and clippy, for each side by itself.

use anyhow::{Result, bail};

use crate::{
    build, process,
    process::step,
    setup::{self, Ready},
    workspace::Workspace,
};

/// Check formatting and lints of both sides; any warning is a failure
///
/// The eBPF side is checked for its own target with its own flags: in one run with the user side, cargo
/// would unify features that must stay apart.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  cargo xtask lint\nMend formatting:  cargo fmt --all")]
pub(crate) struct Args {}

pub(crate) fn main(_args: &Args) -> Result<()> {
    let workspace = Workspace::locate()?;
    let ready = setup::ensure(&workspace)?;
    let failures = all(&workspace, &ready)?;
    if !failures.is_empty() {
        bail!("lint failed: {}; see the messages above", failures.join(", "));
    }
    step("lint: nothing to complain about");
    Ok(())
}

/// Runs every check, also after one has failed, and hands back which did.
pub(crate) fn all(workspace: &Workspace, ready: &Ready) -> Result<Vec<&'static str>> {
    setup::ensure_component(&ready.toolchain, "rustfmt", "cargo-fmt")?;
    setup::ensure_component(&ready.toolchain, "clippy", "cargo-clippy")?;
    let mut failures = Vec::new();
    let mut check = |name, result: Result<()>| {
        if let Err(err) = result {
            step(format!("{err:#}"));
            failures.push(name);
        }
    };

    step("lint: cargo fmt --all --check");
    check(
        "formatting",
        process::run(
            process::cargo(workspace).args(["fmt", "--all", "--check"]),
            "checking the formatting",
            "`cargo fmt --all` mends it",
        ),
    );

    step("lint: cargo fmt --check of the fuzz targets");
    check(
        "formatting of the fuzz targets",
        process::run(
            process::cargo(workspace).args(["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"]),
            "checking the formatting of the fuzz targets",
            "`cargo fmt --manifest-path fuzz/Cargo.toml` mends it",
        ),
    );

    step("lint: clippy for the eBPF side");
    check(
        "clippy of the eBPF side",
        process::run(
            build::ebpf_cargo(workspace, ready, "clippy")?
                .args(build::ebpf_arguments(ready))
                .args(["--", "--deny", "warnings"]),
            "clippy for the eBPF side",
            "see its messages above",
        ),
    );

    step("lint: clippy for the user side");
    // The user side includes the object, so there must be one.
    let object = build::ebpf(workspace, ready)?;
    check(
        "clippy of the user side",
        process::run(
            process::cargo(workspace)
                .args(["clippy", "--workspace", "--exclude", "handshake-ebpf", "--all-targets"])
                .args(["--", "--deny", "warnings"])
                .env("HANDSHAKE_EBPF_OBJECT", object),
            "clippy for the user side",
            "see its messages above",
        ),
    );
    Ok(failures)
}
