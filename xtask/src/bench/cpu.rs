//! `--cpu`: which share of the CPUs goes to what, by sampling them all (`perf record -e cpu-clock`, which
//! needs no hardware counters).

use std::{collections::BTreeMap, fmt::Write as _, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};

use crate::process;

/// Samples a second on each CPU; no multiple of the kernel's ticks.
const FREQUENCY: &str = "1999";

/// Kernel symbols that run only for eBPF programs, by what they do. The first that fits counts.
const OURS: [(&str, &[&str]); 7] = [
    ("the programs themselves", &["bpf_prog_"]),
    (
        "entry from tracepoints",
        &[
            "bpf_trace_run",
            "__bpf_trace_",
            "__traceiter_",
            "bpf_trampoline",
            "perf_trace_run_bpf",
            "__bpf_prog_enter",
            "__bpf_prog_exit",
            "trace_call_bpf",
        ],
    ),
    ("entry from cgroups", &["__cgroup_bpf_run_filter", "bpf_prog_run_array_cg"]),
    ("entry from uprobes", &["uprobe", "handle_swbp", "exc_int3", "arch_uprobe", "xol_", "__find_uprobe"]),
    ("ring buffer", &["bpf_ringbuf", "__bpf_ringbuf"]),
    (
        "maps",
        &[
            "htab_",
            "__htab_",
            "alloc_htab",
            "free_htab",
            "lookup_nulls_elem",
            "lookup_elem_raw",
            "bpf_lru_",
            "__bpf_lru",
            "pcpu_freelist",
            "__pcpu_freelist",
            "___pcpu_freelist",
            "array_map_",
            "percpu_array",
            "bpf_map_",
            "jhash",
        ],
    ),
    ("other helpers", &["bpf_", "__bpf_", "copy_from_kernel_nofault", "copy_from_user_nofault"]),
];

/// The names of the program's threads, none of which begins another.
const THREADS: [&str; 5] = ["handshake", "libraries", "minisockets", "recorder", "tokio-rt-worker"];

/// Says what is missing.
pub(super) fn ensure_perf() -> Result<()> {
    ensure!(
        process::find_program("perf").is_some(),
        "--cpu needs `perf`: `sudo apt-get install -y linux-perf`, or what your distribution calls it"
    );
    Ok(())
}

/// Shares of all CPUs, 0 to 1.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Shares {
    /// By the name of the program that was running.
    programs: BTreeMap<String, f64>,
    /// By kernel symbol.
    kernel: BTreeMap<String, f64>,
}

/// Samples the host for a while.
pub(super) fn sample(window: Duration, folder: &Path) -> Result<Shares> {
    let data = folder.join("perf.data");
    let hint = "does `perf record -a -e cpu-clock true` work here?";
    process::read(
        Command::new("perf")
            .args(["record", "-q", "-a", "-e", "cpu-clock", "-F", FREQUENCY, "-o"])
            .arg(&data)
            .args(["--", "sleep"])
            .arg(window.as_secs_f64().to_string()),
        "`perf record`",
        hint,
    )?;
    let text = process::read(
        Command::new("perf").args(["script", "-F", "comm,ip,sym", "-i"]).arg(&data),
        "`perf script`",
        hint,
    )?;
    Shares::parse(&text).context("`perf script` shows no samples")
}

impl Shares {
    /// Lines look like `  wrk   ffffffff81a20010 tcp_ack`: a name, an address, a symbol. Blanks may be in the
    /// name, and in a symbol of user space.
    fn parse(text: &str) -> Option<Self> {
        let mut samples: Vec<(&str, Option<&str>)> = Vec::new();
        for line in text.lines() {
            let line = line.trim();
            let is_address =
                |word: &str| word.len() >= 8 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
            let Some(address) = line.split_whitespace().skip(1).find(|word| is_address(word)) else {
                continue;
            };
            let Some((program, symbol)) = line.split_once(address) else { continue };
            let is_kernel = address.len() == 16 && address.starts_with("ffff");
            samples.push((program.trim(), is_kernel.then_some(symbol.trim())));
        }
        #[expect(clippy::cast_precision_loss, reason = "a number of samples")]
        let each = 1.0 / samples.len() as f64;
        let mut shares = Self::default();
        for (program, symbol) in &samples {
            *shares.programs.entry((*program).to_owned()).or_default() += each;
            if let Some(symbol) = symbol {
                *shares.kernel.entry((*symbol).to_owned()).or_default() += each;
            }
        }
        (!samples.is_empty()).then_some(shares)
    }

