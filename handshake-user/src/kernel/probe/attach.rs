//! Loads the eBPF object into the kernel and attaches its programs.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, MapData, MapError, PerCpuArray, RingBuf},
    programs::Program,
};
use aya_log::EbpfLogger;
use handshake_common::{
    Layout,
    histograms::{self, Bounds, Histogram, SERIES},
    layout,
    tls::wire::raw,
    totals::{self, Totals},
};

use super::{
    error::{HookError, LoadError},
    function::{self, Arities, FunctionProbe},
    histograms::Histograms,
    hook::{Hook, TLS_WIRE},
    kernel::Kernel,
    load::{OBJECT, find_features},
    plan::{Offset, Planned},
    program::{self, Job},
    uprobe_multi::UprobeLinks,
    wire::{self, WireCoverage, WireView},
};
use crate::{
    bounded,
    settings::{Attach, AttachMode, ProbeSettings, TlsWire},
};

/// Programs by name: for each, the kernel counts how often it skipped it.
pub type LoadedPrograms = Arc<Mutex<Vec<(String, Arc<OwnedFd>)>>>;

/// Reads what the programs log.
type KernelLog = EbpfLogger<&'static dyn log::Log>;

/// What became of one hook.
#[derive(Debug)]
pub struct Attached {
    /// Which one.
    pub hook: &'static Hook,
    /// Why it is not attached.
    pub missing: Option<HookError>,
}

/// Everything that comes with attached programs.
pub struct Attachment<T> {
    /// The programs. Dropping it detaches them.
    pub ebpf: Ebpf,
    /// What is attached, and its counters.
    pub probes: Probes,
    /// Where the records come from.
    pub ring: RingBuf<MapData>,
    /// What was prepared between loading and attaching.
    pub prepared: T,
}

/// What is attached, and its counters.
pub struct Probes {
    /// How the tracepoints are attached.
    pub mode: AttachMode,
    /// Whether connections are named by the kernel's socket cookies, or by numbers of our own.
    pub ids_are_cookies: bool,
    /// Every hook, attached or not.
    pub hooks: Vec<Attached>,
    /// Kernel functions, hooked or not: what they tell is unknown without.
    pub functions: Vec<FunctionProbe>,
    /// Which TLS handshakes are seen on the wire.
    pub wire_coverage: WireCoverage,
    /// What of them is out of sight because of where this program runs, for people.
    pub wire_shortfall: Option<String>,
    programs: LoadedPrograms,
    totals: PerCpuArray<MapData, [u64; totals::SLOTS]>,
    histograms: Option<PerCpuArray<MapData, Histogram>>,
    kernel_log: Option<KernelLog>,
}

impl std::fmt::Debug for Probes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probes").field("mode", &self.mode).field("hooks", &self.hooks).finish_non_exhaustive()
    }
}

impl Probes {
    /// The kernel side's counters, summed over all CPUs.
    ///
    /// # Errors
    /// When the map cannot be read, which no kernel is known to do.
    pub fn totals(&self) -> Result<Totals, MapError> {
        let mut sum = Totals::ZERO;
        for cpu in self.totals.get(&0, 0)?.iter() {
            sum.add(cpu);
        }
        Ok(sum)
    }

    /// The histograms that the kernel side fills, if it was asked to.
    ///
    /// # Errors
    /// When the map cannot be read, which no kernel is known to do.
    pub fn histograms(&self) -> Result<Option<Histograms>, MapError> {
        self.histograms.as_ref().map(Histograms::read).transpose()
    }

    /// Whether the kernel side fills histograms: it was asked to, and the kernel takes the programs that do.
    #[must_use]
    pub const fn fills_histograms(&self) -> bool {
        self.histograms.is_some()
    }

    /// Passes on what the programs logged (`-vv`).
    pub fn pass_on_log(&mut self) {
        if let Some(log) = &mut self.kernel_log {
            log.flush();
        }
    }

    /// How many times the kernel skipped a program because it was already running on that CPU, and the
    /// reentrant variant did not see the event either.
    #[must_use]
    pub fn missed_runs(&self) -> u64 {
        let skipped = |program: &OwnedFd| number(&info(program)?, "recursion_misses:");
        let missed = |(name, program): &(String, Arc<OwnedFd>)| match name.as_str() {
            // What the reentrant variant misses, the program itself sees.
            program::SET_STATE_NESTED => None,
            program::SET_STATE => {
                let saved = self.totals().map_or(0, |totals| totals.at(totals::NESTED));
                Some(skipped(program)?.saturating_sub(saved))
            }
            _ => skipped(program),
        };
        self.programs.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(missed).sum()
    }

