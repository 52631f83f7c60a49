//! Connection churn between real programs: nginx, and wrk with `Connection: close`.

use std::{
    fs,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, bail};

use super::{
    load::{Load, make_namespace},
    nginx::{PLAIN, Server},
};
use crate::process::dies_with_its_parent;

/// One thread each, many connections at a time, in a network namespace of their own. Ends when dropped.
pub(super) struct Http {
    /// Of wrk.
    client: u32,
    stop: Option<mpsc::Sender<()>>,
    worker: Option<JoinHandle<()>>,
}

impl Http {
    /// Makes the namespace and starts both in it.
    pub(super) fn start() -> Result<Self> {
        let (ready, started) = mpsc::channel();
        let (stop, stopped) = mpsc::channel::<()>();
        // Both programs end with this thread.
        let worker = thread::spawn(move || {
            let programs = make_namespace().and_then(|()| Ok((Server::start()?, wrk()?)));
            match programs {
                Ok((_server, mut client)) => {
                    ready.send(Ok(client.id())).ok();
                    // An end of the channel is the end of the load, too.
                    stopped.recv().ok();
                    client.kill().ok();
                    client.wait().ok();
                }
                Err(err) => {
                    ready.send(Err(err)).ok();
                }
            }
        });
        let client = started.recv().context("the load's thread died")??;
        Ok(Self { client, stop: Some(stop), worker: Some(worker) })
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(worker) = self.worker.take() {
            worker.join().ok();
        }
    }
}

impl Load for Http {
    /// Counted by the kernel: what `accept()` could take in this namespace.
    fn connections(&self) -> Result<u64> {
        let path = format!("/proc/{}/net/snmp", self.client);
        let snmp =
            fs::read_to_string(&path).with_context(|| format!("cannot read {path}: has wrk ended?"))?;
        passive_opens(&snmp).with_context(|| format!("{path} has no Tcp PassiveOpens"))
    }
}

fn wrk() -> Result<Child> {
    let mut wrk = Command::new("wrk");
    // It is killed at the end.
    wrk.args(["--threads", "1", "--connections", "16", "--duration", "24h", "--header", "Connection: close"])
        .arg(format!("http://{PLAIN}/"))
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    dies_with_its_parent(&mut wrk);
    let mut wrk = wrk.spawn().context("cannot start wrk")?;
    thread::sleep(super::measure::SETTLE);
    match wrk.try_wait().context("cannot wait for wrk")? {
        Some(status) => bail!("wrk ended at once ({status}); see its message above"),
        None => Ok(wrk),
    }
}

/// Names and values stand in two lines: `Tcp: RtoAlgorithm … PassiveOpens …` and `Tcp: 1 … 17 …`.
fn passive_opens(snmp: &str) -> Option<u64> {
    let mut lines = snmp.lines().filter(|line| line.starts_with("Tcp: "));
    let (mut names, mut values) = (lines.next()?.split_whitespace(), lines.next()?.split_whitespace());
    values.nth(names.position(|name| name == "PassiveOpens")?)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_read_by_their_name() {
        let snmp = "Ip: Forwarding\nIp: 1\nTcp: RtoAlgorithm ActiveOpens PassiveOpens\nTcp: 1 20 17\n";
        assert_eq!(passive_opens(snmp), Some(17));
        assert_eq!(passive_opens("Tcp: RtoAlgorithm\nTcp: 1\n"), None);
        assert_eq!(passive_opens(""), None);
    }
}
