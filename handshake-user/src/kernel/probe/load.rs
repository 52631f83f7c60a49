//! The compiled programs, and how one is loaded: the verifier gives up with `EAGAIN` when anything interrupts its thread (`do_check`).

use std::io;

use aya::programs::ProgramError;
use nix::sys::signal::{SigSet, SigmaskHow};

/// The kernel side, compiled.
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/handshake-ebpf"));

/// As many as libbpf makes (`PROG_LOAD_ATTEMPTS`).
const ATTEMPTS: u32 = 5;

/// Loads a program with the thread's signals blocked, and again if something else interrupts it (the freezer
/// of a suspended host or container). Retries alone are not enough: where children exit every few
/// milliseconds, every attempt fails.
///
/// # Errors
/// As the program's own `load`.
pub(crate) fn load<T, E: LoadFailure>(program: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    let _held = SignalMask::block_all();
    again(program, |error| error.refusal().is_some_and(|refusal| refusal.kind() == io::ErrorKind::WouldBlock))
}

/// Has aya find out what this kernel offers, which it does once, by loading programs and without a second
/// try: one that is interrupted would count as refused.
pub(super) fn find_features() {
    let _held = SignalMask::block_all();
    let _ = aya::features();
}

/// Why a program is not loaded.
pub(crate) trait LoadFailure {
    /// The kernel's answer, if it was asked.
    fn refusal(&self) -> Option<&io::Error>;
}

impl LoadFailure for io::Error {
    fn refusal(&self) -> Option<&io::Error> {
        Some(self)
    }
}

impl LoadFailure for ProgramError {
    fn refusal(&self) -> Option<&io::Error> {
        match self {
            Self::LoadError { io_error, .. } => Some(io_error),
            _ => None,
        }
    }
}

/// Blocks the thread's signals until it is dropped; other threads receive those to the process meanwhile.
struct SignalMask(Option<SigSet>);

impl SignalMask {
    fn block_all() -> Self {
        // Fails only for a bad argument; without it the program still loads, most of the time.
        Self(SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK).ok())
    }
}

impl Drop for SignalMask {
    fn drop(&mut self) {
        if let Some(before) = self.0 {
            let _ = before.thread_set_mask();
        }
    }
}

fn again<T, E>(mut attempt: impl FnMut() -> Result<T, E>, is_passing: impl Fn(&E) -> bool) -> Result<T, E> {
    for _ in 1..ATTEMPTS {
        match attempt() {
            Err(error) if is_passing(&error) => {}
            done => return done,
        }
    }
    attempt()
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::Signal;

    use super::*;

    /// The result, and the number of attempts.
    fn attempts(answers: &[Result<(), bool>]) -> (Result<(), bool>, usize) {
        let mut left = answers.iter();
        let result = again(|| *left.next().unwrap(), |is_passing| *is_passing);
        (result, answers.len() - left.len())
    }

    #[test]
    fn signals_are_blocked_while_loading() {
        let before = SigSet::thread_get_mask().unwrap();
        let mut meanwhile = before;
        load(|| {
            meanwhile = SigSet::thread_get_mask().unwrap();
            Ok::<_, io::Error>(())
        })
        .unwrap();
        assert!(meanwhile.contains(Signal::SIGCHLD) && meanwhile.contains(Signal::SIGHUP));
        assert_eq!(SigSet::thread_get_mask().unwrap(), before);
    }

    #[test]
    fn interruption_is_retried_and_refusal_is_not() {
        assert_eq!(attempts(&[Err(true), Err(true), Ok(())]), (Ok(()), 3));
        assert_eq!(attempts(&[Err(true); 9]), (Err(true), 5));
        assert_eq!(attempts(&[Err(false); 9]), (Err(false), 1));
    }
}
