//! Processes with chosen ids, as when restoring a checkpoint.

use std::{ffi::CString, net::UdpSocket, os::fd::AsRawFd as _, ptr};

use nix::{libc, sys::wait::waitpid, unistd::Pid};

pub(crate) struct Reborn {
    pub(crate) id: u32,
}

impl Reborn {
    /// A process with this id that sends something and exits. Returns `None` if another one has the id.
    pub(crate) fn sending(id: u32) -> Option<Self> {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(socket.local_addr().unwrap()).unwrap();
        let fd = socket.as_raw_fd();
        match clone(Some(id))? {
            // SAFETY: only system calls are made.
            0 => unsafe {
                libc::send(fd, c"x".as_ptr().cast(), 1, 0);
                libc::_exit(0)
            },
            id => Some(Self { id }),
        }
    }

    /// A process with this id, or any, that executes this command without address space randomization.
    pub(crate) fn executing(id: Option<u32>, arguments: &[&str]) -> Option<Self> {
        let arguments: Vec<_> = arguments.iter().map(|&argument| CString::new(argument).unwrap()).collect();
        let mut pointers: Vec<_> = arguments.iter().map(|argument| argument.as_ptr()).collect();
        pointers.push(ptr::null());
        match clone(id)? {
            // SAFETY: only system calls are made; all strings and the list are terminated.
            0 => unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                libc::personality(libc::ADDR_NO_RANDOMIZE as libc::c_ulong);
                let nothing = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
                for fd in 0..3 {
                    libc::dup2(nothing, fd);
                }
                libc::execvp(pointers[0], pointers.as_ptr());
                libc::_exit(127)
            },
            id => Some(Self { id }),
        }
    }

    /// Waits until it has ended.
    pub(crate) fn ends(self) {
        waitpid(Pid::from_raw(self.id.cast_signed()), None).unwrap();
    }
}

/// The fields of `struct clone_args` (linux/sched.h) that are used here.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
}

/// `fork` with a chosen process id: returns 0 in the child, and `None` if the id is taken.
fn clone(id: Option<u32>) -> Option<u32> {
    let mut args = CloneArgs { exit_signal: libc::SIGCHLD.cast_unsigned().into(), ..CloneArgs::default() };
    if let Some(id) = &id {
        (args.set_tid, args.set_tid_size) = (ptr::from_ref(id) as u64, 1);
    }
    // SAFETY: the structure is what the kernel expects; the child has a copy of the memory and only makes
    // system calls.
    let made = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    if let Ok(id) = u32::try_from(made) {
        Some(id)
    } else {
        assert_eq!(nix::errno::Errno::last(), nix::errno::Errno::EEXIST, "clone3");
        None
    }
}
