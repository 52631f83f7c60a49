//! Loads the eBPF object into the kernel and attaches its programs.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::Path,
    sync::{Arc, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use aya::{
    Btf as AyaBtf, Ebpf, EbpfLoader,
    maps::{MapData, PerCpuArray, RingBuf},
    programs::Program,
};
use aya_log::EbpfLogger;
use handshake_common::{
    Layout, layout,
    tls::wire::raw,
    totals::{self, Totals},
};
use thiserror::Error;

use super::{
    hook,
    plan::{Attach, Hook, Offer, Planned, plan},
    wire::{self, TlsWire},
};
use crate::{
    bounded,
    join::WireCoverage,
    kernel::btf::{self, Btf, BtfError},
    tls::{
        discover::VmaIterator,
        library::{
            attach::Programs,
            libraries::{Libraries, LibraryCounts, mappings},
            skipped::Skipped,
            worker::Worker,
        },
    },
};

/// The kernel side, compiled.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/handshake-ebpf"));

/// Where the kernel describes its types.
pub const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";
/// Where tracefs is mounted: by systemd, or inside debugfs on older systems.
const TRACEFS: &[&str] = &["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// Why nothing can be traced. Each says what to do.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The first of all errors.
    #[error(
        "loading eBPF programs needs root, or the capabilities CAP_BPF and CAP_PERFMON; run it with sudo"
    )]
    NotPermitted,
    /// A kernel without type information.
    #[error(
        "this kernel has no type information ({BTF_PATH}: {0}); handshake needs a kernel built with \
         CONFIG_DEBUG_INFO_BTF=y, 5.8 or newer"
    )]
    NoBtf(io::Error),
    /// A member is not where any known kernel has it.
    #[error("{0}; this kernel is older or newer than handshake knows (see docs/compatibility.md)")]
    Layout(#[from] BtfError),
    /// A hook that nothing works without.
    #[error("cannot hook {hook}: {reason}")]
    Hook {
        /// The tracepoint.
        hook: &'static str,
        /// Why not.
        reason: String,
    },
    /// Neither typed nor perf tracepoints.
    #[error("no way to attach works here; `handshake check` says what this kernel offers ({0})")]
    NoWay(String),
    /// The object itself was refused.
    #[error("the kernel refused the eBPF object: {0}")]
    Object(String),
}

/// What the kernel says of itself, read once.
pub struct Kernel {
    btf: Btf,
    layout: Layout,
}

impl Kernel {
    /// Reads the kernel's type information.
    ///
    /// # Errors
    /// When there is none, or it lacks a structure member.
    pub fn read() -> Result<Self, LoadError> {
        let bytes = bounded::read(BTF_PATH, bounded::KERNEL_BTF).map_err(LoadError::NoBtf)?;
        let btf = Btf::from_bytes(&bytes)?;
        let layout = btf::layout(&btf)?;
        Ok(Self { btf, layout })
    }

    /// What would be attached in this way.
    #[must_use]
    pub fn plan(&self, way: Attach) -> Vec<Planned> {
        plan(way, |hook| Offer {
            typed: btf::has_tracepoint(&self.btf, hook.name),
            format: perf_format(hook),
        })
    }
}

fn perf_format(hook: &Hook) -> Option<String> {
    TRACEFS.iter().find_map(|root| {
        let format = Path::new(root).join("events").join(hook.category).join(hook.name).join("format");
        bounded::read_to_string(format, bounded::SMALL).ok()
    })
}

/// How to load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Only this way of attaching; otherwise the cheapest that works.
    pub attach: Option<Attach>,
    /// Size of the ring buffer, bytes; rounded up to a power of two of at least a page.
    pub ring_bytes: u32,
    /// How many connections can be followed at once.
    pub max_connections: u32,
    /// Which TLS handshakes are looked at on the wire.
    pub tls_wire: TlsWire,
    /// Probe the TLS libraries of the host.
    pub tls_libraries: bool,
}

/// What became of one hook.
#[derive(Debug)]
pub struct Attached {
    /// Which one.
    pub hook: &'static Hook,
    /// Why it is not attached.
    pub missing: Option<String>,
}

/// The running programs. Dropping it detaches them.
pub struct Probes {
    /// With the worker, once it works.
    ebpf: Option<Ebpf>,
    /// How they are attached.
    pub way: Attach,
    /// Every hook, attached or not.
    pub hooks: Vec<Attached>,
    /// Which TLS handshakes are seen on the wire.
    pub sight: WireCoverage,
    /// What of them is not seen because of where this program runs.
    pub wire_shortfall: Option<String>,
    /// The TLS libraries of the host, or why they are not probed; `None`: not asked for, or with the worker.
    pub libraries: Option<Result<Libraries, String>>,
    worker: Option<Worker>,
    programs: Programs,
    totals: PerCpuArray<MapData, [u64; totals::SLOTS]>,
    kernel_log: Option<EbpfLogger<&'static dyn log::Log>>,
}

