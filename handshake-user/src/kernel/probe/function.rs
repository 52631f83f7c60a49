//! Kernel functions that are hooked for what no tracepoint tells: which, by what prototype, and how.
//!
//! A function is no interface of the kernel: its prototype is compared with the one that a program relies on
//! before anything is attached, and what cannot be attached costs only what it alone tells. `handshake check`
//! shows that they fire.

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, MapError, PerCpuArray},
    programs::Program,
};
use handshake_common::{
    Layout,
    function::{COUNT, Function, MAP},
    layout,
};

use super::{
    error::{HookError, LoadError},
    kernel::Kernel,
    load::{OBJECT, load as load_program},
};
use crate::{
    kernel::btf::{Prototype, PrototypeError},
    settings::AttachMode,
};

/// A function, and the programs on it: `NAME_fentry` and `NAME_kprobe`.
#[derive(Debug, PartialEq, Eq)]
pub struct FunctionHook {
    /// Which one.
    pub function: Function,
    /// Its name in the kernel, and what the programs rely on.
    pub prototype: Prototype,
    /// The beginning of the programs' names.
    name: &'static str,
    /// The global with the number of its arguments, behind which fexit finds what it returned.
    arity: Option<&'static str>,
    /// What it tells.
    pub adds: &'static str,
}

/// Every function.
pub const FUNCTIONS: [FunctionHook; COUNT] = [
    FunctionHook {
        function: Function::TimeWaitSegment,
        prototype: Prototype {
            function: "tcp_timewait_state_process",
            parameters: &["inet_timewait_sock", "sk_buff", "tcphdr"],
            returns: None,
        },
        name: "time_wait_segment",
        arity: None,
        adds: "why a time-wait minisocket ends before its time",
    },
    FunctionHook {
        function: Function::TimeWaitTimer,
        prototype: Prototype {
            function: "__inet_twsk_schedule",
            parameters: &["inet_timewait_sock"],
            returns: None,
        },
        name: "time_wait_timer",
        arity: None,
        adds: "the peer's FIN that reaches a time-wait minisocket, to the microsecond",
    },
    FunctionHook {
        function: Function::TimeWaitEnd,
        prototype: Prototype {
            function: "inet_twsk_kill",
            parameters: &["inet_timewait_sock"],
            returns: None,
        },
        name: "time_wait_end",
        arity: None,
        adds: "when TIME_WAIT ended",
    },
    FunctionHook {
        function: Function::Accept,
        prototype: Prototype { function: "inet_csk_accept", parameters: &["sock"], returns: Some("sock") },
        name: "accept",
        arity: Some("ACCEPT_ARITY"),
        adds: "which process accepts a connection, and how long it lay in the accept queue",
    },
    FunctionHook {
        function: Function::Cookie,
        prototype: Prototype {
            function: "tcp_get_cookie_sock",
            parameters: &["sock", "sk_buff", "request_sock"],
            returns: Some("sock"),
        },
        name: "cookie",
        arity: Some("COOKIE_ARITY"),
        adds: "connections whose SYN-ACK carried a SYN cookie",
    },
];

/// How a function is hooked, the cheapest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FunctionTier {
    /// fentry or fexit: a trampoline, and typed arguments.
    Fentry,
    /// kprobe or kretprobe: a breakpoint or ftrace, and the registers.
    Kprobe,
}

impl FunctionTier {
    const ALL: [Self; 2] = [Self::Fentry, Self::Kprobe];

    /// What to try, the cheapest first. Who asks for perf tracepoints gets no typed programs.
    const fn all(mode: AttachMode) -> &'static [Self] {
        match mode {
            AttachMode::TpBtf => &Self::ALL,
            AttachMode::Tracepoint => &[Self::Kprobe],
        }
    }

    /// Its name in libbpf's sections.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fentry => "fentry",
            Self::Kprobe => "kprobe",
        }
    }
}

/// What became of one function.
#[derive(Debug)]
pub struct FunctionProbe {
    /// Which one.
    pub hook: &'static FunctionHook,
    /// How it is attached, or why the kernel refused each tier.
    pub attached: Result<FunctionTier, Refusal>,
}

/// Why a function is not hooked.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It is not what the programs expect.
    #[error("{0}")]
    Prototype(PrototypeError),
    /// The kernel refused every tier.
    #[error("{}", list(.0))]
    Tiers(Vec<(FunctionTier, HookError)>),
}

fn list(refusals: &[(FunctionTier, HookError)]) -> String {
    let texts = refusals.iter().map(|(tier, reason)| format!("{}: {reason}", tier.as_str()));
    texts.collect::<Vec<_>>().join("; ")
}

/// The hooked functions. Dropping it detaches them.
pub struct FunctionProbes {
    /// Each function, hooked or not.
    pub probes: Vec<FunctionProbe>,
    ebpf: Ebpf,
}

