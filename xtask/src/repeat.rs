//! Runs a test executable and says what failed in it. Some tests compare milliseconds on a machine that
//! others share, and some machines shield their init from BPF, so that what happens while it runs is not
//! seen: a test that failed by nothing else is repeated, alone, and must then pass every time. Repeats are
//! reported, never hidden, and CI has a budget of them.

use std::{
    ffi::OsString,
    io::{self, BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::process::{self, step};

/// How often a test that failed beside others must pass alone.
const PASSES: usize = 2;
/// The exit status of libtest when tests fail.
const FAILURES: i32 = 101;
/// How many tests a whole run may repeat under CI: more of them are not the fault of the machine.
pub(crate) const BUDGET: usize = 10;
/// How many of one executable may be repeated at all.
const MAX_REPEATED: usize = 8;
/// Begins the message of an assertion that compares times (`assert_time!` in handshake-user/tests/netns.rs).
const COMPARES_TIMES: &str = "compares times: ";
/// Begins the line that follows a panic if the kernel ran no program when something happened during the test
/// (handshake-user/tests/program/blind.rs).
const BLIND: &str = "the kernel was blind: ";
/// How much of a panic's message is told again at the end, bytes and lines.
const MESSAGE_BYTES: usize = 1200;
const MESSAGE_LINES: usize = 12;

/// Runs all tests that `command` with `arguments` selects; `command` makes a new one each time. Returns the
/// tests that passed only when repeated.
///
/// # Errors
/// If a test fails by anything but a comparison of times or a blind kernel, or also fails alone; if more than
/// [`MAX_REPEATED`] tests fail; if the executable fails in any other way.
pub(crate) fn run(command: impl Fn() -> Result<Command>, arguments: &[OsString]) -> Result<Vec<String>> {
    run_and_show(command, arguments, print)
}

fn print(line: &str) {
    // Nobody may be reading.
    let _ = writeln!(io::stdout(), "{line}");
}

/// The failures, each on lines of its own.
fn told<'a>(failed: impl IntoIterator<Item = &'a Failure>) -> String {
    failed.into_iter().fold(String::new(), |text, Failure { test, message, .. }| {
        format!("{text}\n  {test}: {}", if message.is_empty() { "see its output above" } else { message })
    })
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
    let mut report = Report::default();
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).lines() {
            let line = line.context("the output of the tests is not UTF-8")?;
            report.read(&line);
            show(&line);
        }
    }
    let status = child.wait().context("waiting for the tests")?;
    if status.success() {
        return Ok(Vec::new());
    }
    let failed = &report.failed;
    // With another status it has not run all tests, or has found something after them.
    if status.code() != Some(FAILURES) || failed.is_empty() || failed.len() > MAX_REPEATED {
        bail!("the tests with root failed ({status}){}", told(failed));
    }
    if failed.iter().any(|failure| failure.excuse().is_none()) {
        let real = failed.iter().filter(|failure| failure.excuse().is_none());
        bail!("failed by more than a comparison of times or a blind kernel, so not repeated:{}", told(real));
    }
    let mut repeated = Vec::new();
    for failure in failed {
        let (test, excuse) = (&failure.test, failure.excuse().unwrap_or_default());
        for pass in 1..=PASSES {
            step(format!("{test} FAILED ({excuse}): alone, {pass} of {PASSES}"));
            let mut alone = command()?;
            alone.args(["--exact", test, "--test-threads", "1"]);
            process::run(&mut alone, test, "it also fails alone: see its output above")?;
        }
        repeated.push(format!("{test} ({excuse})"));
    }
    Ok(repeated)
}

/// The tests that failed, by the output of libtest.
#[derive(Debug, Default)]
struct Report {
    failed: Vec<Failure>,
    /// The failure whose output is being read.
    section: Option<usize>,
    /// How many more lines belong to its message.
    message_lines: usize,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Failure {
    test: String,
    /// The panics of the test, and those of them that are comparisons of times.
    panics: usize,
    of_times: usize,
    /// Whether something happened during the test of which the kernel told no program.
    is_blind: bool,
    /// Where the first panic was, and what it said.
    message: String,
}

impl Failure {
    /// A further line of the message.
    fn add(&mut self, line: &str) {
        let room = MESSAGE_BYTES.saturating_sub(self.message.len());
        if room > 0 && !line.is_empty() {
            self.message.push_str("\n    ");
            self.message.push_str(&line[..line.floor_char_boundary(room)]);
        }
    }

    /// What may have made it fail but the program.
    fn excuse(&self) -> Option<&'static str> {
        if self.panics == self.of_times && self.panics > 0 {
            Some("by a comparison of times beside other tests")
        } else if self.is_blind {
            Some("the kernel ran no program when something happened")
        } else {
            None
        }
    }
}

