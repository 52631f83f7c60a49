//! Server programs that a test starts, and waits for their sockets.

use std::{
    fs,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::{
    case::pause,
    program::{child_guard::ChildGuard, machine::patience},
    testbed::{Testbed, packet::Side},
};

/// A server program, killed when dropped.
pub(crate) struct Server(ChildGuard);

impl Server {
    /// Keeps its standard input open, because some programs end with it.
    #[track_caller]
    pub(crate) fn start(mut command: Command) -> Self {
        Self(ChildGuard::start(command.stdin(Stdio::piped()).stdout(Stdio::null())))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

/// Waits until a program of the server side listens on this port.
#[track_caller]
pub(crate) fn await_listener(bed: &Testbed, port: u16) {
    await_listener_of(bed, Side::Server, port);
}

/// Waits until a program of that side listens on this port. It asks the kernel, because a connection made to
/// find out would be in the records too.
#[track_caller]
pub(crate) fn await_listener_of(bed: &Testbed, side: Side, port: u16) {
    const LISTEN: &str = "0A";
    await_states(bed, side, port, "nobody listens on port", |states| {
        states.iter().any(|state| state == LISTEN)
    });
}

/// Waits until that side has no socket with this port any more.
#[track_caller]
pub(crate) fn await_no_socket(bed: &Testbed, side: Side, port: u16) {
    await_states(bed, side, port, "there is still a socket with port", <[String]>::is_empty);
}

/// Waits until the states of all sockets with this port, as `/proc/net/tcp` lists them, satisfy `enough`.
#[track_caller]
fn await_states(bed: &Testbed, side: Side, port: u16, otherwise: &str, enough: impl Fn(&[String]) -> bool) {
    let deadline = Instant::now() + patience(Duration::from_secs(20));
    // local_address, the port in hexadecimal; rem_address; st.
    let state = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        words.next()?.ends_with(&format!(":{port:04X}")).then_some(())?;
        words.nth(1).map(str::to_owned)
    };
    let states = || -> Vec<String> {
        let tables = bed.namespace(side).inside(|| {
            ["tcp", "tcp6"].map(|name| fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap())
        });
        tables.iter().flat_map(|table| table.lines().filter_map(state)).collect()
    };
    while !enough(&states()) {
        assert!(Instant::now() < deadline, "{otherwise} {port}");
        pause(20);
    }
}
