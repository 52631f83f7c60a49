//! A listening socket from the service manager.

use std::{
    net::{TcpListener, UdpSocket},
    os::{
        fd::{AsRawFd as _, BorrowedFd},
        unix::process::CommandExt as _,
    },
    process::Command,
};

use nix::sys::signal::Signal;

use crate::program::{Daemon, command};

/// The daemon with this socket as systemd would start it: as descriptor 3.
fn activated(socket: BorrowedFd<'_>, arguments: &[&str]) -> Command {
    let daemon = command(arguments);
    let mut shell = Command::new("setpriv");
    shell.args(["--pdeathsig=KILL", "sh", "-c", "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\"", "sh"]);
    shell.arg(daemon.get_program()).args(daemon.get_args());
    let socket = socket.as_raw_fd();
    // SAFETY: between fork and exec only one system call is made, with a descriptor that is open.
    unsafe {
        shell.pre_exec(move || {
            // With the same number already, duplicating would leave it closed on exec.
            let done = if socket == 3 {
                nix::libc::fcntl(3, nix::libc::F_SETFD, 0) == 0
            } else {
                nix::libc::dup2(socket, 3) == 3
            };
            if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        })
    };
    shell
}

#[test]
fn socket_of_the_service_manager_takes_the_place_of_listen() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap().to_string();
    let daemon =
        Daemon::spawn(&mut activated(std::os::fd::AsFd::as_fd(&listener), &["--listen", "127.0.0.1:1"]));
    assert_eq!(daemon.address, at);
    assert_eq!(daemon.scrape().sum("handshake_build_info", &[]), 1.0);
    assert_eq!(daemon.end(Signal::SIGTERM).0.code(), Some(0));
    // It is still open here, as at the service manager: clients wait for the next start.
    assert!(std::net::TcpStream::connect(&at).is_ok());
}

#[test]
fn other_sockets_are_refused() {
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    let output =
        activated(std::os::fd::AsFd::as_fd(&datagrams), &["--listen", "127.0.0.1:0"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("listening TCP socket") && said.lines().count() == 1, "{said}");
}
