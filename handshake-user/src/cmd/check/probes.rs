//! Tries the hooks of this version: loads and attaches them, and detaches them at once.

use handshake_common::histograms::Bounds;

use super::report::{Finding, HookReport, ModeReport, Probes, State};
use crate::{
    kernel::probe::{
        self, Kernel, LoadError,
        hook::{HOOKS, Hook, TLS_WIRE},
        plan::Planned,
    },
    settings::{Attach, AttachMode, ProbeSettings, Switch, TlsWire},
};

/// Why something was not tried.
pub(super) const NEEDS_ROOT: &str = "trying it needs root";

/// In the order in which `trace` tries them.
const MODES: [AttachMode; 2] = [AttachMode::TpBtf, AttachMode::Tracepoint];

/// How to attach for a moment: one page of records, which nobody reads.
pub(super) fn settings(mode: AttachMode, tls_wire: TlsWire, tls_libraries: Switch) -> ProbeSettings {
    ProbeSettings { attach: Attach::Only(mode), ring_kib: 4, max_connections: 1, tls_wire, tls_libraries }
}

/// Tries every attach mode; returns as well why tracing would not work.
pub(super) fn look(kernel: &Kernel, tracefs_readable: bool) -> (Probes, Option<String>) {
    let mut probes = empty();
    let mut reason = None;
    for mode in MODES {
        let mut plan = kernel.plan(mode);
        if mode == AttachMode::Tracepoint && !tracefs_readable {
            assume_unreadable(&mut plan);
        }
        plan.push(Planned { hook: &TLS_WIRE, offsets: Ok(Vec::new()) });
        let settings = settings(mode, TlsWire::On, Switch::Off);
        let attempt = probe::attach(kernel, &settings, &Bounds::NONE, |_, _, _| ())
            .map(|attached| attached.probes.hooks);
        let (whole, hooks) = judge(plan, &attempt);
        if probes.mode.is_none() && whole.state == State::Available {
            probes.mode = Some(mode);
        }
        if let Err(error) = &attempt {
            reason.get_or_insert_with(|| error.to_string());
        }
        probes.modes.push(ModeReport { mode, finding: whole });
        for (hook, finding) in probes.hooks.iter_mut().zip(hooks) {
            hook.modes.push(ModeReport { mode, finding });
        }
    }
    let reason = if probes.mode.is_some() { None } else { reason };
    (probes, reason)
}

/// The report on a kernel into which nothing can be loaded.
pub(super) fn not_loadable(reason: &str) -> Probes {
    let mut probes = empty();
    for mode in MODES {
        probes.modes.push(ModeReport { mode, finding: Finding::refused(reason) });
        for hook in &mut probes.hooks {
            hook.modes.push(ModeReport {
                mode,
                finding: Finding::not_tested("nothing can be loaded into this kernel"),
            });
        }
    }
    probes
}

/// The tracepoints, and the wire view.
fn hooks() -> impl Iterator<Item = &'static Hook> {
    HOOKS.iter().chain([&TLS_WIRE])
}

fn empty() -> Probes {
    let hooks = hooks()
        .map(|hook| HookReport {
            tracepoint: format!("{}/{}", hook.category, hook.name),
            required: hook.required,
            lost_without: hook.lost_without,
            modes: Vec::new(),
        })
        .collect();
    Probes { mode: None, modes: Vec::new(), hooks }
}

/// Whether the kernel lacks a tracepoint is unknown when this user cannot look it up.
fn assume_unreadable(plan: &mut [Planned]) {
    for planned in plan {
        if planned.offsets.is_err() {
            planned.offsets = Ok(Vec::new());
        }
    }
}

/// What an attempt shows about the mode as a whole and about each hook, in the order of the plan.
fn judge(plan: Vec<Planned>, attempt: &Result<Vec<probe::Attached>, LoadError>) -> (Finding, Vec<Finding>) {
    let whole = match attempt {
        Ok(_) => Finding::AVAILABLE,
        Err(LoadError::NotPermitted) => Finding::not_tested(NEEDS_ROOT),
        Err(error) => Finding::refused(error.to_string()),
    };
    let hooks = plan
        .into_iter()
        .map(|planned| match (attempt, planned.offsets) {
            (Ok(attached), _) => {
                match attached.iter().find(|attached| attached.hook == planned.hook).map(|it| &it.missing) {
                    Some(None) => Finding::AVAILABLE,
                    Some(Some(reason)) => Finding::refused(reason.to_string()),
                    None => Finding::not_tested("the attempt did not include it"),
                }
            }
            (_, Err(reason)) => Finding::refused(reason.to_string()),
            (Err(LoadError::Hook { hook, reason }), _) if *hook == planned.hook.name => {
                Finding::refused(reason.to_string())
            }
            (Err(LoadError::NotPermitted), _) => Finding::not_tested(NEEDS_ROOT),
            (Err(_), _) => Finding::not_tested("another hook, or the whole object, was refused first"),
        })
        .collect();
    (whole, hooks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::probe::HookError;

    fn planned() -> Vec<Planned> {
        HOOKS.iter().map(|hook| Planned { hook, offsets: Ok(Vec::new()) }).collect()
    }

    #[test]
    fn without_root_nothing_counts_as_tested() {
        let (whole, hooks) = judge(planned(), &Err(LoadError::NotPermitted));
        assert_eq!(whole.state, State::NotTested);
        assert!(hooks.iter().all(|hook| hook.state == State::NotTested));
    }

    #[test]
    fn refused_required_hook_refuses_the_mode_but_no_other_hook() {
        let error = LoadError::Hook { hook: "tcp_destroy_sock", reason: HookError::NoProgram };
        let (whole, hooks) = judge(planned(), &Err(error));
        assert_eq!(whole.state, State::Refused);
        for (hook, finding) in HOOKS.iter().zip(hooks) {
            let expected = if hook.name == "tcp_destroy_sock" { State::Refused } else { State::NotTested };
            assert_eq!(finding.state, expected, "{}", hook.name);
        }
    }

    #[test]
    fn missing_optional_hook_has_a_reason() {
        let attached = HOOKS
            .iter()
            .map(|hook| probe::Attached {
                hook,
                missing: (hook.name == "tcp_send_reset").then_some(HookError::OtherType),
            })
            .collect();
        let (whole, hooks) = judge(planned(), &Ok(attached));
        assert_eq!(whole, Finding::AVAILABLE);
        let refused: Vec<_> = hooks.iter().filter(|hook| hook.state == State::Refused).collect();
        assert_eq!(refused, [&Finding::refused(HookError::OtherType.to_string())]);
    }
}
