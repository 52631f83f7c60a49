//! Starting other programs: with a clean environment, errors that say what to do, and as root.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    io::{self, BufReader, IsTerminal as _},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{Arc, atomic::AtomicBool},
};

use anyhow::{Context as _, Result, bail};
use cargo_metadata::Message;

use crate::workspace::Workspace;

/// Progress goes to standard error: standard output belongs to the program that is run.
pub(crate) fn step(text: impl AsRef<str>) {
    eprintln!("xtask: {}", text.as_ref());
}

/// A nested cargo, as if the user had called it: `cargo xtask` is itself started by a cargo, whose variables
/// about the package xtask would make other packages' build scripts run again.
pub(crate) fn cargo(workspace: &Workspace) -> Command {
    let mut command = clean(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()), workspace);
    command.current_dir(&workspace.root).env("CARGO_TARGET_DIR", &workspace.target);
    command
}

/// Any program, without the variables that cargo has set for xtask.
pub(crate) fn clean(program: impl AsRef<OsStr>, workspace: &Workspace) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(is_about_xtask) {
            command.env_remove(name);
        }
    }
    if let Some(path) = env::var_os("LD_LIBRARY_PATH") {
        match without_build_folders(&path, &workspace.target) {
            Some(rest) => command.env("LD_LIBRARY_PATH", rest),
            None => command.env_remove("LD_LIBRARY_PATH"),
        };
    }
    command
}

fn is_about_xtask(variable: &str) -> bool {
    ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"].iter().any(|prefix| variable.starts_with(prefix))
        || ["CARGO_CRATE_NAME", "CARGO_PRIMARY_PACKAGE", "OUT_DIR"].contains(&variable)
}

/// A library path without the folders that cargo and rustup put in front. Returns `None` if nothing is left.
fn without_build_folders(path: &OsStr, target: &Path) -> Option<OsString> {
    let rest: Vec<_> = env::split_paths(path)
        .filter(|dir| {
            !dir.as_os_str().is_empty()
                && !dir.starts_with(target)
                && !dir.components().any(|part| part.as_os_str() == "toolchains")
        })
        .collect();
    if rest.is_empty() { None } else { env::join_paths(rest).ok() }
}

/// Runs to the end; `what` names the work, and `hint` says what to do if it fails.
pub(crate) fn run(command: &mut Command, what: &str, hint: &str) -> Result<()> {
    let status = command.status().with_context(|| cannot_start(command, what))?;
    if !status.success() {
        bail!("{what} failed ({status}): {hint}");
    }
    Ok(())
}

/// Runs to the end and returns standard output; standard error is quoted if it fails.
pub(crate) fn read(command: &mut Command, what: &str, hint: &str) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| cannot_start(command, what))?;
    if !output.status.success() {
        bail!("{what} failed ({}): {hint}{}", output.status, quoted(&output));
    }
    String::from_utf8(output.stdout).with_context(|| format!("{what}: the output is not UTF-8: {hint}"))
}

/// Runs a cargo that compiles to the end. Returns the executables that it reports, fresh ones included.
pub(crate) fn executables(cargo: &mut Command, what: &str) -> Result<Vec<PathBuf>> {
    cargo.arg("--message-format=json-render-diagnostics").stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = cargo.spawn().with_context(|| cannot_start(cargo, what))?;
    let mut executables = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        for message in Message::parse_stream(BufReader::new(stdout)) {
            if let Message::CompilerArtifact(artifact) = message.with_context(|| what.to_owned())? {
                executables.extend(artifact.executable.map(PathBuf::from));
            }
        }
    }
    let status = child.wait().with_context(|| what.to_owned())?;
    if !status.success() {
        bail!("{what} failed ({status}): see the compiler's messages above");
    }
    Ok(executables)
}

/// The kernel kills the program when the thread that starts it ends, so that an interrupted run leaves
/// nothing behind.
pub(crate) fn dies_with_its_parent(command: &mut Command) {
    // SAFETY: between fork and exec only one system call is made.
    unsafe {
        command.pre_exec(|| {
            Ok(rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?)
        })
    };
}

fn quoted(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let text = text.trim();
    if text.is_empty() { String::new() } else { format!("\n{text}") }
}

fn cannot_start(command: &Command, what: &str) -> String {
    format!("{what}: `{}` cannot be started: is it installed and on PATH?", command.get_program().display())
}

/// The first executable of this name on PATH, or in the folders of system programs, which a user's PATH often
/// lacks. Returns `None` if there is none.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A flag that becomes true when this process is asked to end.
pub(crate) fn interruption() -> Result<Arc<AtomicBool>> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        signal_hook::flag::register(signal, interrupted.clone()).context("cannot catch signals")?;
    }
    Ok(interrupted)
}

/// Whether this runs in CI.
pub(crate) fn is_ci() -> bool {
    env::var("CI").is_ok_and(|value| !["", "0", "false"].contains(&value.as_str()))
}

