//! Openings that a BPF program of a cgroup or a firewall does not allow.

use std::{
    ffi::{c_int, c_long},
    fs::{self, File},
    io::{self, Write as _},
    net::{Ipv4Addr, SocketAddr},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{self, Stdio},
};

use nix::libc;

use crate::{
    case::{Case, ms},
    ends::Expect,
    pair::Pair,
    socket::timed,
    testbed::{Family, packet::Side},
};

for_each_family!(
    syn_that_a_firewall_answers_with_a_reset_is_refused,
    syn_that_a_firewall_answers_with_port_unreachable_is_refused,
    syn_that_a_firewall_prohibits_is_unreachable,
    syn_that_the_own_firewall_rejects_is_refused,
);

/// `enum bpf_prog_type` and `enum bpf_attach_type` of `include/uapi/linux/bpf.h`.
const EGRESS: (u32, u32) = (8, 1);
const CONNECT4: (u32, u32) = (18, 10);

/// A cgroup with a program that denies everything, removed when dropped. Its processes have ended by then.
struct Denying(PathBuf);

impl Denying {
    fn new((program_type, attach_type): (u32, u32)) -> Self {
        /// `enum bpf_cmd`.
        const PROG_LOAD: c_long = 5;
        const PROG_ATTACH: c_long = 8;
        const ALLOW_MULTI: u32 = 2;
        /// `r0 = 0; exit`.
        const DENY: [u64; 2] = [0xb7, 0x95];
        let this = Self(cgroup2().join(format!("handshake-test-{}-{attach_type}", process::id())));
        fs::create_dir(&this.0).unwrap();
        let address = |bytes: *const u8| bytes as u64;
        let halves = |first: u32, second: u32| u64::from(first) | u64::from(second) << 32;
        let mut attr = [0_u64; 9];
        attr[0] = halves(program_type, 2);
        attr[1] = address(DENY.as_ptr().cast());
        attr[2] = address(c"GPL".as_ptr().cast());
        attr[8] = halves(0, attach_type);
        // SAFETY: the instructions and the licence outlive the call.
        let program = unsafe { bpf(PROG_LOAD, &attr) }.unwrap();
        // SAFETY: it is a descriptor that the kernel has just returned.
        let program = unsafe { OwnedFd::from_raw_fd(program) };
        let cgroup = File::open(&this.0).unwrap();
        let attr = [cgroup.as_raw_fd(), program.as_raw_fd()].map(|fd| u32::try_from(fd).unwrap());
        let attr = [halves(attr[0], attr[1]), halves(attach_type, ALLOW_MULTI)];
        // SAFETY: no pointers.
        unsafe { bpf(PROG_ATTACH, &attr) }.unwrap();
        this
    }

    /// What `connect()` says to a program in the cgroup.
    fn connect(&self, case: &Case, to: SocketAddr) -> String {
        const CONNECT: &str = "import socket, sys
client = socket.socket()
client.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 1)
print(client.connect_ex((sys.argv[1], int(sys.argv[2]))))";
        let mut command = case.bed.command(Side::Client, "python3");
        command.args(["-c", CONNECT, &to.ip().to_string(), &to.port().to_string()]);
        let mut processes = File::options().write(true).open(self.0.join("cgroup.procs")).unwrap();
        // SAFETY: between fork and exec one system call is made, on a file that the closure owns.
        unsafe { command.pre_exec(move || processes.write_all(b"0")) };
        let output = command.stderr(Stdio::inherit()).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

impl Drop for Denying {
    fn drop(&mut self) {
        // The test has failed already if this does.
        let _ = fs::remove_dir(&self.0);
    }
}

fn cgroup2() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
    let path = mount.and_then(|line| line.split(' ').nth(1)).expect("cgroup v2 is mounted");
    Path::new(path).to_owned()
}

/// # Safety
/// The pointers in `attr` must be to memory that outlives the call and that the command does not change.
unsafe fn bpf<T>(command: c_long, attr: &T) -> io::Result<i32> {
    // SAFETY: the kernel reads no more than the size it is given; the caller has promised the rest.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(i32::try_from(result).unwrap()) }
}

/// An address of the server without a listener.
fn somewhere(case: &Case) -> SocketAddr {
    SocketAddr::new(case.bed.address(Side::Server, Family::V4), 9)
}

