//! Kernel functions that are hooked for what no tracepoint tells: which, by what prototype, and how.
//!
//! A function is no interface of the kernel: its prototype is compared with the one that a program relies on
//! before anything is attached, and what cannot be attached costs only what it alone tells. Nothing uses them
//! yet but
//! `handshake check`, which attaches them and shows that they fire.

use aya::{
    Ebpf, EbpfLoader,
    maps::{MapError, PerCpuArray},
    programs::Program,
};
use handshake_common::{
    Layout,
    function::{COUNT, Function, MAP},
    layout,
};

use super::{
    attach::OBJECT,
    error::{HookError, LoadError},
    kernel::Kernel,
    load::load as load_program,
};
use crate::kernel::btf::{Prototype, PrototypeError};

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
            parameters: &["inet_timewait_sock", "sk_buff"],
            returns: None,
        },
        name: "time_wait_segment",
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
        let arities = FUNCTIONS.each_ref().map(|hook| kernel.arity_of(&hook.prototype));
        let of = |arity: &Result<u32, PrototypeError>| arity.as_ref().copied().unwrap_or(0);
        let (numbers, offsets): ([u32; COUNT], Layout) = (arities.each_ref().map(of), kernel.layout()?);
        let mut loader = EbpfLoader::new();
        loader
            .btf(Some(kernel.loader_btf()))
            .override_global(layout::SYMBOL, &offsets, true)
            .map_max_entries("RECORDS", 4096)
            .map_max_entries("CONNECTIONS", 1);
        for (hook, arity) in FUNCTIONS.iter().zip(&numbers) {
            if let Some(global) = hook.arity {
                loader.override_global(global, arity, true);
            }
        }
        let mut ebpf = loader.load(OBJECT)?;
        let mut probes = Vec::with_capacity(COUNT);
        for (hook, arity) in FUNCTIONS.iter().zip(arities) {
            let attached = match arity {
                Err(reason) => Err(Refusal::Prototype(reason)),
                Ok(_) => hook.attach(&mut ebpf, kernel),
            };
            probes.push(FunctionProbe { hook, attached });
        }
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

impl FunctionHook {
    fn attach(&self, ebpf: &mut Ebpf, kernel: &Kernel) -> Result<FunctionTier, Refusal> {
        let mut refusals = Vec::new();
        for tier in FunctionTier::ALL {
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