    /// How long each program has run. Returns `None` while the kernel does not keep it.
    #[must_use]
    pub fn run_times(&self) -> Option<Vec<RunTime>> {
        let kept = bounded::read_to_string("/proc/sys/kernel/bpf_stats_enabled", bounded::SMALL).ok()?;
        if kept.trim() == "0" {
            return None;
        }
        let mut run_times = BTreeMap::<String, RunTime>::new();
        for (program, fd) in self.programs.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let Some(info) = info(fd) else { continue };
            let (Some(ns), Some(runs)) = (number(&info, "run_time_ns:"), number(&info, "run_cnt:")) else {
                continue;
            };
            let of_name = run_times.entry(program.clone()).or_default();
            of_name.time += Duration::from_nanos(ns);
            of_name.runs += runs;
        }
        let named = run_times.into_iter().map(|(program, run_time)| RunTime { program, ..run_time });
        Some(named.collect())
    }
}

/// How long a program has run, over all its attachments, while the kernel kept it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunTime {
    /// Its name.
    pub program: String,
    /// In total.
    pub time: Duration,
    /// How often.
    pub runs: u64,
}

/// What the kernel says of a program (`bpf_prog_show_fdinfo`).
fn info(program: &OwnedFd) -> Option<String> {
    bounded::read_to_string(format!("/proc/self/fdinfo/{}", program.as_raw_fd()), bounded::SMALL).ok()
}

fn number(info: &str, name: &str) -> Option<u64> {
    info.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

/// One way to attach, to be tried.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    mode: AttachMode,
    /// With `bpf_get_socket_cookie` and `bpf_get_current_task_btf`, which tracing programs have from 5.12 on.
    has_tracing_helpers: bool,
}

impl Attempt {
    const TP_BTF: Self = Self { mode: AttachMode::TpBtf, has_tracing_helpers: true };
    const OLD_TP_BTF: Self = Self { mode: AttachMode::TpBtf, has_tracing_helpers: false };
    const TRACEPOINT: Self = Self { mode: AttachMode::Tracepoint, has_tracing_helpers: false };

    /// What to try, the cheapest first.
    const fn all(attach: Attach) -> &'static [Self] {
        match attach {
            Attach::Auto => &[Self::TP_BTF, Self::OLD_TP_BTF, Self::TRACEPOINT],
            Attach::Only(AttachMode::TpBtf) => &[Self::TP_BTF, Self::OLD_TP_BTF],
            Attach::Only(AttachMode::Tracepoint) => &[Self::TRACEPOINT],
        }
    }
}

/// Loads and attaches everything. With bounds, the kernel side fills histograms and sends no records of
/// connections without TLS, unless the programs are then too large for this kernel's verifier
/// ([`Probes::fills_histograms`]). `prepare` is called once all programs are loaded and none is attached:
/// what takes long then leaves no records waiting in the ring.
///
/// # Errors
/// When a required hook cannot be attached in any mode that the settings allow.
pub fn attach<T>(
    kernel: &Kernel,
    settings: &ProbeSettings,
    bounds: &Bounds,
    mut prepare: impl FnMut(&mut Ebpf, UprobeLinks, &LoadedPrograms) -> T,
) -> Result<Attachment<T>, LoadError> {
    // Only the last error of a mode counts: the first may be about helpers that the next attempt does
    // without.
    let mut errors: Vec<(AttachMode, LoadError)> = Vec::new();
    for &attempt in Attempt::all(settings.attach) {
        let mode = attempt.mode;
        let attached = match attempt.attach(kernel, settings, bounds, &mut prepare) {
            // What fills the histograms is most of what the verifier looks at.
            Err(error) if bounds.number > 0 && error.is_too_large() => {
                tracing::debug!(?attempt, %error, "cannot attach with histograms");
                attempt.attach(kernel, settings, &Bounds::NONE, &mut prepare)
            }
            attached => attached,
        };
        match attached {
            Err(LoadError::NotPermitted) => return Err(LoadError::NotPermitted),
            Err(error) => {
                tracing::debug!(?attempt, %error, "cannot attach");
                errors.retain(|(earlier, _)| *earlier != mode);
                errors.push((mode, error));
            }
            attached => return attached,
        }
    }
    match errors.pop() {
        Some((_, error)) if errors.is_empty() => Err(error),
        last => Err(LoadError::NoMode(errors.into_iter().chain(last).collect())),
    }
}

