//! Processes that map given files, and die with the test.

use std::{
    fs,
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use crate::child_guard::ChildGuard;

/// A duration longer than any test.
const SLEEP: &str = "300";

/// A read-only overlay file system.
pub(crate) struct Overlay<'a> {
    /// The layer that holds the files.
    pub(crate) lower: &'a Path,
    /// A second layer, which the kernel requires.
    pub(crate) empty: &'a Path,
    /// The mount point.
    pub(crate) at: &'a Path,
}

pub(crate) struct Process(ChildGuard);

impl Process {
    /// Starts a `sleep`. Returns when the library is loaded into it.
    pub(crate) fn start(program: &Path, library: Option<&Path>) -> Self {
        let mut command = Command::new(program);
        command.arg(SLEEP);
        if let Some(library) = library {
            command.env("LD_PRELOAD", library);
        }
        let process = Self::spawn(&mut command);
        if let Some(library) = library {
            process.wait_for(library);
        }
        process
    }

    fn wait_for(&self, library: &Path) {
        self.mapped(library.to_str().unwrap());
    }

    /// Waits until a file whose path contains this is mapped, because the loader runs after exec. Returns the
    /// path.
    pub(crate) fn mapped(&self, part: &str) -> PathBuf {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let maps = fs::read_to_string(format!("/proc/{}/maps", self.pid())).unwrap();
            let mut paths = maps.lines().filter_map(|line| Some(&line[line.find('/')?..]));
            if let Some(path) = paths.find(|path| path.contains(part)) {
                return path.into();
            }
            assert!(Instant::now() < deadline, "{part} is not loaded");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The same from an overlay that only this process sees, so that nothing has to be cleaned up.
    pub(crate) fn overlaid(overlay: &Overlay, program: &str, library: &str) -> Self {
        let mut command = Command::new(overlay.at.join(program));
        command.arg(SLEEP).env("LD_PRELOAD", overlay.at.join(library));
        let layers = format!("lowerdir={}:{}", overlay.lower.display(), overlay.empty.display());
        let at = overlay.at.to_owned();
        // SAFETY: between fork and exec only system calls are made; paths this short are made zero-terminated
        // on the stack.
        unsafe {
            command.pre_exec(move || {
                let none: Option<&str> = None;
                unshare(CloneFlags::CLONE_NEWNS)?;
                mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
                Ok(mount(Some("overlay"), &at, Some("overlay"), MsFlags::MS_RDONLY, Some(layers.as_str()))?)
            });
        }
        Self::spawn(&mut command)
    }

    /// A Python process that reads what [`Process::say`] writes.
    pub(crate) fn python(script: &str) -> Self {
        Self::spawn(Command::new("python3").args(["-c", script]).stdin(Stdio::piped()))
    }

    /// The same in a mount namespace of its own, with an empty file system at `at`.
    pub(crate) fn secluded_python(at: &Path, script: &str) -> Self {
        let mut command = Command::new("python3");
        command.args(["-c", script]).stdin(Stdio::piped());
        let at = at.to_owned();
        // SAFETY: between fork and exec only system calls are made; paths this short are made zero-terminated
        // on the stack.
        unsafe {
            command.pre_exec(move || {
                let none: Option<&str> = None;
                unshare(CloneFlags::CLONE_NEWNS)?;
                mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
                Ok(mount(Some("tmpfs"), &at, Some("tmpfs"), MsFlags::empty(), none)?)
            });
        }
        Self::spawn(&mut command)
    }

    fn spawn(command: &mut Command) -> Self {
        Self(ChildGuard::start(command))
    }

    pub(crate) fn say(&mut self, line: &str) {
        writeln!(self.0.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}
