//! A server program beside the test.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::case::pause;
use crate::testbed::Testbed;
use crate::testbed::packet::Side;

/// A server program; it ends with the test.
pub(crate) struct Server(Child);

impl Server {
    /// Its standard input stays open: some programs end with it.
    #[track_caller]
    pub(crate) fn start(mut command: Command) -> Self {
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
        Self(child.unwrap_or_else(|error| panic!("{program}, which this test needs: {error}")))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Until a program of the server side listens there.
#[track_caller]
pub(crate) fn await_listener(bed: &Testbed, port: u16) {
    await_listener_of(bed, Side::Server, port);
}

/// By asking the kernel: a connection made to find out would be one more to count.
#[track_caller]
pub(crate) fn await_listener_of(bed: &Testbed, side: Side, port: u16) {
    let deadline = Instant::now() + Duration::from_secs(20);
    // local_address, the port in hexadecimal; the state 0A is LISTEN.
    let is_it = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let local = words.next().unwrap_or_default();
        local.ends_with(&format!(":{port:04X}")) && words.nth(1) == Some("0A")
    };
    let listening = || {
        bed.namespace(side).inside(|| {
            ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"]
                .iter()
                .any(|path| fs::read_to_string(path).is_ok_and(|text| text.lines().any(is_it)))
        })
    };
    while !listening() {
        assert!(Instant::now() < deadline, "nobody listens on port {port}");
        pause(20);
    }
}