/// Records come in order: after those of a later connection there is none to come.
#[track_caller]
fn assert_no_record(case: &Case, to: SocketAddr) {
    let (listener, address) = case.bed.listen(Family::V4);
    let later = case.bed.socket(Side::Client, Family::V4);
    later.connect(&address.into()).unwrap();
    let connection = Pair::accepted(later, &listener).finish();
    case.ends(connection, Expect { client: (1, 1), server: (1, 1) });
    assert_eq!(case.matching(|record| record.end("remote") == Some(to)).len(), 0);
}

/// The kernel looks for a route before it changes any state.
#[test]
fn connect_without_a_route_has_no_record() {
    let case = Case::over(ms(2));
    let nowhere = SocketAddr::new(Ipv4Addr::new(192, 0, 2, 1).into(), 7108);
    let client = case.bed.socket(Side::Client, Family::V4);
    let error = client.connect(&nowhere.into()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENETUNREACH));
    assert_no_record(&case, nowhere);
}

/// So does the program that is asked for every `connect()`.
#[test]
fn connect_that_a_cgroup_denies_has_no_record() {
    let case = Case::over(ms(2));
    let denying = Denying::new(CONNECT4);
    assert_eq!(denying.connect(&case, somewhere(&case)), libc::EPERM.to_string());
    assert_no_record(&case, somewhere(&case));
}

/// To TCP a SYN that was not let out is as good as lost: it is sent again until the time is over.
#[test]
fn syn_that_a_cgroup_denies_times_out() {
    let case = Case::over(ms(2));
    let to = somewhere(&case);
    let denying = Denying::new(EGRESS);
    assert_eq!(denying.connect(&case, to), libc::ETIMEDOUT.to_string());
    let open = case.records_of(|record| record.end("remote") == Some(to)).remove(0);
    open.assert_is("open.outcome", "timed_out");
    open.assert_is("process.comm", "python3");
    open.assert_unknown("open.rtt_us");
    assert!(case.bed.capture().connections().is_empty(), "no SYN left");
}

/// Rejects what leaves or enters that side for the port without a listener.
fn reject(case: &Case, side: Side, hook: &str, how: &str) {
    let rules = format!(
        "add table inet t; add chain inet t c {{ type filter hook {hook} priority 0; }}; \
         add rule inet t c tcp dport 9 reject with {how}"
    );
    let output = case.bed.command(side, "nft").arg(rules).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Dials that port: `connect()` says `error`, and the record `outcome`.
#[track_caller]
fn check_rejected(case: &Case, family: Family, error: c_int, outcome: &str) {
    let to = SocketAddr::new(case.bed.address(Side::Server, family), 9);
    let client = case.bed.socket(Side::Client, family);
    let (taken, result) = timed(|| client.connect(&to.into()));
    assert_eq!(result.unwrap_err().raw_os_error(), Some(error));
    let found = case.records_of(|record| record.end("remote") == Some(to));
    let [open] = &found[..] else { panic!("{found:?}") };
    open.assert_is("open.outcome", outcome);
    open.assert_near("open.duration_us", taken);
    open.assert_unknown("open.rtt_us");
    open.assert_is("process.by", "connect");
}

fn syn_that_a_firewall_answers_with_a_reset_is_refused(family: Family) {
    let case = Case::new();
    reject(&case, Side::Server, "input", "tcp reset");
    check_rejected(&case, family, libc::ECONNREFUSED, "refused");
}

fn syn_that_a_firewall_answers_with_port_unreachable_is_refused(family: Family) {
    let case = Case::new();
    reject(&case, Side::Server, "input", "icmpx type port-unreachable");
    check_rejected(&case, family, libc::ECONNREFUSED, "refused");
}

/// The two families have other errors for the same answer (`icmp_err_convert`, `icmpv6_err_convert`).
fn syn_that_a_firewall_prohibits_is_unreachable(family: Family) {
    let case = Case::new();
    reject(&case, Side::Server, "input", "icmpx type admin-prohibited");
    let error = if family == Family::V4 { libc::EHOSTUNREACH } else { libc::EACCES };
    check_rejected(&case, family, error, "unreachable");
}

/// No SYN leaves the host.
fn syn_that_the_own_firewall_rejects_is_refused(family: Family) {
    let case = Case::new();
    reject(&case, Side::Client, "output", "tcp reset");
    check_rejected(&case, family, libc::ECONNREFUSED, "refused");
    assert!(case.bed.capture().connections().is_empty(), "no SYN left");
}
