//! `cargo xtask lint`: formatting, clippy for each side by itself, and the rules of the house.

mod imports;
mod width;

use anyhow::{Result, bail};

use crate::{
    build,
    process::{self, step},
    setup::{self, Ready},
    tools::{self, Tool},
    workspace::Workspace,
};

/// Without optimization it is built in a third of the time, and a check takes three seconds either way.
const CARGO_DENY: Tool = Tool {
    name: "cargo-deny",
    version: "0.20.2",
    arguments: &["--debug", "--no-default-features"],
    purpose: "it checks licences and sources of the dependencies (a minute, once)",
};

/// Check formatting, lints, dependencies, line widths and imports; any warning is a failure
///
/// The kernel side is checked for its own target with its own flags: in one run with user space, cargo would
/// unify features that must stay apart. Dependencies are checked by cargo-deny against deny.toml.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  cargo xtask lint\nTo fix the formatting:  cargo fmt --all")]
pub(crate) struct Args {
    /// Also check the dependencies against the published advisories, if their database can be fetched
    #[arg(long)]
    advisories: bool,
}

pub(crate) fn main(args: &Args) -> Result<()> {
    let workspace = Workspace::locate()?;
    let ready = setup::ensure(&workspace)?;
    let mut failures = all(&workspace, &ready)?;
    if args.advisories && !advisories(&workspace)? {
        failures.push("advisories");
    }
    if !failures.is_empty() {
        bail!("lint failed: {}; see the messages above", failures.join(", "));
    }
    step("lint: passed");
    Ok(())
}

/// Runs every check, even after one has failed. Returns the names of those that did.
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
            "`cargo fmt --all` fixes it",
        ),
    );

    step("lint: cargo fmt --check of the fuzz targets");
    check(
        "formatting of the fuzz targets",
        process::run(
            process::cargo(workspace).args(["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"]),
            "checking the formatting of the fuzz targets",
            "`cargo fmt --manifest-path fuzz/Cargo.toml` fixes it",
        ),
    );

    step("lint: clippy for the kernel side");
    check(
        "clippy of the kernel side",
        process::run(
            build::ebpf_cargo(workspace, ready, ready.toolchain.bpf_target_arch(), "clippy")?
                .args(build::ebpf_arguments(ready))
                .args(["--", "--deny", "warnings"]),
            "clippy for the kernel side",
            "see its messages above",
        ),
    );

    step("lint: clippy for user space");
    // User space embeds the object, so there must be one.
    let object = build::ebpf(workspace, ready)?;
    check(
        "clippy of user space",
        process::run(
            process::cargo(workspace)
                .args(["clippy", "--workspace", "--exclude", "handshake-ebpf", "--all-targets"])
                .args(["--features", "handshake-user/generate"])
                .args(["--", "--deny", "warnings"])
                .env("HANDSHAKE_EBPF_OBJECT", object),
            "clippy for user space",
            "see its messages above",
        ),
    );

    step("lint: cargo deny check licenses bans sources");
    check("dependencies", deny(workspace, &["check", "licenses", "bans", "sources"]));

    step("lint: width of comments and strings, circles of imports");
    let files = process::read(
        process::clean("git", workspace).args(["ls-files", "*.rs"]).current_dir(&workspace.root),
        "`git ls-files`",
        "is this a git clone?",
    )?;
    let files: Vec<String> = files.lines().map(str::to_owned).collect();
    check("width", width::check(&workspace.root, &files));
    check("imports", imports::check(&workspace.root, &files));
    Ok(failures)
}

fn deny(workspace: &Workspace, arguments: &[&str]) -> Result<()> {
    let tool = CARGO_DENY.ensure(workspace)?;
    process::run(
        process::cargo(workspace)
            .args(["deny", "--log-level", "error"])
            .args(arguments)
            .env("PATH", tools::path_with(&tool)?),
        &format!("cargo deny {}", arguments.join(" ")),
        "see its messages above; the rules are in deny.toml",
    )
}

/// Returns whether no advisory applies. A database that cannot be fetched says nothing about this workspace.
fn advisories(workspace: &Workspace) -> Result<bool> {
    step("lint: cargo deny check advisories");
    CARGO_DENY.ensure(workspace)?;
    if let Err(err) = deny(workspace, &["fetch", "db"]) {
        step(format!("advisories: SKIPPED, their database cannot be fetched: {err:#}"));
        return Ok(true);
    }
    let result = deny(workspace, &["check", "--disable-fetch", "advisories"]);
    Ok(result.inspect_err(|err| step(format!("{err:#}"))).is_ok())
}
