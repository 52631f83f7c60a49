//! Socket options and system calls that the crates do not wrap, and waits for events of a socket.

use std::{
    ffi::c_int,
    io, mem,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd},
    time::{Duration, Instant},
};

use nix::{
    libc,
    poll::{PollFd, PollFlags, PollTimeout},
};
use socket2::Socket;

/// An integer option of `IPPROTO_TCP`.
pub(crate) fn set_tcp_option(socket: &Socket, option: c_int, value: c_int) {
    let length = libc::socklen_t::try_from(size_of::<c_int>()).unwrap();
    // SAFETY: the pointer and the length describe `value`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            option,
            std::ptr::from_ref(&value).cast(),
            length,
        )
    };
    assert_eq!(result, 0, "TCP option {option}: {}", io::Error::last_os_error());
}

pub(crate) fn tcp_info(socket: &Socket) -> libc::tcp_info {
    // SAFETY: tcp_info is plain C data, for which all zeros is a valid value.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    let mut length = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).unwrap();
    // SAFETY: the pointer and the length describe `info`; an older kernel fills in less, a newer one no more.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            std::ptr::from_mut(&mut info).cast(),
            &raw mut length,
        )
    };
    assert_eq!(result, 0, "TCP_INFO: {}", io::Error::last_os_error());
    info
}

/// The kernel's smoothed round-trip time.
pub(crate) fn kernel_rtt(socket: &Socket) -> Duration {
    Duration::from_micros(tcp_info(socket).tcpi_rtt.into())
}

/// Aborts the connection and keeps the socket for another one: `connect(AF_UNSPEC)`.
pub(crate) fn disconnect(socket: &Socket) {
    // SAFETY: sockaddr is plain C data, for which all zeros is a valid value.
    let mut nowhere: libc::sockaddr = unsafe { mem::zeroed() };
    nowhere.sa_family = libc::sa_family_t::try_from(libc::AF_UNSPEC).unwrap();
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr>()).unwrap();
    // SAFETY: the pointer and the length describe `nowhere`, which outlives the call.
    let result = unsafe { libc::connect(socket.as_raw_fd(), &raw const nowhere, length) };
    assert_eq!(result, 0, "connect(AF_UNSPEC): {}", io::Error::last_os_error());
}

/// `connect()` of a non-blocking socket, which does not wait for the answer.
pub(crate) fn begin_connect(socket: &Socket, to: SocketAddr) {
    socket.set_nonblocking(true).unwrap();
    let error = socket.connect(&to.into()).expect_err("the link has a delay");
    assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS));
}

/// Waits until the connection is established or has failed.
pub(crate) fn await_connect(socket: &Socket) {
    wait_for(socket, PollFlags::POLLOUT);
}

/// Waits until there is something to read: data, a connection to accept, or the end.
pub(crate) fn await_input(socket: &Socket) {
    wait_for(socket, PollFlags::POLLIN);
}

/// Waits until the connection is gone in both directions, as after a reset.
pub(crate) fn await_hang_up(socket: &Socket) {
    // POLLHUP is always reported.
    wait_for(socket, PollFlags::empty());
}

fn wait_for(socket: &Socket, what: PollFlags) {
    let mut files = [PollFd::new(socket.as_fd(), what)];
    let ready = nix::poll::poll(&mut files, PollTimeout::from(10_000_u16)).unwrap();
    assert_eq!(ready, 1, "no event of the socket within ten seconds");
}

/// Reads until the peer closes. Returns the number of bytes.
pub(crate) fn drain(mut socket: &Socket) -> u64 {
    io::copy(&mut socket, &mut io::sink()).unwrap()
}

/// Runs `work`. Returns how long it took, and its result.
pub(crate) fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let result = work();
    (start.elapsed(), result)
}
