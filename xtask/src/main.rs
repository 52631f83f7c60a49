//! `cargo xtask`: the commands of this workspace, one file each.
#![warn(clippy::unwrap_used)]

mod at_once;
mod behind;
mod bench;
mod build;
mod chart;
mod debian;
mod dist;
mod fleet;
mod fuzz;
mod linker;
mod lint;
mod packages;
mod peers;
mod proc_stat;
mod process;
mod python;
mod repeat;
mod run;
mod scale;
mod setup;
mod soak;
mod stats;
mod table;
mod target;
mod test;
mod toolchain;
mod tools;
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Build, run and test handshake.
///
/// Every command first installs what it needs: Rust's library sources into the active toolchain, and
/// bpf-linker into target/tools. Nothing needs root except the last step of `run` and `test`, and `bench` and
/// `soak`.
#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    arg_required_else_help = true,
    after_help = "Start here:  cargo xtask run\nBefore a commit:  cargo xtask test\n\
        What is installed where, and why:  docs/toolchain.md"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Setup(setup::Args),
    Build(build::Args),
    Dist(dist::Args),
    Chart(chart::Args),
    Run(run::Args),
    Lint(lint::Args),
    Test(test::Args),
    Fuzz(fuzz::Args),
    Table(table::Args),
    Bench(bench::Args),
    Soak(soak::Args),
    Scale(scale::Args),
    Fleet(fleet::Args),
    Vm(vm::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Setup(args) => setup::main(&args),
        Command::Build(args) => build::main(&args),
        Command::Dist(args) => dist::main(&args),
        Command::Chart(args) => chart::main(&args),
        Command::Run(args) => run::main(args),
        Command::Lint(args) => lint::main(&args),
        Command::Test(args) => test::main(&args),
        Command::Fuzz(args) => fuzz::main(&args),
        Command::Table(args) => table::main(&args),
        Command::Bench(args) => bench::main(&args),
        Command::Soak(args) => soak::main(&args),
        Command::Scale(args) => scale::main(&args),
        Command::Fleet(args) => fleet::main(&args),
        Command::Vm(args) => vm::main(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // The causes on one line: a backtrace of this program would not help.
        Err(err) => {
            eprintln!("xtask: {err:#}");
            ExitCode::FAILURE
        }
    }
}
