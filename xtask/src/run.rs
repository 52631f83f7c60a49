//! `cargo xtask run`: from a fresh clone to a live trace.

use std::{env, ffi::OsString, os::unix::process::CommandExt as _};

use anyhow::{Result, anyhow, bail};

use crate::{
    build,
    process::{Root, step},
    setup,
    workspace::{Profile, Workspace},
};

/// Build whatever is missing and start `handshake trace`, or another of its commands
///
/// Only the last step runs as root (through sudo, doas or pkexec): loading eBPF programs needs it.
/// Ctrl-C goes straight to the program.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    cargo xtask run                                  # handshake trace\n  \
    cargo xtask run -- --port 443 --duration 30s     # handshake trace with these flags\n  \
    cargo xtask run -- daemon --listen 127.0.0.1:9966\n  \
    cargo xtask run -- check\n  \
    cargo xtask run -- --help                        # the help of handshake itself")]
pub(crate) struct Args {
    /// A command of handshake with its flags; flags alone are those of `trace`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    arguments: Vec<OsString>,
}

pub(crate) fn main(args: Args) -> Result<()> {
    let workspace = Workspace::locate()?;
    let ready = setup::ensure(&workspace)?;
    let binary = build::both(&workspace, &ready, Profile::Release)?;

    let arguments = resolve(args.arguments);
    let root = if needs_root(&arguments) { Root::interactive() } else { Root::Already };
    let variables: Vec<_> =
        env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_for_handshake)).collect();
    let Some(mut command) = root.command(&binary, &variables, &workspace) else {
        bail!(
            "loading eBPF programs needs root, and there is no sudo, doas or pkexec here: as root, start {}",
            binary.display()
        );
    };
    command.args(&arguments);
    if let Root::Through(tool) = &root {
        step(format!(
            "starting handshake as root through {}",
            tool.first().unwrap_or(&OsString::new()).display()
        ));
    }
    // exec, not a child: signals and the terminal go to the program.
    let err = command.exec();
    Err(anyhow!(err).context(format!("`{}` cannot be started", command.get_program().display())))
}

/// Flags alone are those of `trace`, the most common command, except handshake's own flags.
fn resolve(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let of_handshake = |first: &OsString| {
        !first.as_encoded_bytes().starts_with(b"-")
            || ["-h", "--help", "-V", "--version"].iter().any(|flag| first == flag)
    };
    if !arguments.first().is_some_and(of_handshake) {
        arguments.insert(0, "trace".into());
    }
    arguments
}

/// Reading records and help needs no privileges.
fn needs_root(arguments: &[OsString]) -> bool {
    let reads = arguments.iter().all(|argument| !argument.as_encoded_bytes().starts_with(b"--duration"));
    if arguments.first().is_some_and(|first| first == "report") && reads {
        return false;
    }
    let unprivileged = ["explain", "help", "-h", "--help", "-V", "--version"];
    let is_help = |argument: &OsString| argument == "-h" || argument == "--help";
    !arguments.first().is_some_and(|first| unprivileged.iter().any(|name| first == name))
        && !arguments.iter().any(is_help)
}

/// Variables that the program reads and sudo would remove.
fn is_for_handshake(variable: &str) -> bool {
    (variable.starts_with("HANDSHAKE_") && variable != "HANDSHAKE_EBPF_OBJECT")
        || ["RUST_LOG", "RUST_BACKTRACE", "NO_COLOR"].contains(&variable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        run: Args,
    }

    fn resolved(line: &str) -> String {
        let cli = Cli::try_parse_from(["run"].into_iter().chain(line.split_whitespace())).unwrap();
        resolve(cli.run.arguments).join(std::ffi::OsStr::new(" ")).into_string().unwrap()
    }

    #[test]
    fn trace_is_the_default_command() {
        assert_eq!(resolved(""), "trace");
        assert_eq!(resolved("--"), "trace");
        assert_eq!(resolved("--port 443"), "trace --port 443");
        assert_eq!(resolved("-- --port 443"), "trace --port 443");
        assert_eq!(resolved("-- trace --port 443"), "trace --port 443");
        assert_eq!(resolved("trace --port 443"), "trace --port 443");
        assert_eq!(resolved("-- daemon --listen 127.0.0.1:9966"), "daemon --listen 127.0.0.1:9966");
        assert_eq!(resolved("-- --help"), "--help");
        assert_eq!(resolved("-- trace --help"), "trace --help");
    }

    #[test]
    fn only_commands_that_use_the_kernel_need_root() {
        let needs = |line: &str| needs_root(&line.split_whitespace().map(OsString::from).collect::<Vec<_>>());
        assert!(needs("trace --port 443"));
        assert!(needs("daemon"));
        assert!(needs("check"));
        assert!(!needs("explain records.json") && !needs("report --json records.json"));
        assert!(needs("report --duration 1m") && needs("report --duration=1m"));
        assert!(!needs("trace --help"));
        assert!(!needs("--version"));
    }

    #[test]
    fn settings_are_passed_to_the_program() {
        assert!(is_for_handshake("HANDSHAKE_LISTEN"));
        assert!(is_for_handshake("RUST_LOG"));
        assert!(!is_for_handshake("HANDSHAKE_EBPF_OBJECT"));
        assert!(!is_for_handshake("HOME"));
    }
}
