//! `cargo xtask chart`: the plain manifests of Kubernetes out of the Helm chart.

use anyhow::Result;

use crate::{python, workspace::Workspace};

/// Render the Helm chart into packaging/kubernetes, and validate it against Kubernetes' schemas
///
/// Helm's own engine does it, without a cluster. The first time it downloads 80 MB into target/tools.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask chart           # after a change of packaging/helm\n  \
        cargo xtask chart --check   # what the tests do")]
pub(crate) struct Args {
    /// Write nothing, and fail if a manifest is not what the chart renders
    #[arg(long)]
    check: bool,
}

pub(crate) fn main(args: &Args) -> Result<()> {
    let workspace = Workspace::locate()?;
    let arguments: &[&str] = if args.check { &["--check"] } else { &[] };
    python::CHART.run(&workspace, "packaging/kubernetes/render.py", arguments)
}