impl std::fmt::Debug for Probes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probes").field("way", &self.way).field("hooks", &self.hooks).finish_non_exhaustive()
    }
}

impl Probes {
    /// Loads and attaches everything; returns the ring that the records come from.
    ///
    /// # Errors
    /// When a required hook cannot be had in any way that the settings allow.
    pub fn attach(kernel: &Kernel, settings: &Settings) -> Result<(Self, RingBuf<MapData>), LoadError> {
        let aya_btf = AyaBtf::from_sys_fs().map_err(|error| LoadError::Object(error.to_string()))?;
        let ways: &[(Attach, bool)] = match settings.attach {
            Some(Attach::TpBtf) => &[(Attach::TpBtf, true), (Attach::TpBtf, false)],
            Some(Attach::Tracepoint) => &[(Attach::Tracepoint, false)],
            // bpf_get_socket_cookie and bpf_get_current_task_btf are for tracing programs from 5.12 on only.
            None => &[(Attach::TpBtf, true), (Attach::TpBtf, false), (Attach::Tracepoint, false)],
        };
        // Of each way the last error counts: the first may only be about helpers that the next try does without.
        let mut errors: Vec<(Attach, LoadError)> = Vec::new();
        for &(way, helpers) in ways {
            match Self::attach_one_way(kernel, settings, &aya_btf, way, helpers) {
                Ok(attached) => return Ok(attached),
                Err(LoadError::NotPermitted) => return Err(LoadError::NotPermitted),
                Err(error) => {
                    tracing::debug!(way = way.as_str(), helpers, %error, "cannot attach this way");
                    errors.retain(|(earlier, _)| *earlier != way);
                    errors.push((way, error));
                }
            }
        }
        if errors.len() > 1 {
            let reasons: Vec<String> =
                errors.iter().map(|(way, error)| format!("{}: {error}", way.as_str())).collect();
            return Err(LoadError::NoWay(reasons.join("; ")));
        }
        Err(errors.pop().map_or_else(|| LoadError::NoWay("none was tried".to_owned()), |(_, error)| error))
    }

