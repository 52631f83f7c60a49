//! One hook: its program is loaded, and attached later.

use aya::{Btf, Ebpf, programs::Program};

use super::{
    attach::told,
    plan::{Attach, Hook},
};

/// The twin of `inet_sock_set_state` for events inside it.
pub(super) const NESTED: &str = "inet_sock_set_state_nested";

const OTHER_TYPE: &str = "the eBPF object has it as another type of program";

/// Loads the program of a hook.
///
/// # Errors
/// Why the kernel refuses it.
pub(super) fn load(ebpf: &mut Ebpf, hook: &Hook, way: Attach, btf: &Btf) -> Result<(), String> {
    let (name, program) = program(ebpf, hook, way)?;
    match program {
        Program::BtfTracePoint(program) => super::load(|| program.load(hook.name, btf)),
        Program::TracePoint(program) => super::load(|| program.load()),
        _ => return Err(OTHER_TYPE.to_owned()),
    }
    .map_err(|error| told(&name, &error))
}

/// Attaches the program of a hook, which is loaded.
///
/// # Errors
/// Why that is not possible.
pub(super) fn attach(ebpf: &mut Ebpf, hook: &Hook, way: Attach) -> Result<(), String> {
    let (name, program) = program(ebpf, hook, way)?;
    match program {
        Program::BtfTracePoint(program) => program.attach().map(drop),
        Program::TracePoint(program) => program.attach(hook.category, hook.name).map(drop),
        _ => return Err(OTHER_TYPE.to_owned()),
    }
    .map_err(|error| told(&name, &error))
}

fn program<'a>(ebpf: &'a mut Ebpf, hook: &Hook, way: Attach) -> Result<(String, &'a mut Program), String> {
    let name = match way {
        Attach::TpBtf => hook.name.to_owned(),
        Attach::Tracepoint => format!("{}_perf", hook.name),
    };
    let program = ebpf.program_mut(&name).ok_or("the eBPF object lacks the program")?;
    Ok((name, program))
}

/// Loads the twin.
///
/// # Errors
/// Why the kernel refuses it.
pub(super) fn load_nested(ebpf: &mut Ebpf, btf: &Btf) -> Result<(), String> {
    match ebpf.program_mut(NESTED) {
        Some(Program::BtfTracePoint(program)) => {
            super::load(|| program.load("inet_sock_set_state", btf)).map_err(|error| told(NESTED, &error))
        }
        _ => Err(OTHER_TYPE.to_owned()),
    }
}

/// Attaches the twin.
///
/// # Errors
/// Why that is not possible.
pub(super) fn attach_nested(ebpf: &mut Ebpf) -> Result<(), String> {
    match ebpf.program_mut(NESTED) {
        Some(Program::BtfTracePoint(program)) => {
            program.attach().map(drop).map_err(|error| told(NESTED, &error))
        }
        _ => Err(OTHER_TYPE.to_owned()),
    }
}
