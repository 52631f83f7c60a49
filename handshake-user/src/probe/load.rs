//! Loading a program: what the kernel gives up on its way is tried again.

use std::io;

use aya::programs::ProgramError;

/// How often libbpf tries, too (`PROG_LOAD_ATTEMPTS`).
const ATTEMPTS: u32 = 5;

/// Loads a program; once more when the verifier left off because a signal came (`do_check` returns `EAGAIN`).
///
/// # Errors
/// As the program's own `load`.
pub fn load(program: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    again(
        program,
        |error| matches!(error, ProgramError::LoadError { io_error, .. } if io_error.kind() == io::ErrorKind::WouldBlock),
    )
}

fn again<E>(mut attempt: impl FnMut() -> Result<(), E>, is_passing: impl Fn(&E) -> bool) -> Result<(), E> {
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
    use super::*;

    /// The result, and the number of attempts.
    fn attempts(answers: &[Result<(), bool>]) -> (Result<(), bool>, usize) {
        let mut left = answers.iter();
        let result = again(|| *left.next().unwrap(), |is_passing| *is_passing);
        (result, answers.len() - left.len())
    }

    #[test]
    fn a_signal_costs_another_attempt_and_a_refusal_does_not() {
        assert_eq!(attempts(&[Err(true), Err(true), Ok(())]), (Ok(()), 3));
        assert_eq!(attempts(&[Err(true); 9]), (Err(true), 5));
        assert_eq!(attempts(&[Err(false); 9]), (Err(false), 1));
    }
}