impl FunctionProbes {
    /// Hooks every function that can be.
    ///
    /// # Errors
    /// When the kernel refuses the object as a whole.
    pub fn attach(kernel: &Kernel) -> Result<Self, LoadError> {
        let (arities, offsets): (Arities, Layout) = (Arities::read(kernel), kernel.layout()?);
        let mut loader = EbpfLoader::new();
        loader
            .btf(Some(kernel.loader_btf()))
            .override_global(layout::SYMBOL, &offsets, true)
            .map_max_entries("RECORDS", 4096)
            .map_max_entries("CONNECTIONS", 1);
        arities.tell(&mut loader);
        let mut ebpf = loader.load(OBJECT)?;
        let probes = attach(&mut ebpf, kernel, AttachMode::TpBtf, &arities);
        Ok(Self { probes, ebpf })
    }

    /// How often each was hit, by the code of [`Function`].
    ///
    /// # Errors
    /// When the map cannot be read, which no kernel is known to do.
    pub fn hits(&self) -> Result<[u64; COUNT], MapError> {
        let map = self.ebpf.map(MAP).ok_or(MapError::InvalidName { name: MAP.to_owned() })?;
        let mut sums = [0; COUNT];
        for cpu in PerCpuArray::<_, [u64; COUNT]>::try_from(map)?.get(&0, 0)?.iter() {
            for (sum, hits) in sums.iter_mut().zip(cpu) {
                *sum += hits;
            }
        }
        Ok(sums)
    }
}

/// How many parameters each function has here, if it is the one that is expected.
pub(super) struct Arities([(Result<u32, PrototypeError>, u32); COUNT]);

impl Arities {
    pub(super) fn read(kernel: &Kernel) -> Self {
        Self(FUNCTIONS.each_ref().map(|hook| {
            let arity = kernel.arity_of(&hook.prototype);
            let number = arity.as_ref().copied().unwrap_or(0);
            (arity, number)
        }))
    }

    /// Sets the globals of the programs that read what a function returned.
    pub(super) fn tell<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        for (hook, (_, number)) in FUNCTIONS.iter().zip(&self.0) {
            if let Some(global) = hook.arity {
                loader.override_global(global, number, true);
            }
        }
    }
}

/// Hooks every function that can be, in an object that was loaded with these numbers of parameters.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    kernel: &Kernel,
    mode: AttachMode,
    arities: &Arities,
) -> Vec<FunctionProbe> {
    let probes: Vec<_> = FUNCTIONS
        .iter()
        .zip(&arities.0)
        .map(|(hook, (arity, _))| {
            let attached = match arity {
                Err(reason) => Err(Refusal::Prototype(reason.clone())),
                Ok(_) => hook.attach(ebpf, kernel, mode),
            };
            FunctionProbe { hook, attached }
        })
        .collect();
    let hooked: Vec<_> = probes
        .iter()
        .filter_map(|probe| {
            let tier = probe.attached.as_ref().ok()?;
            Some(format!("{} ({})", probe.hook.prototype.function, tier.as_str()))
        })
        .collect();
    if !hooked.is_empty() {
        tracing::info!("hooked kernel functions: {}", hooked.join(", "));
    }
    if probes.iter().any(|probe| probe.hook.function == Function::Cookie && probe.attached.is_ok())
        && let Err(error) = tell_cookies(ebpf)
    {
        tracing::debug!(%error, "connections without SYN cookies are not told from others");
    }
    probes
}

/// From now on, a connection that no SYN cookie was seen to make is none's.
fn tell_cookies(ebpf: &mut Ebpf) -> Result<(), MapError> {
    let name = "TELLS_COOKIES";
    let map = ebpf.map_mut(name).ok_or(MapError::InvalidName { name: name.to_owned() })?;
    Array::<_, u32>::try_from(map)?.set(0, 1, 0)
}

impl FunctionHook {
    fn attach(&self, ebpf: &mut Ebpf, kernel: &Kernel, mode: AttachMode) -> Result<FunctionTier, Refusal> {
        let mut refusals = Vec::new();
        for &tier in FunctionTier::all(mode) {
            match self.attach_by(tier, ebpf, kernel) {
                Ok(()) => return Ok(tier),
                Err(reason) => refusals.push((tier, reason)),
            }
        }
        Err(Refusal::Tiers(refusals))
    }

    fn attach_by(&self, tier: FunctionTier, ebpf: &mut Ebpf, kernel: &Kernel) -> Result<(), HookError> {
        let name = format!("{}_{}", self.name, tier.as_str());
        let (function, btf) = (self.prototype.function, kernel.loader_btf());
        match ebpf.program_mut(&name).ok_or(HookError::NoProgram)? {
            Program::FEntry(program) => {
                load_program(|| program.load(function, btf)).and_then(|()| program.attach().map(drop))
            }
            Program::FExit(program) => {
                load_program(|| program.load(function, btf)).and_then(|()| program.attach().map(drop))
            }
            Program::KProbe(program) => {
                load_program(|| program.load()).and_then(|()| program.attach(function, 0).map(drop))
            }
            _ => return Err(HookError::OtherType),
        }
        .map_err(|error| HookError::refused(&name, error))
    }
}
