//! Empty programs where the daemon's are: what the kernel takes for calling them, whatever they do.

use std::{
    ffi::CStr,
    fs::File,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};

/// The name in the tables.
pub(super) const NAME: &str = "hooks alone";

/// The tracepoints that every connection passes; two programs are on changes of state.
const TRACEPOINTS: [&CStr; 5] = [
    c"inet_sock_set_state",
    c"inet_sock_set_state",
    c"tcp_destroy_sock",
    c"sock_send_length",
    c"sock_recv_length",
];
/// Where version 2 is mounted, beside version 1 or alone.
const CGROUPS: [&str; 2] = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];

// From linux/bpf.h.
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_RAW_TRACEPOINT_OPEN: libc::c_long = 17;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_PROG_TYPE_CGROUP_SKB: u32 = 8;
const BPF_PROG_TYPE_RAW_TRACEPOINT: u32 = 17;
const BPF_CGROUP_INET_INGRESS: u32 = 0;
const BPF_CGROUP_INET_EGRESS: u32 = 1;
/// `r0 = 1`, which lets a packet pass, and `exit`.
static EMPTY: [u64; 2] = [0x1_0000_00b7, 0x95];

/// The attached programs. Dropping them detaches them.
#[derive(Debug)]
pub(super) struct Hooks {
    _links: Vec<OwnedFd>,
}

impl Hooks {
    /// # Errors
    /// Without root, where the kernel lacks a tracepoint, or where no cgroup v2 is mounted.
    pub(super) fn attach() -> Result<Self> {
        let mut links = Vec::new();
        let tracing = load(BPF_PROG_TYPE_RAW_TRACEPOINT).context("cannot load an empty program")?;
        for name in TRACEPOINTS {
            let attr = [address(name), descriptor(&tracing)];
            let link = bpf(BPF_RAW_TRACEPOINT_OPEN, &attr)
                .with_context(|| format!("cannot attach an empty program to {}", name.to_string_lossy()))?;
            links.push(link);
        }
        let cgroup = CGROUPS.iter().find_map(|path| File::open(path).ok());
        let cgroup = cgroup.with_context(|| format!("cannot open {}", CGROUPS[1]))?.into();
        let packets = load(BPF_PROG_TYPE_CGROUP_SKB).context("cannot load an empty program for packets")?;
        for direction in [BPF_CGROUP_INET_INGRESS, BPF_CGROUP_INET_EGRESS] {
            let attr = [descriptor(&packets) | descriptor(&cgroup) << 32, u64::from(direction)];
            links.push(bpf(BPF_LINK_CREATE, &attr).context("cannot attach an empty program to all packets")?);
        }
        Ok(Self { _links: links })
    }
}

fn load(kind: u32) -> io::Result<OwnedFd> {
    let instructions = EMPTY.len() as u64;
    bpf(BPF_PROG_LOAD, &[u64::from(kind) | instructions << 32, EMPTY.as_ptr() as u64, address(c"GPL")])
}

fn address(text: &'static CStr) -> u64 {
    text.as_ptr() as u64
}

/// The number of an open file, which fits into 32 bits.
fn descriptor(fd: &OwnedFd) -> u64 {
    u64::from(fd.as_raw_fd().cast_unsigned())
}

/// bpf(2), for the commands above: each makes a file. `attr` is the beginning of `union bpf_attr`; the kernel
/// takes the rest as zeros.
fn bpf(command: libc::c_long, attr: &[u64]) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads `attr`, as long as it is, and what it points at, which is 'static.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_ptr(), size_of_val(attr)) };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this file for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