impl Attempt {
    fn attach<T>(
        self,
        kernel: &Kernel,
        settings: &ProbeSettings,
        bounds: &Bounds,
        prepare: &mut impl FnMut(&mut Ebpf, UprobeLinks, &LoadedPrograms) -> T,
    ) -> Result<Attachment<T>, LoadError> {
        let plan = kernel.plan(self.mode);
        let offsets: Vec<Offset> =
            plan.iter().filter_map(|planned| planned.offsets.as_ref().ok()).flatten().copied().collect();
        let arities = Arities::read(kernel);
        let (mut ebpf, links, kernel_log) = self.load_object(kernel, settings, bounds, &offsets, &arities)?;

        // Everything is loaded before anything is attached: the kernel takes a second to verify it all, and
        // what happens meanwhile would have to wait in the ring.
        let wire = (settings.tls_wire != TlsWire::Off).then(wire::job);
        let nested = (self.mode == AttachMode::TpBtf).then(Job::nested);
        let of_hooks = plan.iter().filter(|planned| planned.offsets.is_ok());
        // Those that take long first.
        let jobs = wire.into_iter().chain(of_hooks.map(|planned| Job::of(planned.hook, self.mode)));
        let mut loaded = program::load_all(&mut ebpf, jobs.chain(nested).collect(), kernel.loader_btf());
        let mut outcome = |job: Job| loaded.remove(&job.name).unwrap_or(Err(HookError::NoProgram));
        let mut hooks: Vec<_> = plan
            .into_iter()
            .map(|Planned { hook, offsets }| {
                let loaded = offsets.and_then(|_| outcome(Job::of(hook, self.mode)));
                Attached { hook, missing: loaded.err() }
            })
            .collect();
        check_required(&mut hooks)?;
        let nested = (self.mode == AttachMode::TpBtf).then(|| outcome(Job::nested()));
        let wire = (settings.tls_wire != TlsWire::Off).then(|| outcome(wire::job()));
        let programs = LoadedPrograms::default();
        let prepared = prepare(&mut ebpf, links, &programs);

        let functions = function::attach(&mut ebpf, kernel, self.mode, &arities);
        // The table has them in the order of a connection's life. From its end to its beginning: what is
        // followed is followed to its end, and of what is seen to begin nothing is missed.
        let attach = |ebpf: &mut Ebpf, attached: &mut Attached| {
            if attached.missing.is_none() {
                attached.missing = program::attach(ebpf, attached.hook, self.mode).err();
            }
        };
        hooks.iter_mut().skip(1).rev().for_each(|attached| attach(&mut ebpf, attached));
        let mut view = WireView::default();
        let wire = wire.map(|loaded| {
            let attached = loaded.and_then(|()| wire::attach(&mut ebpf, settings.tls_wire));
            Attached { hook: &TLS_WIRE, missing: attached.map(|attached| view = attached).err() }
        });
        hooks.iter_mut().take(1).for_each(|attached| attach(&mut ebpf, attached));
        // After the first one: it looks what that has done.
        let nested = nested.map(|loaded| loaded.and_then(|()| program::attach_nested(&mut ebpf)));
        // Without it, only the events that it would have seen are lost, and those are counted.
        if let Some(Err(reason)) = nested {
            let name = program::SET_STATE_NESTED;
            tracing::warn!(%reason, "cannot attach {name}: some changes of state will be missed");
        }
        check_required(&mut hooks)?;
        hooks.extend(wire);
        say_everything_is_attached(&mut ebpf)?;
        let ring = ebpf.take_map("RECORDS").and_then(|map| RingBuf::try_from(map).ok());
        let totals = ebpf.take_map("TOTALS").and_then(|map| PerCpuArray::try_from(map).ok());
        let histograms = (bounds.number > 0)
            .then(|| ebpf.take_map("HISTOGRAMS").and_then(|map| PerCpuArray::try_from(map).ok()))
            .flatten();
        let (Some(ring), Some(totals)) = (ring, totals) else { return Err(LoadError::NoMaps) };
        remember_programs(&ebpf, &programs);
        let probes = Probes {
            mode: self.mode,
            ids_are_cookies: self.mode == AttachMode::TpBtf && self.has_tracing_helpers,
            hooks,
            functions,
            wire_coverage: view.coverage,
            wire_shortfall: view.shortfall,
            programs,
            totals,
            histograms,
            kernel_log,
        };
        Ok(Attachment { ebpf, probes, ring, prepared })
    }