    fn attach_one_way(
        kernel: &Kernel,
        settings: &Settings,
        aya_btf: &AyaBtf,
        way: Attach,
        helpers: bool,
    ) -> Result<(Self, RingBuf<MapData>), LoadError> {
        let plan = kernel.plan(way);
        let layout = Layout { has_tracing_helpers: u32::from(helpers), ..kernel.layout };
        let offsets: Vec<(&'static str, u32)> =
            plan.iter().filter_map(|planned| planned.attach.as_ref().ok()).flatten().copied().collect();
        let ring_bytes = settings.ring_bytes.max(4096).next_power_of_two();

        let log_level =
            if tracing::enabled!(tracing::Level::DEBUG) { aya_log::Level::Debug as u8 } else { 0 };

        let wire_ports = settings.tls_wire.ports();
        let mut loader = EbpfLoader::new();
        loader
            .btf(Some(aya_btf))
            .override_global(layout::SYMBOL, &layout, true)
            // The verifier drops the messages of levels that are off: they cost nothing.
            .override_global(aya_log::LEVEL, &log_level, true)
            .override_global(raw::PORTS_SYMBOL, &wire_ports, true)
            .map_max_entries("RECORDS", ring_bytes)
            .map_max_entries("CONNECTIONS", settings.max_connections.max(1));
        for (symbol, offset) in &offsets {
            loader.override_global(symbol, offset, true);
        }
        let mut ebpf = loader.load(OBJECT).map_err(|error| refused(&error))?;

        let kernel_log = (log_level > 0).then(|| EbpfLogger::init(&mut ebpf)).transpose();
        let kernel_log = kernel_log.map_err(|error| LoadError::Object(error.to_string()))?;

        // All is loaded before anything is attached: the kernel takes a second to verify it, and what happens meanwhile
        // would have to wait in the ring.
        let mut hooks = Vec::with_capacity(plan.len());
        for planned in plan {
            let possible = planned.attach.and_then(|_| hook::load(&mut ebpf, planned.hook, way, aya_btf));
            hooks.push(Attached { hook: planned.hook, missing: possible.err() });
        }
        check_required(&hooks)?;
        let nested = way == Attach::TpBtf;
        let nested = nested.then(|| hook::load_nested(&mut ebpf, aya_btf));
        let wire = (settings.tls_wire != TlsWire::Off).then(|| wire::load(&mut ebpf));
        let programs = Programs::default();
        let libraries = settings.tls_libraries.then(|| {
            let mut libraries = Libraries::new(&mut ebpf, aya_btf, Arc::clone(&programs))?;
            libraries.settle(&mut ebpf, Instant::now() + SETTLE);
            Ok(libraries)
        });

        // Without the twin nothing is lost but what it would have saved, and that is counted.
        let nested = nested.map(|loaded| loaded.and_then(|()| hook::attach_nested(&mut ebpf)));
        if let Some(Err(reason)) = nested {
            tracing::warn!(reason, "cannot attach {}: some changes of state will be missed", hook::NESTED);
        }
        for attached in hooks.iter_mut().filter(|attached| attached.missing.is_none()) {
            attached.missing = hook::attach(&mut ebpf, attached.hook, way).err();
        }
        check_required(&hooks)?;
        let (mut sight, mut wire_shortfall) = (WireCoverage::None, None);
        if let Some(loaded) = wire {
            let attached = loaded.and_then(|()| wire::attach(&mut ebpf, settings.tls_wire));
            let missing = match attached {
                Ok(seen) => {
                    (sight, wire_shortfall) = seen;
                    None
                }
                Err(reason) => Some(reason),
            };
            hooks.push(Attached { hook: &wire::HOOK, missing });
        }
        let ring = ebpf.take_map("RECORDS").and_then(|map| RingBuf::try_from(map).ok());
        let totals = ebpf.take_map("TOTALS").and_then(|map| PerCpuArray::try_from(map).ok());
        match (ring, totals) {
            (Some(ring), Some(totals)) => {
                let own = ebpf.programs().filter(|(_, program)| !matches!(program, Program::UProbe(_)));
                let own = own.filter_map(|(name, program)| {
                    Some((name.to_owned(), program.fd().ok()?.as_fd().try_clone_to_owned().ok()?))
                });
                programs.lock().unwrap_or_else(PoisonError::into_inner).extend(own);
                let (ebpf, worker) = (Some(ebpf), None);
                let probes = Self {
                    ebpf,
                    way,
                    hooks,
                    sight,
                    wire_shortfall,
                    libraries,
                    worker,
                    programs,
                    totals,
                    kernel_log,
                };
                Ok((probes, ring))
            }
            _ => Err(LoadError::Object("it lacks its maps".to_owned())),
        }
    }

    /// The kernel side's counters, summed over all CPUs.
    ///
    /// # Errors
    /// When the map cannot be read, which no kernel is known to do.
    pub fn totals(&self) -> anyhow::Result<Totals> {
        let mut sum = Totals::ZERO;
        for cpu in self.totals.get(&0, 0)?.iter() {
            sum.add(cpu);
        }
        Ok(sum)
    }

    /// From now on a thread of its own takes in which TLS libraries come and go, in intervals of `pace`.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn follow_libraries(&mut self, pace: Duration) -> io::Result<()> {
        if let Some(Ok(libraries)) = self.libraries.take_if(|libraries| libraries.is_ok())
            && let Some(ebpf) = self.ebpf.take()
        {
            self.worker = Some(Worker::start(libraries, ebpf, pace)?);
        }
        Ok(())
    }

    /// How many files of TLS libraries there are and what was skipped, if that has changed since it was asked for last.
    #[must_use]
    pub fn library_news(&self) -> Option<(LibraryCounts, Skipped)> {
        self.worker.as_ref()?.take_counts()
    }

    /// When the thread that follows the libraries last came round; tells in the log when it has not for long. `None` when there
    /// is no such thread.
    pub fn worker_turn(&mut self) -> Option<SystemTime> {
        self.worker.as_mut().map(Worker::last_turn)
    }

    /// Loads the iterator over the mappings of this host.
    ///
    /// # Errors
    /// When this kernel cannot run it, with the reason.
    pub fn mappings(&mut self) -> Result<VmaIterator, String> {
        let btf = AyaBtf::from_sys_fs().map_err(|error| chain(&error))?;
        mappings(self.ebpf.as_mut().ok_or("the worker has the object")?, &btf)
    }

    /// Passes on what the programs logged (`-vv`).
    pub fn pass_on_log(&mut self) {
        if let Some(log) = &mut self.kernel_log {
            log.flush();
        }
    }

