//! The report as text for people.

use super::report::{
    Finding, FunctionReport, HookReport, Kernel, Namespace, Privileges, Probes, Report, State, Sysctl, Tier,
    TlsLibrary,
};
use crate::{
    kernel::{btf, probe::hook::CGROUP_SKB},
    settings::AttachMode,
    untrusted::escape,
};

/// Longest name that widens the column of names, characters.
const WIDEST: usize = 64;
/// Longest text that is shown uncut, characters: untrusted paths are cut earlier, the kernel's reasons are
/// not.
const MAX_LEN: usize = 1024;

/// An entry: a mark, a name and a text, and further lines below. [`section`], which alone writes lines,
/// escapes the untrusted text in it.
struct Line {
    mark: &'static str,
    name: String,
    text: String,
    more: Vec<String>,
}

const YES: &str = "ok";
const NO: &str = "no";
const UNKNOWN: &str = "?";
/// Neither good nor bad.
const PLAIN: &str = "";

fn line(mark: &'static str, name: impl Into<String>, text: impl Into<String>) -> Line {
    Line { mark, name: name.into(), text: text.into(), more: Vec::new() }
}

/// The whole report.
pub(super) fn render(report: &Report) -> String {
    let Report {
        schema: _,
        version,
        works,
        reason,
        kernel,
        privileges,
        namespaces,
        probes,
        tls_libraries,
        tls_shortfalls,
        tiers,
        functions,
        netns,
        sysctls,
    } = report;
    let mode = probes.mode.map_or("", AttachMode::as_str);
    let verdict = match reason {
        Some(reason) => format!("tracing does not work: {}", escape(reason, MAX_LEN)),
        None if *works => format!("tracing works, by {mode}"),
        None => "tracing does not work".to_owned(),
    };
    let namespace = netns.map_or_else(String::new, |inode| format!(" (of network namespace {inode})"));
    [
        format!("handshake {version} on Linux {}, {}\n{verdict}\n", kernel.release, kernel.arch),
        section("Kernel", &kernel_lines(kernel)),
        section("Privileges", &privilege_lines(privileges)),
        section("Namespaces", &namespaces.iter().map(namespace_line).collect::<Vec<_>>()),
        section(
            if probes.mode.is_some() { "Probes (attached, and detached again)" } else { "Probes" },
            &probe_lines(kernel, probes),
        ),
        section("TLS libraries", &library_lines(tls_libraries, tls_shortfalls)),
        section(
            "Not used by this version (what only these can see is unknown)",
            &tiers.iter().map(tier_line).chain(functions.iter().map(function_line)).collect::<Vec<_>>(),
        ),
        section(
            &format!("Sysctls that govern handshakes{namespace}"),
            &sysctls.iter().map(sysctl_line).collect::<Vec<_>>(),
        ),
    ]
    .join("\n")
}

fn section(title: &str, lines: &[Line]) -> String {
    let names: Vec<_> = lines.iter().map(|line| escape(&line.name, MAX_LEN)).collect();
    let width =
        names.iter().map(|name| name.chars().count()).filter(|&width| width <= WIDEST).max().unwrap_or(0);
    let mut text = format!("{title}\n");
    for (Line { mark, name: _, text: said, more }, name) in lines.iter().zip(names) {
        text.push_str(format!("  {mark:<2}  {name:<width$}  {}", escape(said, MAX_LEN)).trim_end());
        text.push('\n');
        for more in more {
            text.extend(["          ", &escape(more, MAX_LEN), "\n"]);
        }
    }
    text
}

fn library_lines(libraries: &[TlsLibrary], shortfalls: &[String]) -> Vec<Line> {
    let row = |library: &TlsLibrary| {
        let TlsLibrary { path, library, version, covered, processes, gaps } = library;
        let version = version.as_ref().map_or_else(|| library.to_string(), ToString::to_string);
        let users = match processes {
            0 => "in no process now".to_owned(),
            1 => "in 1 process".to_owned(),
            count => format!("in {count} processes"),
        };
        let probed = if *covered { "" } else { ": not probed" };
        Line {
            more: gaps.clone(),
            ..line(if *covered { YES } else { NO }, path.to_string(), format!("{version}, {users}{probed}"))
        }
    };
    let mut lines: Vec<Line> = libraries.iter().map(row).collect();
    if lines.is_empty() && shortfalls.is_empty() {
        lines.push(line(PLAIN, "none", "no process has one mapped"));
    }
    lines.extend(shortfalls.iter().map(|shortfall| line(UNKNOWN, "search", shortfall)));
    lines
}