impl Report {
    fn read(&mut self, line: &str) {
        if let Some(test) = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED")) {
            self.failed.push(Failure { test: test.to_owned(), ..Failure::default() });
        } else if let Some(test) =
            line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----"))
        {
            self.section = self.failed.iter().position(|failure| failure.test == test);
        } else if line == "failures:" {
            self.section = None;
        } else if let Some(failure) = self.section.and_then(|index| self.failed.get_mut(index)) {
            // `thread 'NAME' (ID) panicked at FILE:LINE:COLUMN:`, and the message on the next line.
            if let Some((_, place)) =
                line.split_once(" panicked at ").filter(|(thread, _)| thread.starts_with("thread '"))
            {
                failure.panics += 1;
                if failure.panics == 1 {
                    place.clone_into(&mut failure.message);
                    self.message_lines = MESSAGE_LINES;
                }
                return;
            }
            if line.starts_with(COMPARES_TIMES) {
                failure.of_times += 1;
            }
            failure.is_blind |= line.starts_with(BLIND);
            if line.starts_with("stack backtrace:") || line.starts_with("note: ") {
                self.message_lines = 0;
            }
            if self.message_lines > 0 {
                self.message_lines -= 1;
                failure.add(line);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(command: impl Fn() -> Result<Command>) -> Result<Vec<String>> {
        run_and_show(command, &[], |_| ())
    }

    /// A test executable whose tests fail beside others with this message; `always` also fails alone.
    fn executable(tests: &str, words: &str, status: u8) -> impl Fn() -> Result<Command> {
        let script = format!(
            r#"case "$1" in
                --exact) test "$2" != always ;;
                *) for name in {tests}; do echo "test $name ... FAILED"; done; echo "test other ... ok"
                   printf '\nfailures:\n\n'
                   for name in {tests}; do
                       printf -- '---- %s stdout ----\n\n' $name
                       printf -- 'thread '"'%s'"' (7) panicked at a.rs:1:2:\n{words}\n\n' $name
                   done
                   exit {status} ;;
            esac"#
        );
        move || {
            let mut command = Command::new("sh");
            command.args(["-c", &script, "sh"]);
            Ok(command)
        }
    }

    const LATE: &str = "compares times: open.duration_us is 60ms, the truth is 50ms";

    #[test]
    fn test_that_fails_by_a_time_and_passes_alone_is_returned() {
        let repeated = run(executable("beside", LATE, 101)).unwrap();
        assert_eq!(repeated, ["beside (by a comparison of times beside other tests)"]);
    }

    #[test]
    fn test_during_which_the_kernel_was_blind_is_repeated() {
        let blind = "no record\\nthe kernel was blind: 1 events";
        let repeated = run(executable("beside", blind, 101)).unwrap();
        assert_eq!(repeated, ["beside (the kernel ran no program when something happened)"]);
        assert!(run(executable("beside always", blind, 101)).is_err());
    }

    #[test]
    fn test_that_also_fails_alone_fails() {
        assert!(run(executable("beside always", LATE, 101)).is_err());
    }

    #[test]
    fn test_that_fails_by_anything_else_is_not_repeated() {
        for words in ["assertion `left == right` failed", "it said: compares times: 1", ""] {
            let error = run(executable("beside", words, 101)).unwrap_err().to_string();
            assert!(error.contains("not repeated:\n  beside: a.rs:1:2:"), "{error}");
        }
        let both = format!("{LATE}\\n\\nthread '\"'beside'\"' panicked at b.rs:3:4:\\nand this");
        assert!(run(executable("beside", &both, 101)).is_err());
    }

    #[test]
    fn many_failures_and_crashes_are_not_repeated() {
        assert!(run(executable("a b c d e f g h i", LATE, 101)).is_err());
        assert!(run(executable("", LATE, 101)).is_err());
        assert!(run(executable("beside", LATE, 102)).is_err(), "records that came after the last test");
    }

    #[test]
    fn output_of_libtest_is_parsed() {
        let output = "test tls::a ... FAILED\ntest tls::b ... ok\ntest c - should panic ... ok\n\n\
                      failures:\n\n\
                      ---- tls::a stdout ----\n\nthread 'tls::a' (12) panicked at tests/netns/x.rs:98:13:\n\
                      compares times: x\nnote: run with `RUST_BACKTRACE=1`\nwhat the tracer said:\n\n\
                      failures:\n    tls::a\n\ntest result: FAILED. 1 passed";
        let mut report = Report::default();
        output.lines().for_each(|line| report.read(line));
        let expected = Failure {
            test: "tls::a".to_owned(),
            panics: 1,
            of_times: 1,
            is_blind: false,
            message: "tests/netns/x.rs:98:13:\n    compares times: x".to_owned(),
        };
        assert_eq!(report.failed, [expected]);
    }
}