    /// Creates the maps and sets the globals; no program is loaded yet.
    fn load_object(
        self,
        kernel: &Kernel,
        settings: &ProbeSettings,
        bounds: &Bounds,
        offsets: &[Offset],
        arities: &Arities,
    ) -> Result<(Ebpf, UprobeLinks, Option<KernelLog>), LoadError> {
        let layout = Layout { has_tracing_helpers: u32::from(self.has_tracing_helpers), ..kernel.layout()? };
        let ring_bytes = settings.ring_bytes();
        let log_level =
            if tracing::enabled!(tracing::Level::DEBUG) { aya_log::Level::Debug as u8 } else { 0 };
        let wire_ports = settings.tls_wire.ports();
        let series = if bounds.number > 0 { u32::try_from(SERIES).unwrap_or(u32::MAX) } else { 1 };
        find_features();
        let mut loader = EbpfLoader::new();
        loader
            .btf(Some(kernel.loader_btf()))
            .override_global(layout::SYMBOL, &layout, true)
            // The verifier drops the messages of levels that are off: they cost nothing.
            .override_global(aya_log::LEVEL, &log_level, true)
            .override_global(raw::PORTS_SYMBOL, &wire_ports, true)
            .override_global(histograms::SYMBOL, bounds, true)
            .map_max_entries("RECORDS", ring_bytes)
            .map_max_entries("CONNECTIONS", settings.max_connections.max(1))
            .map_max_entries("HISTOGRAMS", series);
        for Offset { global, bytes } in offsets {
            loader.override_global(global, bytes, true);
        }
        arities.tell(&mut loader);
        let mut ebpf = loader.load(OBJECT)?;
        let links = UprobeLinks::new(&ebpf, self.mode);
        let kernel_log = (log_level > 0).then(|| EbpfLogger::init(&mut ebpf)).transpose();
        Ok((ebpf, links, kernel_log.map_err(|error| LoadError::Log(error.to_string()))?))
    }
}

/// From now on the probes of libraries follow handshakes.
fn say_everything_is_attached(ebpf: &mut Ebpf) -> Result<(), LoadError> {
    let map = ebpf.map_mut("ATTACHED").ok_or(LoadError::NoMaps)?;
    let said = Array::<_, u32>::try_from(map).and_then(|mut map| map.set(0, 1, 0));
    said.map_err(|_| LoadError::NoMaps)
}

/// Fails on the first required hook that is missing.
fn check_required(hooks: &mut [Attached]) -> Result<(), LoadError> {
    for Attached { hook, missing } in hooks.iter_mut().filter(|attached| attached.hook.required) {
        if let Some(reason) = missing.take() {
            return Err(LoadError::Hook { hook: hook.name, reason });
        }
    }
    Ok(())
}

/// Keeps a descriptor of every program but the uprobes, which are kept as they are loaded.
fn remember_programs(ebpf: &Ebpf, programs: &LoadedPrograms) {
    let own = ebpf.programs().filter(|(_, program)| !matches!(program, Program::UProbe(_)));
    let own = own.filter_map(|(name, program)| {
        Some((name.to_owned(), Arc::new(program.fd().ok()?.as_fd().try_clone_to_owned().ok()?)))
    });
    programs.lock().unwrap_or_else(PoisonError::into_inner).extend(own);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without one, two tasks may share a stack: `stack` on the eBPF side says why.
    #[test]
    fn every_uprobe_program_has_a_tail_call() {
        use object::{Object as _, ObjectSection as _, ObjectSymbol as _};

        /// `BPF_JMP | BPF_CALL` of a helper, `bpf_tail_call`.
        fn is_tail_call(instruction: &[u8]) -> bool {
            instruction[0] == 0x85 && instruction[1] >> 4 == 0 && instruction[4..] == 12_u32.to_le_bytes()
        }
        let object = object::File::parse(OBJECT).unwrap();
        let mut programs = 0;
        for section in object.sections() {
            let name = section.name().unwrap();
            // Return probes kill programs that change their stack: see `tls::inspect::exits`.
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
}
