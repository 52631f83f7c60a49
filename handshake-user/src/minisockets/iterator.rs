//! Reads the records of `handshake-ebpf/src/tcp/minisocket.rs`, in the network namespace of this thread.

use std::{io, os::fd::BorrowedFd};

use handshake_common::tcp::minisocket::{Minisocket, SIZE};

use crate::{bounded, host, join::time_wait::NamespaceLook, kernel::iterator};

/// The most minisockets that one look takes, 80 bytes each. `tcp_max_tw_buckets` is 262 144 at most by
/// default.
const MAX_MINISOCKETS: usize = 262_144;

/// Everything that there is to see.
pub(super) fn look(program: BorrowedFd<'_>, clocks: &mut Vec<(u64, u64)>) -> io::Result<NamespaceLook> {
    let mut look =
        NamespaceLook { began_ns: host::monotonic_ns(), overflows: overflows(), ..NamespaceLook::default() };
    each(program, |tw| {
        if tw.substate == 0 {
            clocks.push((tw.now_ns, tw.jiffies));
        } else if look.minisockets.len() < MAX_MINISOCKETS {
            look.minisockets.push(tw);
        } else {
            look.is_cut = true;
        }
    })?;
    Ok(look)
}

/// Only the clocks.
pub(super) fn clocks(program: BorrowedFd<'_>, clocks: &mut Vec<(u64, u64)>) -> io::Result<()> {
    each(program, |tw| clocks.push((tw.now_ns, tw.jiffies)))
}

fn each(program: BorrowedFd<'_>, mut take: impl FnMut(Minisocket)) -> io::Result<()> {
    iterator::each(program, 0, SIZE, iterator::LIMIT, |bytes| {
        if let Some(minisocket) = Minisocket::from_bytes(bytes) {
            take(minisocket);
        }
    })
}

/// How often `tcp_max_tw_buckets` kept the kernel from making a minisocket in this namespace.
fn overflows() -> Option<u64> {
    counter(
        &bounded::read_to_string("/proc/thread-self/net/netstat", bounded::SMALL).ok()?,
        "TCPTimeWaitOverflow",
    )
}

/// A counter of the section `TcpExt`: a line of names and one of numbers.
fn counter(netstat: &str, name: &str) -> Option<u64> {
    let mut lines = netstat.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
    let (names, numbers) = (lines.next()?, lines.next()?);
    let (_, number) = names
        .split_ascii_whitespace()
        .zip(numbers.split_ascii_whitespace())
        .find(|&(known, _)| known == name)?;
    number.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_their_name() {
        let netstat =
            "TcpExt: SyncookiesSent TCPTimeWaitOverflow TW\nTcpExt: 1 22 333\nIpExt: TW\nIpExt: 9\n";
        assert_eq!(counter(netstat, "TCPTimeWaitOverflow"), Some(22));
        assert_eq!(counter(netstat, "None"), None);
        assert_eq!(counter("TcpExt: A B\nTcpExt: 1", "B"), None);
        assert_eq!(counter("TcpExt: A\nTcpExt: x", "A"), None);
        assert_eq!(counter("", "A"), None);
    }

    #[test]
    fn own_namespace_has_the_counter() {
        assert!(overflows().is_some());
    }
}
