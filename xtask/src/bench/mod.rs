//! `cargo xtask bench`: what the program costs a host that makes connections as fast as it can.

mod bulk;
mod cpu;
mod hooks;
mod http;
pub(crate) mod load;
mod measure;
mod nginx;
mod others;
mod ratio;
pub(crate) mod subject;
mod tcp;
mod tls;

use std::{fs, time::Duration};

use anyhow::{Result, ensure};

use self::{http::Http, load::Churn, measure::Plan};
use crate::{
    build, packages, process, setup,
    workspace::{Profile, Workspace},
};

/// What the host does during a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// TCP connections: a request, a response and a close
    Tcp,
    /// The same between nginx and wrk, with HTTP's `Connection: close`
    Http,
    /// TLS handshakes, full and resumed, between nginx and clients
    Tls,
    /// Bulk transfer over one connection
    Bulk,
}

/// Measure what handshake costs a host that makes connections, TLS handshakes or transfers as fast as it can
///
/// Runs each load in a network namespace of its own: without the program, with `handshake daemon`, and
/// (without TLS) with `handshake trace` and with empty programs at the same hooks, in turn, and compares
/// within each round. Needs root.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  sudo -E cargo xtask bench\n  \
        sudo -E cargo xtask bench --rounds 11 --seconds 5\n  \
        sudo -E cargo xtask bench --load tls\n  sudo -E cargo xtask bench --load http --cpu --peers\n  \
        sudo -E cargo xtask bench -- --attach tracepoint\n\n\
        Quote the ratios, not the rates, which depend on the machine. Of each ratio the quartiles of the\n\
        rounds are shown, and between which values its true median lies with a probability of 95 %.\n\
        docs/overhead.md has a measured table.")]
pub(crate) struct Args {
    /// Only this load instead of all
    #[arg(long, value_enum)]
    load: Option<Kind>,
    /// How often each mode is measured
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// The length of one measurement, in seconds
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Also sample what the CPUs do (all but bulk), with `perf`
    #[arg(long)]
    cpu: bool,
    /// Also measure other programs that follow TCP connections (without TLS), those that are installed and
    /// run here: tcpstates, tcplife, tcpconnlat and tcprtt of libbpf-tools, bpftrace
    #[arg(long)]
    peers: bool,
    /// More arguments for the program under measurement, such as `--tls-wire off`
    #[arg(last = true, value_name = "ARGS")]
    more: Vec<String>,
}

pub(crate) fn main(args: &Args) -> Result<()> {
    ensure!(process::is_root(), "the benchmark needs root: sudo -E env PATH=\"$PATH\" cargo xtask bench");
    let workspace = Workspace::locate()?;
    let ready = setup::ensure(&workspace)?;
    let is_wanted = |kind| args.load.is_none_or(|only| only == kind);
    if is_wanted(Kind::Tls) || is_wanted(Kind::Http) {
        packages::ensure_for_bench()?;
    }
    if args.cpu {
        cpu::ensure_perf()?;
    }
    let others = if args.peers { others::that_run() } else { Vec::new() };
    let binary = build::both(&workspace, &ready, Profile::Release)?;
    let plan = Plan {
        binary: &binary,
        more: &args.more,
        rounds: args.rounds,
        window: Duration::from_secs(args.seconds),
        samples_cpu: args.cpu,
    };
    let tcp = if is_wanted(Kind::Tcp) {
        tcp::measure(&plan, "TCP", &Churn::start()?, &others)?
    } else {
        String::new()
    };
    let http = if is_wanted(Kind::Http) {
        tcp::measure(&plan, "HTTP", &Http::start()?, &others)?
    } else {
        String::new()
    };
    let tls = if is_wanted(Kind::Tls) { tls::measure(&plan)? } else { String::new() };
    let bulk = if is_wanted(Kind::Bulk) { bulk::measure(&plan)? } else { String::new() };
    println!("{}\n{tcp}{http}{tls}{bulk}", machine());
    Ok(())
}

/// What the figures were measured on.
fn machine() -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("", |(_, name)| name.trim());
    let cpus = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let load = read("/proc/loadavg");
    format!(
        "Linux {}, {cpus} CPUs, {model}; load average at the end {}",
        read("/proc/sys/kernel/osrelease").trim(),
        load.split_whitespace().next().unwrap_or("?")
    )
}
