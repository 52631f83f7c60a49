//! Very many open connections: those from before the daemon's start, and those that it has followed.

use std::{
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    sync::atomic::AtomicBool,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{Daemon, Progress, Table, check, holder::Holder, ms, pause};
use crate::{bench::load::make_namespace, process::step};

/// Connections of one process: fewer than its namespace has ephemeral ports.
const PER_PROCESS: u32 = 20_000;
/// How long the daemon may take to count what has ended.
const TIMEOUT: Duration = Duration::from_mins(3);

pub(super) fn measure(binary: &Path, count: u32, interrupted: &AtomicBool) -> Result<Table> {
    let room = (count * 2 + 50_000).to_string();
    let arguments = ["--max-connections", &room, "--tls-libraries", "off"];
    let mut table = Table::default();
    table.row("connections (two ends each)", count.to_string());

    let mut open = Open::default();
    open.establish(count, interrupted)?;
    let daemon = Daemon::start(binary, &arguments)?;
    table.row("connections of before: ready after", ms(daemon.ready));
    let begin = Instant::now();
    let counted = await_sum(&daemon, "handshake_connections", f64::from(count) * 2.0, interrupted)?;
    table.row("connections of before: counted", format!("{counted:.0}"));
    table.row("connections of before: counted after another", ms(begin.elapsed()));
    let scrape = daemon.scrape()?;
    table.usage("connections of before", &daemon.usage()?, &scrape);
    open.end();
    let begin = Instant::now();
    let closes = await_sum(&daemon, "handshake_tcp_closes_total", f64::from(count) * 2.0, interrupted)?;
    table.row("connections of before: closes counted", format!("{closes:.0}"));
    table.row("connections of before: all counted after", ms(begin.elapsed()));

    open.establish(count, interrupted)?;
    let opens = await_sum(&daemon, "handshake_tcp_opens_total", f64::from(count) * 2.0, interrupted)?;
    table.row("followed: opens counted", format!("{opens:.0}"));
    let scrape = daemon.scrape()?;
    table.usage("followed", &daemon.usage()?, &scrape);
    let before = daemon.scrape()?.sum("handshake_tcp_closes_total", &[]);
    open.end();
    let all = before + f64::from(count) * 2.0;
    let closes = await_sum(&daemon, "handshake_tcp_closes_total", all, interrupted)?;
    table.row("followed: closes counted", format!("{:.0}", closes - before));
    let lost = daemon.scrape()?.sum("handshake_events_lost_total", &[]);
    table.row("lost", format!("{lost:.0}"));
    table.row("stop", ms(daemon.stop()?));
    Ok(table)
}

/// Waits until the sum is reached, or for as long as it may take.
fn await_sum(daemon: &Daemon, name: &str, sum: f64, interrupted: &AtomicBool) -> Result<f64> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let found = daemon.scrape()?.sum(name, &[]);
        if found >= sum || Instant::now() > deadline {
            return Ok(found);
        }
        pause(Duration::from_millis(200), interrupted)?;
    }
}

/// Open connections, in processes of which each has as many as its descriptors allow.
#[derive(Default)]
struct Open(Vec<Holder>);

impl Open {
    fn establish(&mut self, count: u32, interrupted: &AtomicBool) -> Result<()> {
        step(format!("establishing {count} connections"));
        let limit = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
        // Two descriptors a connection, and some for the rest.
        let each = u32::try_from(limit.saturating_sub(300) / 2).unwrap_or(u32::MAX).min(PER_PROCESS);
        ensure!(each > 0, "too few descriptors are allowed: see `ulimit -Hn`");
        let mut progress = Progress::new("connections", count);
        for first in (0..count).step_by(each as usize) {
            check(interrupted)?;
            let number = each.min(count - first).to_string();
            self.0.push(Holder::start(&["connections".as_ref(), number.as_ref()])?);
            progress.at(first as usize);
        }
        Ok(())
    }

    /// Closes all at once.
    fn end(&mut self) {
        step("closing them");
        self.0.clear();
    }
}

/// Establishes connections in a new network namespace, and holds both ends.
pub(super) fn hold(count: u32) -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
        .context("cannot raise the number of descriptors to its hard limit")?;
    make_namespace()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let mut open = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let client = TcpStream::connect(address).context("cannot connect")?;
        let (server, _) = listener.accept().context("cannot accept")?;
        open.push((client, server));
    }
    super::holder::ready()?;
    drop(open);
    Ok(())
}
