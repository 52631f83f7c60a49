//! The program of one hook: loaded first, attached later.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    thread,
    time::Instant,
};

use aya::{Btf, Ebpf, maps::ProgramArray, programs::Program};

use super::{error::HookError, hook::Hook, load::load as load_program};
use crate::settings::AttachMode;

/// The program on changes of TCP state.
pub(super) const SET_STATE: &str = "inet_sock_set_state";
/// Its reentrant variant, for changes of state inside it.
pub(super) const SET_STATE_NESTED: &str = "inet_sock_set_state_nested";
/// The map by which it enters the first one's code.
const SET_STATE_CODE: &str = "SET_STATE";

/// A program that is to be loaded.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) name: String,
    pub(super) kind: Kind,
}

/// What it is attached to later.
#[derive(Debug)]
pub(super) enum Kind {
    /// This tracepoint.
    Tracepoint(&'static str),
    /// The packets of a cgroup.
    Packets,
}

impl Job {
    /// The program of a hook.
    pub(super) fn of(hook: &Hook, mode: AttachMode) -> Self {
        Self { name: name(hook, mode), kind: Kind::Tracepoint(hook.name) }
    }

    /// The reentrant variant.
    pub(super) fn nested() -> Self {
        Self { name: SET_STATE_NESTED.to_owned(), kind: Kind::Tracepoint(SET_STATE) }
    }

    fn load(&self, program: &mut Program, btf: &Btf) -> Result<(), HookError> {
        match (program, &self.kind) {
            (Program::BtfTracePoint(program), Kind::Tracepoint(name)) => {
                load_program(|| program.load(name, btf))
            }
            (Program::TracePoint(program), Kind::Tracepoint(_)) => load_program(|| program.load()),
            (Program::CgroupSkb(program), Kind::Packets) => load_program(|| program.load()),
            _ => return Err(HookError::OtherType),
        }
        .map_err(|error| HookError::refused(&self.name, error))
    }
}

/// What became of the programs, by their names.
pub(super) type Outcomes = HashMap<String, Result<(), HookError>>;

/// Loads programs, those first that come first, on every CPU at once: the kernel verifies each in the thread
/// that loads it, and that is nearly all of the time that starting takes.
pub(super) fn load_all(ebpf: &mut Ebpf, jobs: Vec<Job>, btf: &Btf) -> Outcomes {
    let mut programs: HashMap<&str, &mut Program> = ebpf.programs_mut().collect();
    let mut outcomes = Outcomes::new();
    let mut todo = Vec::new();
    for job in jobs.into_iter().rev() {
        match programs.remove(job.name.as_str()) {
            Some(program) => todo.push((job, program)),
            None => drop(outcomes.insert(job.name, Err(HookError::NoProgram))),
        }
    }
    let helpers = thread::available_parallelism().map_or(0, |cpus| cpus.get().min(todo.len()) - 1);
    let (todo, outcomes) = (Mutex::new(todo), Mutex::new(outcomes));
    let next = || todo.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let work = || {
        while let Some((job, program)) = next() {
            let begun = Instant::now();
            let loaded = job.load(program, btf);
            tracing::debug!(program = job.name, took = ?begun.elapsed(), loaded = loaded.is_ok(), "verified");
            outcomes.lock().unwrap_or_else(PoisonError::into_inner).insert(job.name, loaded);
        }
    };
    thread::scope(|scope| {
        for _ in 0..helpers {
            // Without it the others take longer.
            thread::Builder::new().spawn_scoped(scope, work).ok();
        }
        work();
    });
    outcomes.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Attaches the program of a hook, which has been loaded.
///
/// # Errors
/// Why that is not possible.
pub(super) fn attach(ebpf: &mut Ebpf, hook: &Hook, mode: AttachMode) -> Result<(), HookError> {
    attach_as(ebpf, &name(hook, mode), hook.category, hook.name)
}

/// Attaches the reentrant variant; the program itself must have been loaded.
///
/// # Errors
/// Why that is not possible.
pub(super) fn attach_nested(ebpf: &mut Ebpf) -> Result<(), HookError> {
    let refused = |error| HookError::refused(SET_STATE_NESTED, error);
    let own = program(ebpf, SET_STATE)?.fd().and_then(|fd| Ok(fd.try_clone()?)).map_err(refused)?;
    let code = ebpf.map_mut(SET_STATE_CODE).ok_or(HookError::NoProgram)?;
    let mut code = ProgramArray::try_from(code).map_err(|error| refused(error.into()))?;
    code.set(0, &own, 0).map_err(|error| refused(error.into()))?;
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
