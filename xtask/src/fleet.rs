//! `cargo xtask fleet`: the queries of packaging/fleet in ClickHouse too, and a fleet simulated.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};

use crate::{process, python, test, workspace::Workspace};

/// Run the test of packaging/fleet in both engines, ClickHouse and DuckDB; or measure a fleet
///
/// The first time it downloads the former into target/tools/python: 180 MB, and 530 MB unpacked. From then on
/// `cargo xtask test` uses it too; `rm -r target/tools/python/clickhouse` removes it.
///
/// With --records it makes a day of many hosts out of the records of this one, in target/fleet, and measures
/// what both engines do with them: a million connections take 120 MB there, and ten minutes. With --collector
/// it measures their way as traces through a collector into ClickHouse instead.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask fleet   # after a change of packaging/fleet\n  \
        sudo handshake record -o records.jsonl.gz --duration 1m\n  \
        cargo xtask fleet --records records.jsonl.gz --hosts 1000 --connections 400000\n  \
        cargo xtask fleet --records records.jsonl.gz --hosts 1000 --connections 100000 --collector")]
pub(crate) struct Args {
    /// What `handshake record` has written, with and without TLS
    #[arg(long, value_name = "FILE")]
    records: Option<PathBuf>,
    /// How many hosts to make of it
    #[arg(long, value_name = "N", default_value_t = 1000, requires = "records")]
    hosts: u32,
    /// How many connections they have in all
    #[arg(long, value_name = "N", default_value_t = 400_000, requires = "records")]
    connections: u32,
    /// Send them as traces through the collector rotel into ClickHouse: 10 MB more to download
    #[arg(long, requires = "records")]
    collector: bool,
    /// How many connections a second each host sends, all hosts at once; 0: as many as the collector takes
    #[arg(long, value_name = "N", default_value_t = 0, requires = "collector")]
    rate: u32,
}

pub(crate) fn main(args: &Args) -> Result<()> {
    let workspace = Workspace::locate()?;
    python::CLICKHOUSE.ensure(&workspace)?;
    let Some(records) = &args.records else {
        return test::alone("operator", "fleet::");
    };
    let records = records.to_str().context("the name of the file is not UTF-8")?;
    let folder = workspace.target.join("fleet");
    fs::remove_dir_all(&folder).ok();
    let (hosts, connections) = (args.hosts.to_string(), args.connections.to_string());
    let made = folder.to_str().context("the workspace's path is not UTF-8")?;
    if args.collector {
        let sender = sender(&workspace)?;
        let sender = sender.to_str().context("the workspace's path is not UTF-8")?;
        let rotel = python::COLLECTOR.ensure(&workspace)?.join("rotel/rotel-agent");
        let rotel = rotel.to_str().context("the workspace's path is not UTF-8")?;
        let run = |script, arguments: &[&str]| python::CLICKHOUSE.run(&workspace, script, arguments);
        run("packaging/fleet/simulate.py", &["none", records, &hosts, &connections, made])?;
        run("packaging/fleet/collector.py", &[rotel, sender, made, &args.rate.to_string()])?;
    } else {
        for packages in [python::CLICKHOUSE, python::DUCKDB] {
            let arguments = [packages.name, records, &hosts, &connections, made];
            packages.run(&workspace, "packaging/fleet/simulate.py", &arguments)?;
        }
    }
    fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))
}

/// What exports records as the daemons of their hosts would.
fn sender(workspace: &Workspace) -> Result<PathBuf> {
    let mut cargo = process::cargo(workspace);
    cargo.args(["build", "--release", "--package", "handshake-user", "--example", "otlp-fleet"]);
    let built = process::executables(&mut cargo, "building otlp-fleet")?;
    built.into_iter().next().context("cargo reports no program")
}
