//! `cargo xtask fleet`: the queries of packaging/fleet, in ClickHouse too.

use anyhow::Result;

use crate::{python, test, workspace::Workspace};

/// Run the test of the queries over records (packaging/fleet) in ClickHouse as well as in DuckDB
///
/// The first time it downloads ClickHouse's engine into target/tools/python: 180 MB, and 530 MB unpacked. From
/// then on `cargo xtask test` uses it too; `rm -r target/tools/python/clickhouse` removes it.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  cargo xtask fleet   # after a change of packaging/fleet")]
pub(crate) struct Args {}

pub(crate) fn main(_args: &Args) -> Result<()> {
    python::CLICKHOUSE.ensure(&Workspace::locate()?)?;
    test::main(&test::Args::only("fleet::"))
}