fn kernel_lines(kernel: &Kernel) -> Vec<Line> {
    let Kernel { release: _, arch: _, btf, members, missing_members, tracefs, cgroup2, cgroup2_is_root } =
        kernel;
    let types = match (&btf.reason, members) {
        (Some(reason), _) => line(NO, "type information", reason),
        (None, Some(count)) if missing_members.is_empty() => line(
            YES,
            "type information",
            format!("{}, with all {count} members that the programs read", btf::PATH),
        ),
        (None, _) => line(NO, "type information", format!("it lacks {}", missing_members.join(", "))),
    };
    let tracefs = match (&tracefs.mount, tracefs.readable) {
        (Some(mount), true) => line(YES, "tracefs", mount.to_string()),
        (Some(mount), false) => line(UNKNOWN, "tracefs", format!("{mount}, which this user cannot read")),
        (None, _) => Line {
            more: vec!["perf tracepoints need it: mount -t tracefs tracefs /sys/kernel/tracing".to_owned()],
            ..line(NO, "tracefs", "not mounted")
        },
    };
    let cgroup2 = match cgroup2 {
        Some(mount) if *cgroup2_is_root == Some(false) => {
            line(NO, "cgroup v2", format!("{mount}, which is not the host's root"))
        }
        Some(mount) => line(YES, "cgroup v2", mount.to_string()),
        None => Line {
            more: vec!["without it: the cgroup of a process is unknown".to_owned()],
            ..line(NO, "cgroup v2", "not mounted")
        },
    };
    vec![types, tracefs, cgroup2]
}

fn namespace_line(namespace: &Namespace) -> Line {
    let Namespace { name, initial, lost } = namespace;
    let (mark, text) = match (initial, lost) {
        (Some(true), _) => (YES, "the host's"),
        (Some(false), None) => (YES, "not the host's, but nothing is out of sight"),
        (Some(false), Some(_)) => (NO, "not the host's"),
        (None, _) => (UNKNOWN, "whether it is the host's is unknown"),
    };
    let mark = if lost.is_some() { NO } else { mark };
    Line { more: lost.iter().cloned().collect(), ..line(mark, *name, text) }
}

fn privilege_lines(privileges: &Privileges) -> Vec<Line> {
    let Privileges { uid, initial_user_namespace: _, capabilities, unprivileged_bpf_disabled, lockdown } =
        privileges;
    let mut lines = vec![line(PLAIN, "user id", uid.to_string())];
    match capabilities {
        Some(capabilities) => lines.extend(
            capabilities.iter().map(|it| line(if it.held { YES } else { NO }, it.name, it.needed_for)),
        ),
        None => lines.push(line(UNKNOWN, "capabilities", "the kernel does not report them")),
    }
    lines.push(match unprivileged_bpf_disabled {
        Some(value) => {
            let means = match value {
                0 => "other users may load simple programs, but none for tracing",
                1 => "eBPF is for privileged users, until the next boot",
                _ => "eBPF is for privileged users",
            };
            line(PLAIN, "unprivileged_bpf_disabled", format!("{value}: {means}"))
        }
        None => line(PLAIN, "unprivileged_bpf_disabled", "absent"),
    });
    lines.push(match lockdown.as_deref() {
        Some("confidentiality") => {
            line(NO, "lockdown", "confidentiality: eBPF may not read the kernel's memory")
        }
        Some(mode) => line(PLAIN, "lockdown", mode),
        None => line(PLAIN, "lockdown", "cannot be read: not built in, or securityfs is not mounted"),
    });
    lines
}

fn mark(finding: &Finding) -> &'static str {
    match finding.state {
        State::Available => YES,
        State::Refused => NO,
        State::NotTested => UNKNOWN,
    }
}

fn said(finding: &Finding) -> String {
    let state = match finding.state {
        State::Available => "available",
        State::Refused => "refused",
        State::NotTested => "not tested",
    };
    match &finding.reason {
        Some(reason) => format!("{state}: {reason}"),
        None => state.to_owned(),
    }
}

fn probe_lines(kernel: &Kernel, probes: &Probes) -> Vec<Line> {
    let modes =
        probes.modes.iter().map(|mode| line(mark(&mode.finding), mode.mode.as_str(), said(&mode.finding)));
    modes.chain(probes.hooks.iter().map(|hook| hook_line(kernel, probes, hook))).collect()
}

