//! Why the kernel side cannot be loaded or attached.

use std::{error::Error, io, path::PathBuf};

use aya::{EbpfError, maps::MapError, programs::ProgramError};
use thiserror::Error;

use crate::{
    kernel::btf::{BtfError, PATH as BTF_PATH},
    settings::AttachMode,
    untrusted::Untrusted,
};

/// Why nothing can be traced. Each says what to do.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The user may not load programs.
    #[error(
        "loading eBPF programs needs root, or the capabilities CAP_BPF and CAP_PERFMON; run it with sudo"
    )]
    NotPermitted,
    /// The kernel has no type information.
    #[error(
        "this kernel has no type information ({BTF_PATH}: {0}); handshake needs a kernel built with \
         CONFIG_DEBUG_INFO_BTF=y, 5.8 or newer"
    )]
    NoBtf(io::Error),
    /// A structure member is missing, or the type information cannot be read.
    #[error("{0}; this kernel is older or newer than handshake knows (see docs/compatibility.md)")]
    Layout(BtfError),
    /// The eBPF loader cannot read the type information.
    #[error("the eBPF loader cannot read the kernel's type information: {}", chain(.0))]
    Types(aya::BtfError),
    /// A hook that nothing works without.
    #[error("cannot hook {hook}: {reason}")]
    Hook {
        /// The tracepoint.
        hook: &'static str,
        /// Why not.
        reason: HookError,
    },
    /// Neither typed nor perf tracepoints.
    #[error("no attach mode works here; `handshake check` says what this kernel offers ({})", list(.0))]
    NoMode(Vec<(AttachMode, LoadError)>),
    /// The kernel refused the object.
    #[error("the kernel refused the eBPF object: {}", chain(.0))]
    Object(EbpfError),
    /// The kernel side's log cannot be read.
    #[error("cannot read the log of the eBPF programs: {0}")]
    Log(String),
    /// The object is not the one that this program was built with.
    #[error("the eBPF object lacks its maps")]
    NoMaps,
}

impl LoadError {
    /// Whether the verifier gave up on a required program: it looks at a million instructions at most
    /// (`BPF_COMPLEXITY_LIMIT_INSNS`).
    pub(super) fn is_too_large(&self) -> bool {
        let Self::Hook { reason: HookError::Program(error), .. } = self else { return false };
        has_cause(error, |cause| cause.raw_os_error() == Some(libc::E2BIG))
    }
}

impl From<EbpfError> for LoadError {
    fn from(error: EbpfError) -> Self {
        if is_permission_denied(&error) { Self::NotPermitted } else { Self::Object(error) }
    }
}

fn list(errors: &[(AttachMode, LoadError)]) -> String {
    let errors = errors.iter().map(|(mode, error)| format!("{}: {error}", mode.as_str()));
    errors.collect::<Vec<_>>().join("; ")
}

/// Why one hook is not attached.
#[derive(Debug, Error)]
pub enum HookError {
    /// There is no typed tracepoint.
    #[error("the kernel's BTF does not know the tracepoint {tracepoint}")]
    NotInBtf {
        /// Its name.
        tracepoint: &'static str,
    },
    /// There is no perf tracepoint, or it cannot be looked up.
    #[error(
        "tracefs has no {category}/{tracepoint}: the kernel lacks it, or tracefs is not mounted \
         (mount -t tracefs tracefs /sys/kernel/tracing)"
    )]
    NotInTracefs {
        /// Its folder.
        category: &'static str,
        /// Its name.
        tracepoint: &'static str,
    },
    /// The perf tracepoint's record lacks a field.
    #[error("the tracepoint {category}/{tracepoint} has no field {field}")]
    NoField {
        /// Its folder.
        category: &'static str,
        /// Its name.
        tracepoint: &'static str,
        /// The field.
        field: &'static str,
    },
    /// The object lacks the program.
    #[error("the eBPF object lacks the program")]
    NoProgram,
    /// The object has a program of this name for something else.
    #[error("the eBPF object has it as another type of program")]
    OtherType,
    /// There is nothing to attach the wire view to.
    #[error("cgroup v2 is not mounted (mount -t cgroup2 none /sys/fs/cgroup)")]
    NoCgroup2,
    /// The same, where it is mounted.
    #[error("cannot open {}: {error}", Untrusted::from(.mount.as_path()))]
    Cgroup2 {
        /// Where.
        mount: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// The kernel refused to load or attach the program.
    #[error("{}", shorten(&chain(.0)))]
    Program(ProgramError),
}

