//! The report, whose JSON docs/json-schema.md describes. What is absent could not be examined.

use handshake_common::Library;
use serde::Serialize;

use crate::{kernel::probe::function::FunctionTier, settings::AttachMode, untrusted::Untrusted};

/// Version of the schema; it changes when a key changes its meaning, not when one is added.
pub(super) const SCHEMA: u32 = 1;

/// Everything that `handshake check` found.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Always [`SCHEMA`].
    pub schema: u32,
    /// This program's version.
    pub version: &'static str,
    /// Whether `handshake trace` would work for this user.
    pub works: bool,
    /// Why it would not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The running kernel.
    pub kernel: Kernel,
    /// What this user may do.
    pub privileges: Privileges,
    /// The namespaces that this process is in.
    pub namespaces: Vec<Namespace>,
    /// The hooks of this version.
    pub probes: Probes,
    /// The TLS libraries in use, and those in standard places.
    pub tls_libraries: Vec<TlsLibrary>,
    /// What keeps some of them from being found.
    pub tls_shortfalls: Vec<String>,
    /// Program types that this version does not use.
    pub tiers: Vec<Tier>,
    /// Kernel functions that can be hooked.
    pub functions: Vec<FunctionReport>,
    /// Inode of the network namespace that the sysctls belong to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netns: Option<u64>,
    /// The sysctls that govern handshakes.
    pub sysctls: Vec<Sysctl>,
}

/// The outcome of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Tried, and it worked.
    Available,
    /// It does not work: tried, or known from the kernel's type information.
    Refused,
    /// Not tried.
    NotTested,
}

/// An attempt, and why it did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The outcome.
    pub state: State,
    /// Absent when available.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Finding {
    /// It worked.
    pub const AVAILABLE: Self = Self { state: State::Available, reason: None };

    /// It does not work.
    pub fn refused(reason: impl Into<String>) -> Self {
        Self { state: State::Refused, reason: Some(reason.into()) }
    }

    /// Not tried.
    pub fn not_tested(reason: impl Into<String>) -> Self {
        Self { state: State::NotTested, reason: Some(reason.into()) }
    }
}

/// The running kernel.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Kernel {
    /// `uname -r`.
    pub release: String,
    /// `uname -m`.
    pub arch: String,
    /// Whether it has type information.
    pub btf: Finding,
    /// How many structure members the programs read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub members: Option<usize>,
    /// Those that this kernel lacks, as `structure.member`.
    pub missing_members: Vec<String>,
    /// Where perf tracepoints are described.
    pub tracefs: Tracefs,
    /// Where cgroup v2 is mounted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup2: Option<Untrusted>,
    /// Whether that mount shows the host's whole hierarchy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup2_is_root: Option<bool>,
}

/// tracefs, which only perf tracepoints need.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Tracefs {
    /// Where it is mounted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mount: Option<Untrusted>,
    /// Whether this user can read it.
    pub readable: bool,
}

/// One namespace of this process.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Namespace {
    /// As in `/proc/PID/ns`.
    pub name: &'static str,
    /// Whether it is the host's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initial: Option<bool>,
    /// What is out of sight because it is not, and what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost: Option<String>,
}

/// What the user may do.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Privileges {
    /// Effective user id.
    pub uid: u32,
    /// Whether this is the initial user namespace: only there do capabilities count for eBPF.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initial_user_namespace: Option<bool>,
    /// The effective capabilities that matter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Vec<Capability>>,
    /// `kernel.unprivileged_bpf_disabled`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unprivileged_bpf_disabled: Option<i64>,
    /// The chosen mode of the lockdown security module.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lockdown: Option<String>,
}

/// One capability.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Capability {
    /// Such as `CAP_BPF`.
    pub name: &'static str,
    /// Whether it is effective in this process.
    pub held: bool,
    /// What it is for.
    pub needed_for: &'static str,
}

/// What this version would attach.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Probes {
    /// The attach mode that `handshake trace` would use.
    #[serde(rename = "way", skip_serializing_if = "Option::is_none")]
    pub mode: Option<AttachMode>,
    /// Every attach mode as a whole.
    #[serde(rename = "ways")]
    pub modes: Vec<ModeReport>,
    /// Every hook.
    pub hooks: Vec<HookReport>,
}

/// One attach mode.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct ModeReport {
    /// Which one.
    #[serde(rename = "way")]
    pub mode: AttachMode,
    /// Whether everything required attaches in this mode.
    #[serde(flatten)]
    pub finding: Finding,
}

/// One tracepoint.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct HookReport {
    /// As in `/sys/kernel/tracing/events`.
    pub tracepoint: String,
    /// Without it nothing can be measured.
    pub required: bool,
    /// What is unknown without it.
    pub lost_without: &'static str,
    /// In the order of [`Probes::modes`].
    #[serde(rename = "ways")]
    pub modes: Vec<ModeReport>,
}

/// One file of a TLS library.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct TlsLibrary {
    /// As a process sees it.
    pub path: Untrusted,
    /// Which library.
    pub library: Library,
    /// As it describes itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<Untrusted>,
    /// Whether its handshakes are seen.
    pub covered: bool,
    /// How many processes have it mapped.
    pub processes: usize,
    /// Which of them are not seen, and why.
    pub gaps: Vec<String>,
}

/// A program type that later versions will use.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Tier {
    /// Its name in libbpf's sections.
    pub name: &'static str,
    /// Whether an empty program attaches.
    #[serde(flatten)]
    pub finding: Finding,
    /// What it shows that the tracepoints do not.
    pub adds: &'static str,
}

/// A kernel function that is hooked for what no tracepoint tells.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct FunctionReport {
    /// Its name.
    pub function: &'static str,
    /// How it is hooked, if it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier: Option<FunctionTier>,
    /// Whether it is.
    #[serde(flatten)]
    pub finding: Finding,
    /// How often it ran meanwhile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hits: Option<u64>,
    /// What it tells.
    pub adds: &'static str,
}

/// One sysctl.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Sysctl {
    /// Its name.
    pub name: &'static str,
    /// As the kernel writes it; absent where this kernel or this namespace has no such setting.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// The bits that are set, where it is a set of bits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flags: Option<Vec<&'static str>>,
    /// What it means for handshakes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub means: Option<String>,
}
