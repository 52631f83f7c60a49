//! The program under measurement, and what the kernel reports about it.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::{proc_stat::CpuTimes, process::dies_with_its_parent};

/// How long attaching may take.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A running `handshake`.
pub(crate) struct Subject {
    child: Child,
    errors: thread::JoinHandle<Vec<String>>,
    /// The line on standard error with which it reported that it was ready.
    greeting: String,
}

/// Run time of one eBPF program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProgramTime {
    pub(crate) id: u64,
    tag: String,
    pub(crate) hits: u64,
    pub(crate) nanoseconds: u64,
}

impl ProgramTime {
    /// The increase since then; everything if the program was not loaded yet.
    pub(crate) fn since(&self, before: &[Self]) -> Self {
        let before = before.iter().find(|before| before.id == self.id);
        Self {
            hits: self.hits - before.map_or(0, |before| before.hits),
            nanoseconds: self.nanoseconds - before.map_or(0, |before| before.nanoseconds),
            ..self.clone()
        }
    }

    /// The name of its function: while it is loaded, the kernel has a symbol `bpf_prog_TAG_NAME`.
    pub(crate) fn name<'a>(&self, symbols: &'a str) -> &'a str {
        let symbol = format!("bpf_prog_{}_", self.tag);
        symbols.split_whitespace().find_map(|word| word.strip_prefix(&symbol)).unwrap_or("?")
    }
}

impl Subject {
    /// Starts the program and waits until a line on standard error contains `ready`.
    pub(crate) fn start(binary: &Path, arguments: &[&str], ready: &'static str) -> Result<Self> {
        let mut command = Command::new(binary);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        dies_with_its_parent(&mut command);
        let mut child = command.spawn().with_context(|| format!("cannot start {}", binary.display()))?;
        let stderr = child.stderr.take().context("no standard error")?;
        let (sender, receiver) = mpsc::channel();
        let errors = thread::spawn(move || {
            let mut lines = Vec::new();
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if line.contains(ready) {
                    sender.send(line.clone()).ok();
                }
                lines.push(line);
            }
            lines
        });
        let subject = Self { child, errors, greeting: String::new() };
        let Ok(greeting) = receiver.recv_timeout(TIMEOUT) else {
            let lines = subject.stop()?;
            bail!("`handshake {}` did not get ready: {}", arguments.join(" "), lines.join("; "));
        };
        Ok(Self { greeting, ..subject })
    }

    /// Where a daemon listens, as its greeting reports it.
    pub(crate) fn address(&self) -> Result<String> {
        let address = self.greeting.split_once("http://").and_then(|(_, rest)| rest.split('/').next());
        Ok(address.context("the daemon does not report where it listens")?.to_owned())
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its exit status. Returns `None` while it runs.
    pub(crate) fn has_ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().context("cannot wait for handshake")
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) -> Result<()> {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal)
            .context("cannot send handshake a signal")
    }

    /// User CPU time so far, in seconds.
    pub(crate) fn user_seconds(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        Ok(CpuTimes::parse(&stat).context("cannot read /proc/PID/stat")?.user)
    }

    /// The run times of its eBPF programs, which the kernel counts while `kernel.bpf_stats_enabled` is 1.
    pub(crate) fn program_times(&self) -> Result<Vec<ProgramTime>> {
        let folder = format!("/proc/{}/fdinfo", self.child.id());
        let mut times: Vec<ProgramTime> = fs::read_dir(&folder)
            .with_context(|| format!("cannot read {folder}"))?
            .flatten()
            .filter_map(|entry| program_time(&fs::read_to_string(entry.path()).ok()?))
            .collect();
        times.sort_by_key(|time| time.id);
        times.dedup_by_key(|time| time.id);
        Ok(times)
    }

    /// Ends it as an operator would. Returns the lines of its standard error.
    pub(crate) fn stop(mut self) -> Result<Vec<String>> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).ok();
        self.child.wait().context("cannot wait for handshake")?;
        Ok(self.errors.join().unwrap_or_default())
    }
}

fn program_time(fdinfo: &str) -> Option<ProgramTime> {
    let field =
        |name: &str| fdinfo.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()));
    let number = |name: &str| field(name)?.parse().ok();
    Some(ProgramTime {
        id: number("prog_id")?,
        tag: field("prog_tag")?.to_owned(),
        hits: number("run_cnt")?,
        nanoseconds: number("run_time_ns")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_distinguished_from_other_descriptors() {
        let text = "pos:\t0\nprog_type:\t26\nprog_tag:\tab12\nprog_id:\t12\nrun_time_ns:\t900\nrun_cnt:\t3\n";
        let symbols = "0 t bpf_prog_ab11_other\t[bpf]\n0 t bpf_prog_ab12_tcp_probe\t[bpf]\n";
        let time = ProgramTime { id: 12, tag: "ab12".to_owned(), hits: 3, nanoseconds: 900 };
        assert_eq!(time.name(symbols), "tcp_probe");
        assert_eq!(program_time(text), Some(time));
        assert_eq!(program_time("pos:\t0\nmap_id:\t4\n"), None);
    }
}
