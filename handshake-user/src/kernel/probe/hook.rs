//! One hook: its program is loaded, and attached later.

use aya::{Btf, Ebpf, programs::Program};

use super::{
    attach::told,
    plan::{Attach, Hook},
};

/// The program on changes of state.
pub(super) const TWINNED: &str = "inet_sock_set_state";
/// Its twin, for events inside it.
pub(super) const NESTED: &str = "inet_sock_set_state_nested";

const OTHER_TYPE: &str = "the eBPF object has it as another type of program";

/// Loads the program of a hook.
///
/// # Errors
/// Why the kernel refuses it.
pub(super) fn load(ebpf: &mut Ebpf, hook: &Hook, way: Attach, btf: &Btf) -> Result<(), String> {
    load_as(ebpf, &name(hook, way), hook.name, btf)
}

/// Loads the twin.
///
/// # Errors
/// Why the kernel refuses it.
pub(super) fn load_nested(ebpf: &mut Ebpf, btf: &Btf) -> Result<(), String> {
    load_as(ebpf, NESTED, TWINNED, btf)
}

fn load_as(ebpf: &mut Ebpf, name: &str, tracepoint: &str, btf: &Btf) -> Result<(), String> {
    match program(ebpf, name)? {
        Program::BtfTracePoint(program) => super::load(|| program.load(tracepoint, btf)),
        Program::TracePoint(program) => super::load(|| program.load()),
        _ => return Err(OTHER_TYPE.to_owned()),
    }
    .map_err(|error| told(name, &error))
}

/// Attaches the program of a hook, which is loaded.
///
/// # Errors
/// Why that is not possible.
pub(super) fn attach(ebpf: &mut Ebpf, hook: &Hook, way: Attach) -> Result<(), String> {
    attach_as(ebpf, &name(hook, way), hook.category, hook.name)
}

/// Attaches the twin.
///
/// # Errors
/// Why that is not possible.
pub(super) fn attach_nested(ebpf: &mut Ebpf) -> Result<(), String> {
    attach_as(ebpf, NESTED, "sock", "inet_sock_set_state")
}

fn attach_as(ebpf: &mut Ebpf, name: &str, category: &str, tracepoint: &str) -> Result<(), String> {
    match program(ebpf, name)? {
        Program::BtfTracePoint(program) => program.attach().map(drop),
        Program::TracePoint(program) => program.attach(category, tracepoint).map(drop),
        _ => return Err(OTHER_TYPE.to_owned()),
    }
    .map_err(|error| told(name, &error))
}

fn name(hook: &Hook, way: Attach) -> String {
    match way {
        Attach::TpBtf => hook.name.to_owned(),
        Attach::Tracepoint => format!("{}_perf", hook.name),
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Program, String> {
    ebpf.program_mut(name).ok_or_else(|| "the eBPF object lacks the program".to_owned())
}
