//! Tries the hooks of this version: loads and attaches them, and lets go at once.

use super::report::{AttachMode, Finding, HookReport, Probes, State};
use crate::kernel::probe::{
    self, Kernel, LoadError, Settings, TlsWire,
    plan::{self, Attach, HOOKS, Planned},
    wire,
};

/// Why an attempt was not one.
pub(super) const NEEDS_ROOT: &str = "trying it needs root";

/// In the order that `trace` tries them.
const WAYS: [Attach; 2] = [Attach::TpBtf, Attach::Tracepoint];
/// Room for one page of records: nobody reads them.
pub(super) const RING_BYTES: u32 = 4096;

/// Tries every way; returns also why tracing would not work.
pub fn look(kernel: &Kernel, tracefs_readable: bool) -> (Probes, Option<String>) {
    let mut probes = empty();
    let mut reason = None;
    for way in WAYS {
        let mut plan = kernel.plan(way);
        if way == Attach::Tracepoint && !tracefs_readable {
            forget_unreadable(&mut plan);
        }
        plan.push(Planned { hook: &wire::HOOK, attach: Ok(Vec::new()) });
        let settings = Settings {
            attach: Some(way),
            ring_bytes: RING_BYTES,
            max_connections: 1,
            tls_wire: TlsWire::On,
            tls_libraries: false,
        };
        let attempt = probe::Probes::attach(kernel, &settings).map(|(probes, _ring)| probes.hooks);
        let (whole, hooks) = judge(plan, &attempt);
        if probes.way.is_none() && whole.state == State::Available {
            probes.way = Some(way);
        }
        if let Err(error) = &attempt {
            reason.get_or_insert_with(|| error.to_string());
        }
        probes.ways.push(AttachMode { way, finding: whole });
        for (hook, finding) in probes.hooks.iter_mut().zip(hooks) {
            hook.ways.push(AttachMode { way, finding });
        }
    }
    let reason = if probes.way.is_some() { None } else { reason };
    (probes, reason)
}

/// The hooks of a kernel that cannot be traced whatever they are.
pub fn without_a_kernel(reason: &str) -> Probes {
    let mut probes = empty();
    for way in WAYS {
        probes.ways.push(AttachMode { way, finding: Finding::refused(reason) });
        for hook in &mut probes.hooks {
            hook.ways.push(AttachMode {
                way,
                finding: Finding::not_tested("nothing can be loaded into this kernel"),
            });
        }
    }
    probes
}

/// The tracepoints, and the wire view.
fn hooks() -> impl Iterator<Item = &'static plan::Hook> {
    HOOKS.iter().chain([&wire::HOOK])
}

fn empty() -> Probes {
    let hooks = hooks()
        .map(|hook| HookReport {
            tracepoint: format!("{}/{}", hook.category, hook.name),
            required: hook.required,
            lost_without: hook.lost_without,
            ways: Vec::new(),
        })
        .collect();
    Probes { way: None, ways: Vec::new(), hooks }
}

/// A tracepoint that this user cannot look up is not one that the kernel lacks.
fn forget_unreadable(plan: &mut [Planned]) {
    for planned in plan {
        if planned.attach.is_err() {
            planned.attach = Ok(Vec::new());
        }
    }
}

/// What an attempt says of the way as a whole and of each hook, in the order of the plan.
fn judge(plan: Vec<Planned>, attempt: &Result<Vec<probe::Attached>, LoadError>) -> (Finding, Vec<Finding>) {
    let whole = match attempt {
        Ok(_) => Finding::AVAILABLE,
        Err(LoadError::NotPermitted) => Finding::not_tested(NEEDS_ROOT),
        Err(error) => Finding::refused(error.to_string()),
    };
    let hooks = plan
        .into_iter()
        .map(|planned| match (attempt, planned.attach) {
            (Ok(attached), _) => {
                match attached.iter().find(|attached| attached.hook == planned.hook).map(|it| &it.missing) {
                    Some(None) => Finding::AVAILABLE,
                    Some(Some(reason)) => Finding::refused(reason.clone()),
                    None => Finding::not_tested("the attempt left it out"),
                }
            }
            (_, Err(reason)) => Finding::refused(reason),
            (Err(LoadError::Hook { hook, reason }), _) if *hook == planned.hook.name => {
                Finding::refused(reason.clone())
            }
            (Err(LoadError::NotPermitted), _) => Finding::not_tested(NEEDS_ROOT),
            (Err(_), _) => Finding::not_tested("another hook, or the whole object, was refused before it"),
        })
        .collect();
    (whole, hooks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned() -> Vec<Planned> {
        HOOKS.iter().map(|hook| Planned { hook, attach: Ok(Vec::new()) }).collect()
    }

    #[test]
    fn without_root_nothing_is_guessed() {
        let (whole, hooks) = judge(planned(), &Err(LoadError::NotPermitted));
        assert_eq!(whole.state, State::NotTested);
        assert!(hooks.iter().all(|hook| hook.state == State::NotTested));
    }

    #[test]
    fn a_refused_hook_takes_the_way_with_it_but_says_nothing_of_the_others() {
        let error = LoadError::Hook { hook: "tcp_destroy_sock", reason: "no".to_owned() };
        let (whole, hooks) = judge(planned(), &Err(error));
        assert_eq!(whole.state, State::Refused);
        for (hook, finding) in HOOKS.iter().zip(hooks) {
            let expected = if hook.name == "tcp_destroy_sock" { State::Refused } else { State::NotTested };
            assert_eq!(finding.state, expected, "{}", hook.name);
        }
    }

    #[test]
    fn an_optional_hook_that_is_missing_says_why() {
        let attached = HOOKS
            .iter()
            .map(|hook| probe::Attached {
                hook,
                missing: (hook.name == "tcp_send_reset").then(|| "busy".to_owned()),
            })
            .collect();
        let (whole, hooks) = judge(planned(), &Ok(attached));
        assert_eq!(whole, Finding::AVAILABLE);
        let refused: Vec<_> = hooks.iter().filter(|hook| hook.state == State::Refused).collect();
        assert_eq!(refused, [&Finding::refused("busy")]);
    }
}
