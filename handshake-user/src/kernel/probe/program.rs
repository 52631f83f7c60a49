//! The program of one hook: loaded first, attached later.

use aya::{Btf, Ebpf, programs::Program};

use super::{error::HookError, hook::Hook, load::load as load_program};
use crate::settings::AttachMode;

/// The program on changes of TCP state.
pub(super) const SET_STATE: &str = "inet_sock_set_state";
/// Its reentrant variant, for changes of state inside it.
pub(super) const SET_STATE_NESTED: &str = "inet_sock_set_state_nested";

/// Loads the program of a hook.
///
/// # Errors
/// Why the kernel refuses it.
pub(super) fn load(ebpf: &mut Ebpf, hook: &Hook, mode: AttachMode, btf: &Btf) -> Result<(), HookError> {
    load_as(ebpf, &name(hook, mode), hook.name, btf)
}

/// Loads the reentrant variant.
///
/// # Errors
/// Why the kernel refuses it.
pub(super) fn load_nested(ebpf: &mut Ebpf, btf: &Btf) -> Result<(), HookError> {
    load_as(ebpf, SET_STATE_NESTED, SET_STATE, btf)
}

fn load_as(ebpf: &mut Ebpf, name: &str, tracepoint: &str, btf: &Btf) -> Result<(), HookError> {
    match program(ebpf, name)? {
        Program::BtfTracePoint(program) => load_program(|| program.load(tracepoint, btf)),
        Program::TracePoint(program) => load_program(|| program.load()),
        _ => return Err(HookError::OtherType),
    }
    .map_err(|error| HookError::refused(name, error))
}

/// Attaches the program of a hook, which has been loaded.
///
/// # Errors
/// Why that is not possible.
pub(super) fn attach(ebpf: &mut Ebpf, hook: &Hook, mode: AttachMode) -> Result<(), HookError> {
    attach_as(ebpf, &name(hook, mode), hook.category, hook.name)
}

/// Attaches the reentrant variant.
///
/// # Errors
/// Why that is not possible.
pub(super) fn attach_nested(ebpf: &mut Ebpf) -> Result<(), HookError> {
    attach_as(ebpf, SET_STATE_NESTED, "sock", SET_STATE)
}

fn attach_as(ebpf: &mut Ebpf, name: &str, category: &str, tracepoint: &str) -> Result<(), HookError> {
    match program(ebpf, name)? {
        Program::BtfTracePoint(program) => program.attach().map(drop),
        Program::TracePoint(program) => program.attach(category, tracepoint).map(drop),
        _ => return Err(HookError::OtherType),
    }
    .map_err(|error| HookError::refused(name, error))
}

fn name(hook: &Hook, mode: AttachMode) -> String {
    match mode {
        AttachMode::TpBtf => hook.name.to_owned(),
        AttachMode::Tracepoint => format!("{}_perf", hook.name),
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Program, HookError> {
    ebpf.program_mut(name).ok_or(HookError::NoProgram)
}