/// Describes a hook in the mode that would be used, otherwise in the first one.
fn hook_line(kernel: &Kernel, probes: &Probes, hook: &HookReport) -> Line {
    let chosen = hook.modes.iter().find(|it| Some(it.mode) == probes.mode).or(hook.modes.first());
    let Some(chosen) = chosen else { return line(UNKNOWN, &hook.tracepoint, "not tested") };
    let state = chosen.finding.state;
    let text = match state {
        // The same in both modes.
        State::Available if hook.tracepoint.starts_with(CGROUP_SKB) => match &kernel.cgroup2 {
            Some(mount) if kernel.cgroup2_is_root == Some(false) => {
                format!("on {mount}, and only for cgroups below it")
            }
            _ => "on the root of cgroup v2".to_owned(),
        },
        State::Available => format!("by {}", chosen.mode.as_str()),
        State::Refused | State::NotTested => format!("{} {}", chosen.mode.as_str(), said(&chosen.finding)),
    };
    let lost = (state != State::Available).then(|| format!("without it: {}", hook.lost_without));
    Line { more: lost.into_iter().collect(), ..line(mark(&chosen.finding), &hook.tracepoint, text) }
}

fn tier_line(tier: &Tier) -> Line {
    Line {
        more: vec![format!("adds: {}", tier.adds)],
        ..line(mark(&tier.finding), tier.name, said(&tier.finding))
    }
}

fn function_line(function: &FunctionReport) -> Line {
    let text = match (function.tier, function.hits) {
        (Some(tier), Some(hits)) => format!("by {}, ran {hits} times meanwhile", tier.as_str()),
        (Some(tier), None) => format!("by {}", tier.as_str()),
        (None, _) => said(&function.finding),
    };
    Line {
        more: vec![format!("adds: {}", function.adds)],
        ..line(mark(&function.finding), function.function, text)
    }
}