/// How a command is run as root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Root {
    Already,
    Through(Vec<OsString>),
    Impossible,
}

impl Root {
    /// For a program that a person watches: it may ask for a password.
    pub(crate) fn interactive() -> Self {
        Self::choose(is_root(), |tool| find_program(tool).is_some())
    }

    /// For tests: asks for a password only on a terminal.
    pub(crate) fn for_tests() -> Self {
        if is_root() {
            return Self::Already;
        }
        let works = |tool: &&str| {
            find_program(tool).is_some()
                && Command::new(tool)
                    .args(["-n", "true"])
                    .stdin(Stdio::null())
                    .output()
                    .is_ok_and(|output| output.status.success())
        };
        if let Some(tool) = ["sudo", "doas"].iter().find(|tool| works(tool)) {
            return Self::Through(vec![tool.into(), "-n".into()]);
        }
        if io::stdin().is_terminal() {
            Self::choose(false, |tool| tool != "pkexec" && find_program(tool).is_some())
        } else {
            Self::Impossible
        }
    }

    fn choose(is_root: bool, has: impl Fn(&str) -> bool) -> Self {
        if is_root {
            return Self::Already;
        }
        match ["sudo", "doas", "pkexec"].into_iter().find(|tool| has(tool)) {
            // pkexec would start in root's home, where relative paths in the arguments mean something else.
            Some("pkexec") => Self::Through(vec!["pkexec".into(), "--keep-cwd".into()]),
            Some(tool) => Self::Through(vec![tool.into()]),
            None => Self::Impossible,
        }
    }

    /// The command that starts `program` as root with these variables, which are passed through env(1)
    /// because each of the tools clears the environment in its own way. Returns `None` if root cannot be had.
    pub(crate) fn command(
        &self,
        program: &Path,
        variables: &[(OsString, OsString)],
        workspace: &Workspace,
    ) -> Option<Command> {
        match self {
            Self::Already => {
                let mut command = clean(program, workspace);
                command.envs(variables.iter().map(|(name, value)| (name, value)));
                Some(command)
            }
            Self::Through(tool) => {
                let (first, rest) = tool.split_first()?;
                let mut command = clean(first, workspace);
                command.args(rest);
                if !variables.is_empty() {
                    command.arg("env").args(variables.iter().map(|(name, value)| {
                        let mut assignment = name.clone();
                        assignment.push("=");
                        assignment.push(value);
                        assignment
                    }));
                }
                command.arg(program);
                Some(command)
            }
            Self::Impossible => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workspace() -> Workspace {
        Workspace { root: "/w".into(), target: "/w/target".into(), packages: Vec::new() }
    }

    #[test]
    fn only_cargo_variables_about_xtask_are_removed() {
        assert!(is_about_xtask("CARGO_PKG_NAME"));
        assert!(is_about_xtask("CARGO_MANIFEST_DIR"));
        assert!(!is_about_xtask("CARGO_HOME"));
        assert!(!is_about_xtask("CARGO_TARGET_DIR"));
        assert!(!is_about_xtask("CARGO_NET_OFFLINE"));
    }

    #[test]
    fn library_path_keeps_only_the_folders_of_the_user() {
        let target = Path::new("/w/target");
        let path = OsStr::new("/w/target/debug/deps:/home/u/.rustup/toolchains/x/lib:/opt/lib");
        assert_eq!(without_build_folders(path, target), Some("/opt/lib".into()));
        assert_eq!(without_build_folders(OsStr::new("/w/target/debug:"), target), None);
    }

    #[test]
    fn root_prefers_sudo_and_needs_no_tool_when_already_root() {
        assert_eq!(Root::choose(true, |_| false), Root::Already);
        assert_eq!(Root::choose(false, |_| true), Root::Through(vec!["sudo".into()]));
        assert_eq!(Root::choose(false, |tool| tool == "doas"), Root::Through(vec!["doas".into()]));
        assert_eq!(
            Root::choose(false, |tool| tool == "pkexec"),
            Root::Through(vec!["pkexec".into(), "--keep-cwd".into()])
        );
        assert_eq!(Root::choose(false, |_| false), Root::Impossible);
    }

    #[test]
    fn variables_are_passed_to_root_through_env() {
        let root = Root::Through(vec!["sudo".into(), "-n".into()]);
        let variables = [("RUST_LOG".into(), "debug".into())];
        let command =
            root.command(Path::new("/w/target/release/handshake"), &variables, &workspace()).unwrap();
        assert_eq!(command.get_program(), "sudo");
        let args: Vec<_> = command.get_args().collect();
        assert_eq!(args, ["-n", "env", "RUST_LOG=debug", "/w/target/release/handshake"]);
        assert!(Root::Impossible.command(Path::new("x"), &[], &workspace()).is_none());
    }
}
