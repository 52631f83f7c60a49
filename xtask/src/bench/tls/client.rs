//! Clients that only make handshakes: `ab` for full ones, `openssl s_time` for resumed ones.

use std::{
    fs,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{bench::nginx::ADDRESS, proc_stat::CpuTimes, process};

/// Handshakes of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// One thread, four connections at a time, one request on each. (`wrk` would call its library in a loop
    /// until the peer has answered.)
    Full,
    /// Two processes, one connection at a time each, one request on each; the next one resumes with its
    /// ticket.
    Resumed,
}

/// What the clients did in one measurement.
#[derive(Clone, Debug, Default)]
pub(super) struct Done {
    pub(super) handshakes: u64,
    pub(super) seconds: f64,
    pub(super) cpu_seconds: f64,
    /// From the SYN to the end of the response: median and 99th percentile, seconds. Only `ab` reports it.
    pub(super) latency: Option<(f64, f64)>,
}

impl Kind {
    pub(super) const ALL: [Self; 2] = [Self::Full, Self::Resumed];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Resumed => "resumed",
        }
    }

    /// Makes handshakes for about this long.
    pub(super) fn run(self, window: Duration) -> Result<Done> {
        let seconds = window.as_secs().to_string();
        let (cpu_before, begin) = (children_cpu_seconds()?, Instant::now());
        let mut done = match self {
            Self::Full => {
                let url = format!("https://{ADDRESS}/");
                let mut command = Command::new("ab");
                command.args(["-q", "-t", &seconds, "-n", "1000000", "-c", "4", "-e", "/dev/stdout", &url]);
                let text = process::read(&mut command, "ab", "see its message")?;
                ab(&text).with_context(|| {
                    format!("connections failed, or the report of ab has changed:\n{text}")
                })?
            }
            Self::Resumed => {
                let address = ADDRESS.to_string();
                let arguments = ["s_time", "-connect", &address, "-www", "/", "-reuse", "-time", &seconds];
                let mut pair = Vec::new();
                for _ in 0..2 {
                    let mut command = Command::new("openssl");
                    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
                    pair.push(command.spawn().context("cannot start openssl")?);
                }
                let mut done = Done::default();
                for child in pair {
                    let output = child.wait_with_output().context("cannot wait for openssl")?;
                    let text = String::from_utf8_lossy(&output.stdout);
                    done.handshakes +=
                        s_time(&text).with_context(|| format!("s_time did not resume:\n{text}"))?;
                }
                done
            }
        };
        done.seconds = begin.elapsed().as_secs_f64();
        done.cpu_seconds = children_cpu_seconds()? - cpu_before;
        ensure!(done.handshakes > 0, "the clients made no handshake in {window:?}");
        Ok(done)
    }
}

/// CPU time of all children that have ended, in seconds.
fn children_cpu_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat").context("cannot read /proc/self/stat")?;
    Ok(CpuTimes::parse(&stat).context("/proc/self/stat is not as expected")?.children)
}

/// The report of `ab`, with its percentiles in milliseconds; Returns `None` also if connections failed.
fn ab(text: &str) -> Option<Done> {
    let after = |start: &str| text.lines().find_map(|line| Some(line.strip_prefix(start)?.trim()));
    let percentile = |start| after(start)?.parse::<f64>().ok().map(|milliseconds| milliseconds / 1e3);
    let handshakes = after("Complete requests:")?.parse().ok()?;
    (after("Failed requests:")? == "0").then_some(())?;
    Some(Done { handshakes, latency: Some((percentile("50,")?, percentile("99,")?)), ..Done::default() })
}

/// The report of `openssl s_time -reuse`, which writes an `r` for each resumed handshake, a `*` for each
/// other.
fn s_time(text: &str) -> Option<u64> {
    let drawn = text.lines().find(|line| line.starts_with('r') && line.ends_with(['r', '*']))?;
    drawn.bytes().all(|letter| letter == b'r').then_some(())?;
    text.lines().find_map(|line| line.split_once(" connections in ")?.0.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_of_ab_is_parsed() {
        let report = |failed| {
            format!(
                "Percentage served,Time in ms\n0,0.700\n50,1.482\n99,9.250\n100,12.000\n\
                 Complete requests:      2411\nFailed requests:        {failed}\n  50%      1\n"
            )
        };
        let done = ab(&report(0)).unwrap();
        assert_eq!(done.handshakes, 2411);
        let (median, p99) = done.latency.unwrap();
        assert!((median - 1.482e-3).abs() < 1e-9 && (p99 - 9.25e-3).abs() < 1e-9);
        assert!(ab(&report(1)).is_none());
    }

    #[test]
    fn report_of_s_time_counts_only_if_all_were_resumed() {
        let report = |drawn| format!("starting\n{drawn}\n\n4 connections in 0.71s; 5 connections/user sec\n");
        assert_eq!(s_time(&report("rrrr")), Some(4));
        assert_eq!(s_time(&report("rr*r")), None);
    }
}
