//! Two network namespaces joined by a link with a chosen delay, on which faults can be injected.

pub(crate) mod capture;
pub(crate) mod faults;
pub(crate) mod forge;
mod link;
pub(crate) mod namespace;
pub(crate) mod packet;
pub(crate) mod priority;
mod relay;
mod selftest;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::{self, Command},
    sync::atomic::{AtomicU16, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::program::{blind, machine::patience};
use capture::Capture;
use faults::Verdict;
use namespace::Namespace;
use packet::{Packet, Side};
use relay::Relay;
use socket2::{Domain, Protocol, Socket, Type};

/// How long a test may wait for something to happen on the link.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Distinguishes the addresses of the testbeds of a run.
static NUMBER: AtomicU16 = AtomicU16::new(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

pub(crate) struct Testbed {
    /// The first field, so it is dropped first: it holds the other ends of the devices.
    relay: Relay,
    client: Namespace,
    server: Namespace,
    number: u16,
}

impl Testbed {
    /// The link delays packets by half of `rtt` in each direction.
    pub(crate) fn new(rtt: Duration) -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test makes network namespaces and needs root: run it through `cargo xtask test`"
        );
        blind::watch();
        priority::raise();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let client = Namespace::new(&addresses(number, Side::Client));
        let server = Namespace::new(&addresses(number, Side::Server));
        let relay = Relay::start(client.tun(), server.tun(), rtt / 2);
        Self { relay, client, server, number }
    }

    pub(crate) fn namespace(&self, side: Side) -> &Namespace {
        match side {
            Side::Client => &self.client,
            Side::Server => &self.server,
        }
    }

    pub(crate) fn address(&self, side: Side, family: Family) -> IpAddr {
        let [v4, v6] = addresses(self.number, side);
        match family {
            Family::V4 => v4,
            Family::V6 => v6,
        }
    }

    /// A TCP socket that lives in the namespace of that side, whichever thread uses it.
    pub(crate) fn socket(&self, side: Side, family: Family) -> Socket {
        let domain = match family {
            Family::V4 => Domain::IPV4,
            Family::V6 => Domain::IPV6,
        };
        let socket =
            self.namespace(side).inside(|| Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).unwrap());
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        socket.set_write_timeout(Some(TIMEOUT)).unwrap();
        socket
    }

    /// A listener of the server side on a free port, and its address.
    pub(crate) fn listen(&self, family: Family) -> (Socket, SocketAddr) {
        self.listen_on(Side::Server, family, |_| ())
    }

    pub(crate) fn listen_on(
        &self,
        side: Side,
        family: Family,
        prepare: impl FnOnce(&Socket),
    ) -> (Socket, SocketAddr) {
        let listener = self.socket(side, family);
        prepare(&listener);
        listener.bind(&SocketAddr::new(self.address(side, family), 0).into()).unwrap();
        listener.listen(16).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        (listener, address)
    }

    /// A setting below /proc/sys/net of that side, such as `ipv4/tcp_fastopen`.
    pub(crate) fn sysctl(&self, side: Side, name: &str, value: &str) {
        self.namespace(side).sysctl(name, value);
    }

    /// A program that will run in the namespace of that side.
    pub(crate) fn command(&self, side: Side, program: &str) -> Command {
        self.namespace(side).command(program)
    }

    /// Adds a rule. Rules are applied to every TCP packet in the order in which they were added; the first
    /// that does not return `Pass` decides.
    pub(crate) fn fault(&self, rule: impl FnMut(&Packet) -> Verdict + Send + 'static) {
        self.relay.add_rule(Box::new(rule));
    }

    pub(crate) fn mend(&self) {
        self.relay.clear_rules();
    }

    /// Waits until the link is empty and nothing more is likely to come: a round trip and a delayed ACK after
    /// the last packet, and after what the test has just done.
    #[track_caller]
    pub(crate) fn wait_until_quiet(&self) {
        const QUIET: Duration = Duration::from_millis(150);
        thread::sleep(QUIET);
        self.wait_until("the link is quiet", |capture| capture.is_quiet_for(QUIET));
    }

    pub(crate) fn capture(&self) -> Capture {
        self.relay.capture()
    }

    /// Waits until what the link has carried satisfies `is_so`.
    #[track_caller]
    pub(crate) fn wait_until(&self, what: &str, is_so: impl Fn(&Capture) -> bool) {
        let deadline = Instant::now() + patience(TIMEOUT);
        while !is_so(&self.capture()) {
            assert!(Instant::now() < deadline, "not within {TIMEOUT:?}: {what}");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        if thread::panicking() {
            let capture = self.capture();
            let name = thread::current().name().unwrap_or("test").replace("::", "-");
            let path = format!("{}/{name}.pcap", env!("CARGO_TARGET_TMPDIR"));
            let kept = match capture.write_pcap(path.as_ref()) {
                Ok(()) => format!("kept as {path}"),
                Err(error) => format!("not kept in {path}: {error}"),
            };
            eprintln!("what the link carried ({kept}):\n{capture}");
        }
    }
}

/// The prefix of all addresses of this run, in each family: the tracer sees other runs too.
pub(crate) fn address_prefixes() -> [String; 2] {
    let run = run();
    let [high, low] = run.to_be_bytes();
    [format!("10.{}.", high ^ low), format!("fd77:{run:x}:")]
}

/// The addresses of one side of a testbed.
fn addresses(number: u16, side: Side) -> [IpAddr; 2] {
    let host = match side {
        Side::Client => 1,
        Side::Server => 2,
    };
    let run = run();
    let [high, low] = run.to_be_bytes();
    let [page, line] = number.to_be_bytes();
    assert!(page < 127, "more testbeds than addresses");
    [
        Ipv4Addr::new(10, high ^ low, line, 2 * page + host).into(),
        Ipv6Addr::new(0xfd77, run, number, 0, 0, 0, 0, host.into()).into(),
    ]
}

/// The number of this run. Never zero, which would be left out of an IPv6 address.
fn run() -> u16 {
    let [_, _, high, low] = process::id().to_be_bytes();
    u16::from_be_bytes([high, low]).max(1)
}
