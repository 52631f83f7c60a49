//! The report, in the words of docs/json-schema.md. What is absent could not be looked at.

use handshake_common::Library;
use serde::Serialize;

use crate::{kernel::probe::plan::Attach, untrusted::Untrusted};

/// Version of the schema; it changes when a key changes its meaning, not when one is added.
pub const SCHEMA: u32 = 1;

/// All that `handshake check` found.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Of this program.
    pub version: &'static str,
    /// `handshake trace` would work, run by the same user.
    pub works: bool,
    /// Why it would not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What runs.
    pub kernel: Kernel,
    /// Who asks.
    pub privileges: Privileges,
    /// Where it runs.
    pub namespaces: Vec<Namespace>,
    /// The hooks of this version.
    pub probes: Probes,
    /// The TLS libraries in use, and those in the system's own places.
    pub tls_libraries: Vec<TlsLibrary>,
    /// What this host does not offer to the search for them.
    pub tls_shortfalls: Vec<String>,
    /// Ways of hooking that this version does not need.
    pub tiers: Vec<Tier>,
    /// Inode of the network namespace that the sysctls belong to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netns: Option<u64>,
    /// The settings that decide handshakes.
    pub sysctls: Vec<Sysctl>,
}

/// What became of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Tried, and it worked.
    Available,
    /// Tried, or asked of the kernel's own description, and it does not.
    Refused,
    /// Nobody tried.
    NotTested,
}

/// An attempt, and why it did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// See there.
    pub state: State,
    /// Absent when available.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Finding {
    /// It worked.
    pub const AVAILABLE: Self = Self { state: State::Available, reason: None };

    /// It does not.
    pub fn refused(reason: impl Into<String>) -> Self {
        Self { state: State::Refused, reason: Some(reason.into()) }
    }

    /// Nobody tried.
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
    /// Whether it describes its own types.
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
    /// That mount shows the host's whole hierarchy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup2_is_root: Option<bool>,
}

/// tracefs, which only perf tracepoints need.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Tracefs {
    /// Where it is mounted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mount: Option<Untrusted>,
    /// This user can read it.
    pub readable: bool,
}

/// One namespace of this process.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Namespace {
    /// As in `/proc/PID/ns`.
    pub name: &'static str,
    /// It is the host's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initial: Option<bool>,
    /// What is not seen from here, and what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost: Option<String>,
}

/// What the user may do.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Privileges {
    /// Effective user id.
    pub uid: u32,
    /// The user ids are the host's own: capabilities count for eBPF only there.
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
    /// Effective in this process.
    pub held: bool,
    /// What it is for.
    pub needed_for: &'static str,
}

/// How this version would attach.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Probes {
    /// The way that `handshake trace` would take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub way: Option<Attach>,
    /// Every way, as a whole.
    pub ways: Vec<AttachMode>,
    /// Every hook.
    pub hooks: Vec<HookReport>,
}

/// One way of attaching.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct AttachMode {
    /// Which one.
    pub way: Attach,
    /// Whether everything required attaches this way.
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
    /// In the order of [`Probes::ways`].
    pub ways: Vec<AttachMode>,
}

/// One file of a TLS library.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct TlsLibrary {
    /// As a process sees it.
    pub path: Untrusted,
    /// Which library.
    pub library: Library,
    /// In its own words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<Untrusted>,
    /// Its handshakes are seen.
    pub covered: bool,
    /// How many processes have it mapped.
    pub processes: usize,
    /// What of them is not seen, and why.
    pub gaps: Vec<String>,
}

/// A way of hooking that later versions will use.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Tier {
    /// As libbpf names its sections.
    pub name: &'static str,
    /// Whether an empty program attaches.
    #[serde(flatten)]
    pub finding: Finding,
    /// What it can tell that the tracepoints cannot.
    pub adds: &'static str,
}

/// One setting.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Sysctl {
    /// As `sysctl` names it.
    pub name: &'static str,
    /// As the kernel writes it; absent where this kernel or this namespace has no such setting.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// The bits that are set, where it is a set of bits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flags: Option<Vec<&'static str>>,
    /// What it does to handshakes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub means: Option<String>,
}
