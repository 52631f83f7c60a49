//! An untrusted process that maps files as code, and dies with the test.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{ChildStdout, Command, Stdio},
};

use crate::program::child_guard::ChildGuard;

const SCRIPT: &str = r#"
import mmap, sys
CODE = mmap.PROT_READ | mmap.PROT_EXEC
kept = []
for line in sys.stdin:
    count, path = line.rstrip("\n").split(" ", 1)
    with open(path, "rb") as file:
        if count == "keep":
            kept.append(mmap.mmap(file.fileno(), 4096, flags=mmap.MAP_PRIVATE, prot=CODE))
        else:
            for _ in range(int(count)):
                mmap.mmap(file.fileno(), 4096, flags=mmap.MAP_PRIVATE, prot=CODE).close()
    print("done", flush=True)
"#;

pub(crate) struct UntrustedProcess {
    child: ChildGuard,
    said: BufReader<ChildStdout>,
}

impl UntrustedProcess {
    pub(crate) fn start() -> Self {
        Self::python(SCRIPT, &[])
    }

    /// Starts a process with this script, which prints a line when it is ready.
    pub(crate) fn python(script: &str, arguments: &[&Path]) -> Self {
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-c", script]).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = ChildGuard::start(&mut command);
        let said = BufReader::new(child.stdout.take().unwrap());
        Self { child, said }
    }

    /// Maps these files, and keeps them mapped.
    pub(crate) fn map(&mut self, files: &[PathBuf]) {
        for file in files {
            self.ask("keep", file);
        }
    }

    /// Maps a file so often that the daemon loses events, and soon sweeps all processes again.
    pub(crate) fn flood(&mut self, file: &Path) {
        self.ask("5000", file);
    }

    fn ask(&mut self, what: &str, file: &Path) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{what} {}", file.display()).unwrap();
        self.wait();
    }

    /// Waits until it prints a line.
    pub(crate) fn wait(&mut self) {
        self.line();
    }

    /// The next line that it prints.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        assert_ne!(self.said.read_line(&mut line).unwrap(), 0, "the untrusted process has ended");
        line
    }
}