    /// The share of the symbols that run only for eBPF programs, by what they do.
    fn of_ebpf(&self) -> Vec<(&'static str, f64)> {
        let mut groups: Vec<_> = OURS.iter().map(|(name, _)| (*name, 0.0)).collect();
        for (symbol, share) in &self.kernel {
            let fits = |starts: &[&str]| starts.iter().any(|start| symbol.starts_with(start));
            if let Some(group) = OURS.iter().position(|(_, starts)| fits(starts)) {
                groups[group].1 += share;
            }
        }
        groups
    }

    /// The share of the program's own threads.
    fn of_process(&self) -> f64 {
        THREADS.iter().fold(0.0, |sum, name| sum + self.of_program(name))
    }

    fn of_program(&self, name: &str) -> f64 {
        self.programs.iter().filter(|(program, _)| program.starts_with(name)).map(|(_, share)| share).sum()
    }
}

/// What each adds, beside the shares without: name and shares, that of the program last.
pub(super) fn table(load: &str, columns: &[(&str, Shares)]) -> String {
    let mut text = format!("\n{:<44}", format!("share of the CPUs, {load}, %"));
    for (name, _) in columns {
        let _ = write!(text, " {name:>11}");
    }
    let mut line = |name: &str, shares: &dyn Fn(&Shares) -> f64| {
        let _ = write!(text, "\n{name:<44}");
        for (_, column) in columns {
            let _ = write!(text, " {:>11.2}", shares(column) * 100.0);
        }
    };
    for (group, (name, _)) in OURS.iter().enumerate() {
        line(name, &|shares| shares.of_ebpf()[group].1);
    }
    line("its process", &Shares::of_process);
    line("all that it adds", &|shares| {
        shares.of_ebpf().iter().map(|(_, share)| share).sum::<f64>() + shares.of_process()
    });
    let last = columns.last().map(|(_, shares)| &shares.kernel);
    let mut programs: Vec<_> =
        last.into_iter().flatten().filter(|(symbol, _)| symbol.starts_with("bpf_prog_")).collect();
    programs.sort_by(|a, b| b.1.total_cmp(a.1));
    for (symbol, _) in programs.into_iter().take(8) {
        // `bpf_prog_TAG_NAME`.
        let name = symbol.splitn(4, '_').last().unwrap_or(symbol);
        line(&format!("  {name}"), &|shares| shares.kernel.get(symbol).copied().unwrap_or(0.0));
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_shared_out_by_program_and_symbol() {
        let text = "    wrk  ffffffff81a20010 tcp_ack\n nginx: worker   ffffffffc0a20010 bpf_prog_ab12cd34ab12cd34_tls_wire\n\
                    handshake      55d0f2a01000 <A as core::fmt::Debug>::fmt\n  wrk ffffffff81a20010 bpf_trace_run3\n";
        let shares = Shares::parse(text).unwrap();
        assert!((shares.of_program("wrk") - 0.5).abs() < 1e-9);
        assert!((shares.of_program("nginx: worker") - 0.25).abs() < 1e-9);
        assert!((shares.of_program("handshake") - 0.25).abs() < 1e-9);
        assert_eq!(shares.kernel.len(), 3, "addresses of user space are no kernel symbols");
        let groups = shares.of_ebpf();
        assert!(groups[..2].iter().all(|(_, share)| (share - 0.25).abs() < 1e-9), "{groups:?}");
        let table = table("TCP", &[("without", Shares::default()), ("daemon", shares)]);
        let line = |name: &str| table.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        assert!(
            table.starts_with("\nshare of the CPUs, TCP, %") && table.contains("  without      daemon\n")
        );
        assert_eq!(line("  tls_wire"), Some("0.00       25.00"));
        assert_eq!(line("all that it adds"), Some("0.00       75.00"));
        assert_eq!(Shares::parse(""), None);
    }
}