fn sysctl_line(sysctl: &Sysctl) -> Line {
    let text = match (&sysctl.value, &sysctl.flags) {
        (None, _) => "absent".to_owned(),
        (Some(value), Some(flags)) if !flags.is_empty() => format!("{value} ({})", flags.join(", ")),
        (Some(value), _) => value.clone(),
    };
    Line { more: sysctl.means.iter().cloned().collect(), ..line(PLAIN, sysctl.name, text) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cmd::check::report::{Capability, ModeReport, Tracefs},
        kernel::probe::{
            LoadError,
            function::FunctionTier,
            hook::{HOOKS, TLS_WIRE},
        },
        untrusted::{is_harmless, tests::HOSTILE},
    };

    fn report(findings: impl Fn(&str, AttachMode) -> Finding) -> Report {
        let modes = [AttachMode::TpBtf, AttachMode::Tracepoint];
        let mode = |name, mode| ModeReport { mode, finding: findings(name, mode) };
        Report {
            schema: 1,
            version: "0.1.0",
            works: true,
            reason: None,
            kernel: Kernel {
                release: "6.12.0".to_owned(),
                arch: "x86_64".to_owned(),
                btf: Finding::AVAILABLE,
                members: Some(41),
                missing_members: Vec::new(),
                tracefs: Tracefs { mount: Some("/sys/kernel/tracing".into()), readable: true },
                cgroup2: Some("/sys/fs/cgroup".into()),
                cgroup2_is_root: Some(true),
            },
            privileges: Privileges {
                uid: 0,
                initial_user_namespace: Some(true),
                capabilities: Some(vec![Capability {
                    name: "CAP_BPF",
                    held: true,
                    needed_for: "loading eBPF programs",
                }]),
                unprivileged_bpf_disabled: Some(2),
                lockdown: Some("none".to_owned()),
            },
            namespaces: ["cgroup", "pid", "net", "user"]
                .map(|name| Namespace { name, initial: Some(true), lost: None })
                .into(),
            probes: Probes {
                mode: Some(AttachMode::TpBtf),
                modes: modes.map(|it| mode("", it)).into(),
                hooks: HOOKS
                    .iter()
                    .chain([&TLS_WIRE])
                    .map(|hook| HookReport {
                        tracepoint: format!("{}/{}", hook.category, hook.name),
                        required: hook.required,
                        lost_without: hook.lost_without,
                        modes: modes.map(|it| mode(hook.name, it)).into(),
                    })
                    .collect(),
            },
            tls_libraries: vec![
                TlsLibrary {
                    path: "/usr/lib/x86_64-linux-gnu/libssl.so.3".into(),
                    library: handshake_common::Library::OpenSsl,
                    version: Some("OpenSSL 3.0.19 27 Jan 2026".into()),
                    covered: true,
                    processes: 12,
                    gaps: Vec::new(),
                },
                TlsLibrary {
                    path: "/opt/app/server".into(),
                    library: handshake_common::Library::Go,
                    version: None,
                    covered: false,
                    processes: 1,
                    gaps: vec!["the description of crypto/tls.Conn: handshakes of this program".to_owned()],
                },
            ],
            tls_shortfalls: Vec::new(),
            tiers: vec![Tier {
                name: "fentry",
                finding: Finding::refused("Operation not permitted"),
                adds: "TIME_WAIT",
            }],
            functions: vec![
                FunctionReport {
                    function: "inet_csk_accept",
                    tier: Some(FunctionTier::Kprobe),
                    finding: Finding::AVAILABLE,
                    hits: Some(2),
                    adds: "accept",
                },
                FunctionReport {
                    function: "inet_twsk_kill",
                    tier: None,
                    finding: Finding::refused("this kernel has no such function"),
                    hits: None,
                    adds: "the end of TIME_WAIT",
                },
            ],
            netns: Some(4_026_531_840),
            sysctls: vec![
                Sysctl {
                    name: "net.ipv4.tcp_fastopen",
                    value: Some("1".to_owned()),
                    flags: Some(vec!["client"]),
                    means: Some("clients may".to_owned()),
                },
                Sysctl { name: "net.ipv4.tcp_ecn", value: None, flags: None, means: None },
            ],
        }
    }

    #[test]
    fn a_host_that_can_be_traced() {
        let report = report(|hook, way| match (hook, way) {
            ("tcp_send_reset", AttachMode::TpBtf) => Finding::refused("the kernel's BTF does not know it"),
            _ => Finding::AVAILABLE,
        });
        insta::assert_snapshot!(render(&report));
    }

    #[test]
    fn a_user_who_may_not() {
        let mut report = report(|_, _| Finding::not_tested("trying it needs root"));
        let reason = LoadError::NotPermitted.to_string();
        (report.works, report.reason, report.probes.mode) = (false, Some(reason), None);
        report.kernel.tracefs.readable = false;
        report.privileges.uid = 1000;
        report.privileges.lockdown = None;
        for capability in report.privileges.capabilities.iter_mut().flatten() {
            capability.held = false;
        }
        insta::assert_snapshot!(render(&report));
    }

    #[test]
    fn a_kernel_without_type_information() {
        let mut report = report(|_, _| Finding::not_tested("nothing can be loaded into this kernel"));
        (report.works, report.reason, report.probes.mode) = (false, Some("no types".to_owned()), None);
        report.kernel.btf = Finding::refused("/sys/kernel/btf/vmlinux: No such file or directory");
        report.kernel.members = None;
        report.kernel.tracefs = Tracefs { mount: None, readable: false };
        (report.kernel.cgroup2, report.kernel.cgroup2_is_root) = (None, None);
        insta::assert_snapshot!(render(&report));
    }

    #[test]
    fn a_container() {
        let mut report = report(|_, _| Finding::AVAILABLE);
        let own = |namespace: &mut Namespace| {
            namespace.initial = Some(false);
            namespace.lost = Some(format!("what is lost without the host's {}", namespace.name));
        };
        report.namespaces.iter_mut().for_each(own);
        (report.namespaces[2].initial, report.namespaces[2].lost) = (None, None);
        report.kernel.cgroup2_is_root = Some(false);
        insta::assert_snapshot!(render(&report));
    }

    #[test]
    fn untrusted_names_cannot_forge_a_line() {
        let mut report = report(|_, _| Finding::refused(HOSTILE));
        let lines = render(&report).lines().count();
        let library = &mut report.tls_libraries[0];
        library.path = HOSTILE.into();
        library.version = Some(HOSTILE.into());
        report.tls_libraries[1].gaps = vec![HOSTILE.to_owned()];
        let text = render(&report);
        assert!(text.chars().all(|c| c == '\n' || is_harmless(c)), "{text:?}");
        assert_eq!(text.lines().count(), lines);
        report.tls_libraries[0].path = "\u{9b}".repeat(4096).into();
        assert!(render(&report).lines().all(|line| line.chars().count() < 2 * MAX_LEN));
    }

    #[test]
    fn keys_of_the_json_stay() {
        let report = report(|_, way| match way {
            AttachMode::TpBtf => Finding::AVAILABLE,
            AttachMode::Tracepoint => Finding::refused("why"),
        });
        insta::assert_snapshot!(serde_json::to_string_pretty(&report).unwrap());
    }
}