impl HookError {
    /// The kernel's refusal of a program; the whole of it goes to the log.
    pub(super) fn refused(program: &str, error: ProgramError) -> Self {
        // A verifier's log has a line for each instruction.
        for line in chain(&error).lines() {
            tracing::debug!(program, "{line}");
        }
        Self::Program(error)
    }
}

/// Whether the kernel refused for lack of privileges: the error, or one of its causes, is `EPERM` or
/// `EACCES`.
pub(crate) fn is_permission_denied(error: &(dyn Error + 'static)) -> bool {
    has_cause(error, |cause| cause.kind() == io::ErrorKind::PermissionDenied)
}

/// Whether the error, or one of its causes, is a system error like this.
fn has_cause(error: &(dyn Error + 'static), is_wanted: impl Fn(&io::Error) -> bool) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if system_error(error).is_some_and(&is_wanted) {
            return true;
        }
        next = error.source();
    }
    false
}

/// The system error that this is. aya's transparent variants forward `source()` past it, so they are named.
fn system_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
    if let Some(ProgramError::IOError(io) | ProgramError::MapError(MapError::IoError(io))) =
        error.downcast_ref()
    {
        return Some(io);
    }
    if let Some(MapError::IoError(io)) = error.downcast_ref() {
        return Some(io);
    }
    error.downcast_ref()
}

/// An error with all its causes in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}

/// Shortens an error that may carry the verifier's log to one line: its beginning, and the log's last line.
pub(crate) fn shorten(reason: &str) -> String {
    const STATISTICS: [&str; 3] = ["verification time", "stack depth", "processed"];
    let mut lines = reason.lines().map(str::trim).filter(|line| !line.is_empty());
    let Some(first) = lines.next() else { return String::new() };
    match lines.rfind(|line| !STATISTICS.iter().any(|start| line.starts_with(start))) {
        Some(last) => format!("{first} … {last}"),
        // An empty log: the kernel refused before it ran the verifier.
        None => first.trim_end_matches("Verifier output:").trim_end().trim_end_matches('.').to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use aya::sys::SyscallError;

    use super::*;

    fn system(errno: i32) -> io::Error {
        io::Error::from_raw_os_error(errno)
    }

    #[test]
    fn verifier_log_is_shortened_to_its_last_line() {
        let log = "cannot hook x: refused. Verifier output: func#0 @0\n0: R1=ctx\n29: (85) call f#107\n\
                   unknown func f#107\nverification time 2904 usec\nstack depth 56\nprocessed 30 insns\n";
        assert_eq!(shorten(log), "cannot hook x: refused. Verifier output: func#0 @0 … unknown func f#107");
        assert_eq!(shorten("returned EPERM. Verifier output: "), "returned EPERM");
        assert_eq!(shorten("plain"), "plain");
        assert_eq!(shorten(""), "");
    }

    #[test]
    fn permission_denied_is_found_wherever_aya_puts_it() {
        let map = |errno| MapError::CreateError { name: "RECORDS".to_owned(), io_error: system(errno) };
        let call = |errno| SyscallError { call: "perf_event_open", io_error: system(errno) };
        for errno in [libc::EPERM, libc::EACCES] {
            let errors: [Box<dyn Error>; 6] = [
                Box::new(system(errno)),
                Box::new(EbpfError::MapError(map(errno))),
                Box::new(MapError::IoError(system(errno))),
                Box::new(ProgramError::IOError(system(errno))),
                Box::new(ProgramError::MapError(MapError::IoError(system(errno)))),
                Box::new(ProgramError::SyscallError(call(errno))),
            ];
            for error in errors {
                assert!(is_permission_denied(error.as_ref()), "{error:?}");
            }
        }
        assert!(!is_permission_denied(&EbpfError::MapError(map(libc::ENOMEM))));
        let says_so = ProgramError::SyscallError(call(libc::EINVAL)).to_string() + "Permission denied";
        assert!(!is_permission_denied(&io::Error::other(says_so)), "the text does not count");
    }

    #[test]
    fn refusal_for_lack_of_privileges_needs_root() {
        let error = EbpfError::MapError(MapError::IoError(system(libc::EPERM)));
        assert!(matches!(LoadError::from(error), LoadError::NotPermitted));
    }
}