    /// How many times the kernel left one of the programs out because it was already running on that CPU, and no
    /// twin saw the event either.
    #[must_use]
    pub fn missed_runs(&self) -> u64 {
        let skipped = |program: &OwnedFd| {
            let path = format!("/proc/self/fdinfo/{}", program.as_raw_fd());
            let info = bounded::read_to_string(path, bounded::SMALL).ok()?;
            info.lines().find_map(|line| line.strip_prefix("recursion_misses:")?.trim().parse::<u64>().ok())
        };
        let missed = |(name, program): &(String, OwnedFd)| match name.as_str() {
            // What the twin misses, the program itself sees.
            hook::NESTED => None,
            hook::TWINNED => {
                let saved = self.totals().map_or(0, |totals| totals.at(totals::NESTED));
                Some(skipped(program)?.saturating_sub(saved))
            }
            _ => skipped(program),
        };
        self.programs.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(missed).sum()
    }
}

fn check_required(hooks: &[Attached]) -> Result<(), LoadError> {
    for Attached { hook, missing } in hooks {
        if let Some(reason) = missing.as_ref().filter(|_| hook.required) {
            return Err(LoadError::Hook { hook: hook.name, reason: reason.clone() });
        }
    }
    Ok(())
}

/// How long the libraries that are there already may take before the first record; the rest comes while it runs.
const SETTLE: Duration = Duration::from_secs(10);

/// An error in one line; the whole of it goes to the log.
pub(super) fn told(program: &str, error: &dyn std::error::Error) -> String {
    let whole = chain(error);
    // A verifier's log has a line for each instruction.
    for line in whole.lines() {
        tracing::debug!(program, "{line}");
    }
    shorten(&whole)
}

/// An error with all its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}

/// One line out of an error that may carry the verifier's log: its beginning, and the log's last word.
pub(crate) fn shorten(reason: &str) -> String {
    const STATISTICS: [&str; 3] = ["verification time", "stack depth", "processed"];
    let mut lines = reason.lines().map(str::trim).filter(|line| !line.is_empty());
    let Some(first) = lines.next() else { return String::new() };
    match lines.rfind(|line| !STATISTICS.iter().any(|start| line.starts_with(start))) {
        Some(last) => format!("{first} … {last}"),
        // An empty log: the verifier was not even asked.
        None => first.trim_end_matches("Verifier output:").trim_end().trim_end_matches('.').to_owned(),
    }
}

fn refused(error: &aya::EbpfError) -> LoadError {
    let text = chain(error);
    let permission = text.contains("Operation not permitted") || text.contains("Permission denied");
    if permission { LoadError::NotPermitted } else { LoadError::Object(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without it two tasks may share a stack: `stack` on the eBPF side says why.
    #[test]
    fn every_program_of_a_uprobe_has_a_tail_call() {
        use object::{Object as _, ObjectSection as _, ObjectSymbol as _};

        /// `BPF_JMP | BPF_CALL` of a helper, `bpf_tail_call`.
        fn is_tail_call(instruction: &[u8]) -> bool {
            instruction[0] == 0x85 && instruction[1] >> 4 == 0 && instruction[4..] == 12_u32.to_le_bytes()
        }
        let object = object::File::parse(OBJECT).unwrap();
        let mut programs = 0;
        for section in object.sections() {
            let name = section.name().unwrap();
            // They kill programs that change their stack: see `tls::inspect::exits`.
            assert!(!name.starts_with("uretprobe"), "{name} is a return probe");
            if !name.starts_with("uprobe") {
                continue;
            }
            let code = section.data().unwrap();
            for symbol in object.symbols().filter(|symbol| symbol.section_index() == Some(section.index())) {
                let Some(begin) = usize::try_from(symbol.address()).ok().filter(|_| symbol.size() > 0) else {
                    continue;
                };
                let program = &code[begin..][..usize::try_from(symbol.size()).unwrap()];
                assert!(program.chunks_exact(8).any(is_tail_call), "{:?}", symbol.name());
                programs += 1;
            }
        }
        assert!(programs >= 12, "{programs} programs");
    }

    #[test]
    fn a_verifiers_log_becomes_its_last_word() {
        let log = "cannot hook x: refused. Verifier output: func#0 @0\n0: R1=ctx\n29: (85) call f#107\n\
                   unknown func f#107\nverification time 2904 usec\nstack depth 56\nprocessed 30 insns\n";
        assert_eq!(shorten(log), "cannot hook x: refused. Verifier output: func#0 @0 … unknown func f#107");
        assert_eq!(shorten("returned EPERM. Verifier output: "), "returned EPERM");
        assert_eq!(shorten("plain"), "plain");
        assert_eq!(shorten(""), "");
    }
}
