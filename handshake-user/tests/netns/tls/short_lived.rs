//! Clients that live for some 20 ms, and have ended by the time the tracer hears of the file that they
//! mapped: it is found all the same, so that the next one is seen from its first handshake on.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use tempfile::TempDir;

use super::{
    certificate::{Certificate, NAME},
    programs::{await_probes, openssl, server_address, tool},
    settings::Settings,
};
use crate::{
    case::{Case, ms},
    ends::Expect,
    program::machine::probes_libraries,
    testbed::packet::Side,
};

/// Copies files into a folder, and runs a command there for every line.
const SHELL: &str = "
import shutil, subprocess, sys
folder, count, rest = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
for file in rest[:count]:
    shutil.copy(file, folder)
for line in sys.stdin:
    done = subprocess.run(rest[count:], input=b'\\n', stdout=subprocess.DEVNULL, cwd=folder)
    print(done.returncode, flush=True)
";

/// What a program needs of its own.
struct Program {
    files: Vec<PathBuf>,
    /// The one that holds the library.
    library: &'static str,
    name: &'static str,
}

/// Runs it twice. `secluded`: in a mount namespace of its own, where alone its files are.
#[track_caller]
fn check(program: &Program, secluded: bool, command: impl Fn(&Path, &str, &str) -> Vec<String>) {
    if !probes_libraries() {
        return;
    }
    let case = Case::over(ms(4));
    let address = server_address(&case.bed);
    let _server = (openssl::PEERS.server)(&case.bed, address, Settings::TLS13);
    let folder = TempDir::new().unwrap();
    let mut shell = case.bed.command(Side::Client, "python3");
    shell.args(["-c", SHELL]).arg(folder.path()).arg(program.files.len().to_string());
    shell.args(&program.files);
    shell.args(command(folder.path(), &address.ip().to_string(), &address.port().to_string()));
    if secluded {
        let at = folder.path().to_owned();
        // SAFETY: between fork and exec only system calls are made; paths this short are made zero-terminated
        // on the stack.
        unsafe {
            shell.pre_exec(move || {
                let none: Option<&str> = None;
                unshare(CloneFlags::CLONE_NEWNS)?;
                mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
                Ok(mount(Some("tmpfs"), &at, Some("tmpfs"), MsFlags::empty(), none)?)
            });
        }
    }
    let mut shell = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut stdin, mut stdout) = (shell.stdin.take().unwrap(), BufReader::new(shell.stdout.take().unwrap()));
    let mut run = || {
        stdin.write_all(b"\n").unwrap();
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert_eq!(line, "0\n", "the client's exit status");
    };
    run();
    let library = folder.path().join(program.library);
    assert_eq!(library.exists(), !secluded);
    await_probes(&library);
    run();
    drop(stdin);
    shell.wait().unwrap();
    case.bed.wait_until_quiet();
    let connections = case.bed.capture().connections();
    assert_eq!(connections.len(), 2);
    let ends = case.ends(connections[1], Expect::BOTH);
    let tls = ends.tls(Side::Client);
    tls.assert_is("tls.library", program.name);
    tls.assert_is("tls.source", "both");
    tls.assert_is("tls.outcome", "completed");
}

fn check_go(secluded: bool) {
    let go = Program { files: vec![tool("go-plain")], library: "go-plain", name: "go" };
    check(&go, secluded, |folder, host, port| {
        let trust = format!("trust={}", Certificate::shared().chain.display());
        let program = folder.join("go-plain").display().to_string();
        [&program, "client", host, port, "version=1.3", &trust].map(str::to_owned).to_vec()
    });
}

#[test]
fn go_client_is_seen_by_its_library_in_its_second_run() {
    check_go(false);
}

#[test]
fn go_client_in_another_mount_namespace_is_seen_by_its_library_in_its_second_run() {
    check_go(true);
}

/// Where a library is that the system's curl is linked with.
fn of_the_system(library: &str) -> PathBuf {
    let linked = Command::new("sh").args(["-c", "ldd \"$(command -v curl)\""]).output().unwrap();
    let linked = String::from_utf8(linked.stdout).unwrap();
    let path = linked.lines().find_map(|line| line.trim().strip_prefix(library)?.split_whitespace().nth(1));
    path.unwrap_or_else(|| panic!("curl is not linked with {library}: {linked}")).into()
}

fn check_openssl(secluded: bool) {
    let files = ["libssl.so.3", "libcrypto.so.3"].map(of_the_system).to_vec();
    let openssl = Program { files, library: "libssl.so.3", name: "openssl" };
    check(&openssl, secluded, |folder, host, port| {
        let path = format!("LD_LIBRARY_PATH={}", folder.display());
        let to = format!("{host}:{port}");
        let (via, page) = (format!("{NAME}:443:{to}"), format!("https://{NAME}/"));
        ["env", &path, "curl", "--silent", "--insecure", "--connect-to", &via, &page]
            .map(str::to_owned)
            .to_vec()
    });
}

#[test]
fn private_copy_of_openssl_is_seen_in_the_second_run() {
    check_openssl(false);
}

#[test]
fn private_copy_of_openssl_in_another_mount_namespace_is_seen_in_the_second_run() {
    check_openssl(true);
}
