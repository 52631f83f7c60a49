//! Running a test executable that measures milliseconds on a machine that others share: a test that fails is run again,
//! alone. It passes only if it then passes every time, and what happened is reported, never hidden.

use std::{
    ffi::OsString,
    io::{self, BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::process::{self, step};

/// How often a test that failed beside others must pass alone.
const PASSES: usize = 2;
/// With which status libtest ends when tests fail.
const FAILURES: i32 = 101;
/// Of more failures than these the machine is not the cause.
const MOST: usize = 4;

/// Runs all tests that `command` with `arguments` selects. `command` gives a new one each time.
///
/// # Errors
/// When a test fails alone, too; when there are more than [`MOST`] failures; when the executable fails in another way.
pub(crate) fn run(command: impl Fn() -> Result<Command>, arguments: &[OsString]) -> Result<Vec<String>> {
    // Nobody may be reading.
    run_and_show(command, arguments, |line| drop(writeln!(io::stdout(), "{line}")))
}

fn run_and_show(
    command: impl Fn() -> Result<Command>,
    arguments: &[OsString],
    show: impl Fn(&str),
) -> Result<Vec<String>> {
    let mut first = command()?;
    let mut child = first
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("`{}` cannot be started", first.get_program().display()))?;
    let mut failed = Vec::new();
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).lines() {
            let line = line.context("the output of the tests is not UTF-8")?;
            failed.extend(failure(&line).map(str::to_owned));
            show(&line);
        }
    }
    let status = child.wait().context("waiting for the tests")?;
    if status.success() {
        return Ok(Vec::new());
    }
    // What ends in another way has not run all tests.
    if status.code() != Some(FAILURES) || failed.is_empty() || failed.len() > MOST {
        bail!("the tests with root failed ({status}): see their output above");
    }
    for test in &failed {
        for pass in 1..=PASSES {
            step(format!("{test} FAILED beside other tests: alone, {pass} of {PASSES}"));
            let mut alone = command()?;
            alone.args(["--exact", test, "--test-threads", "1"]);
            process::run(&mut alone, test, "it fails alone, too: see its output above")?;
        }
    }
    Ok(failed)
}

/// The name of the test that this line of libtest's says to have failed.
fn failure(line: &str) -> Option<&str> {
    line.strip_prefix("test ")?.strip_suffix(" ... FAILED")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(command: impl Fn() -> Result<Command>) -> Result<Vec<String>> {
        run_and_show(command, &[], |_| ())
    }

    /// A test executable of which `beside` fails once beside others, and `always` always.
    fn executable(tests: &str) -> impl Fn() -> Result<Command> {
        let script = format!(
            r#"case "$1" in
                --exact) test "$2" != always ;;
                *) for name in {tests}; do echo "test $name ... FAILED"; done; echo "test other ... ok"; exit 101 ;;
            esac"#
        );
        move || {
            let mut command = Command::new("sh");
            command.args(["-c", &script, "sh"]);
            Ok(command)
        }
    }

    #[test]
    fn what_passes_alone_is_named() {
        assert_eq!(run(executable("beside")).unwrap(), ["beside"]);
    }

    #[test]
    fn what_fails_alone_fails() {
        assert!(run(executable("beside always")).is_err());
    }

    #[test]
    fn many_failures_are_not_repeated_and_a_crash_has_none() {
        assert!(run(executable("a b c d e")).is_err());
        assert!(run(executable("")).is_err());
    }

    #[test]
    fn only_failures_are_taken() {
        assert_eq!(failure("test tls::a ... FAILED"), Some("tls::a"));
        assert_eq!(failure("test tls::a ... ok"), None);
        assert_eq!(failure("test result: FAILED. 1 passed"), None);
    }
}
