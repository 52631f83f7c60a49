//! A TUN device with its addresses, in the network namespace of the calling thread.

#![allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "C constants into C fields")]

use std::{
    fs::{self, File, OpenOptions},
    io, mem,
    net::IpAddr,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    libc::{self, c_char, c_int, c_short, ifreq, in6_ifreq, sockaddr, sockaddr_in},
};
use socket2::{Domain, Socket, Type};

const DEVICE: &str = "link0";
const MTU: c_int = 1500;

/// Brings up the loopback device and a TUN device with these addresses. The returned file is the other end of
/// the TUN device.
pub(super) fn bring_up(addresses: &[IpAddr]) -> io::Result<File> {
    let tun =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    let mut request = request_for(DEVICE);
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as c_short;
    ioctl(&tun, libc::TUNSETIFF, &mut request)?;

    let inet: OwnedFd = Socket::new(Domain::IPV4, Type::DGRAM, None)?.into();
    request.ifr_ifru.ifru_mtu = MTU;
    ioctl(&inet, libc::SIOCSIFMTU, &mut request)?;
    set_up(&inet, "lo")?;
    set_up(&inet, DEVICE)?;
    for address in addresses {
        add_address(&inet, *address)?;
    }
    await_addresses()?;
    Ok(tun)
}

/// Waits until the IPv6 addresses are no longer tentative: a worker of the kernel makes them usable.
fn await_addresses() -> io::Result<()> {
    const TENTATIVE: u32 = 0x40;
    let is_tentative = |line: &str| {
        let flags = line.split_whitespace().nth(4).and_then(|word| u32::from_str_radix(word, 16).ok());
        flags.is_none_or(|flags| flags & TENTATIVE != 0)
    };
    for _ in 0..1000 {
        if !fs::read_to_string("/proc/thread-self/net/if_inet6")?.lines().any(is_tentative) {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(10));
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "the IPv6 addresses are still not usable"))
}

fn set_up(inet: &OwnedFd, device: &str) -> io::Result<()> {
    let mut request = request_for(device);
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as c_short;
    ioctl(inet, libc::SIOCSIFFLAGS, &mut request)
}

fn add_address(inet: &OwnedFd, address: IpAddr) -> io::Result<()> {
    let mut request = request_for(DEVICE);
    match address {
        IpAddr::V4(address) => {
            request.ifr_ifru.ifru_addr = ipv4(address.octets());
            ioctl(inet, libc::SIOCSIFADDR, &mut request)?;
            request.ifr_ifru.ifru_netmask = ipv4([255, 255, 255, 0]);
            ioctl(inet, libc::SIOCSIFNETMASK, &mut request)
        }
        IpAddr::V6(address) => {
            ioctl(inet, libc::SIOCGIFINDEX, &mut request)?;
            // SAFETY: the kernel has just filled in this member of the union.
            let index = unsafe { request.ifr_ifru.ifru_ifindex };
            let mut request = in6_ifreq {
                ifr6_addr: libc::in6_addr { s6_addr: address.octets() },
                ifr6_prefixlen: 64,
                ifr6_ifindex: index,
            };
            let inet6: OwnedFd = Socket::new(Domain::IPV6, Type::DGRAM, None)?.into();
            ioctl(&inet6, libc::SIOCSIFADDR, &mut request)
        }
    }
}

fn request_for(device: &str) -> ifreq {
    // SAFETY: ifreq is plain C data, for which all zeros is a valid value.
    let mut request: ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from as c_char;
    }
    request
}

fn ipv4(octets: [u8; 4]) -> sockaddr {
    let address = sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(octets) },
        sin_zero: [0; 8],
    };
    // SAFETY: both are plain C data of the same size; this is how the socket interface passes addresses.
    unsafe { mem::transmute(address) }
}

/// The type of requests, and that of their constants, depends on the C library.
fn ioctl<T>(file: &impl AsRawFd, request: impl TryInto<libc::Ioctl>, argument: &mut T) -> io::Result<()> {
    let request = request.try_into().unwrap_or_else(|_| panic!("not a request of this C library"));
    // SAFETY: every request above takes a pointer to the structure it is called with, which outlives the
    // call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request, std::ptr::from_mut(argument)) };
    Errno::result(result)?;
    Ok(())
}
