//! A thread of this process that dies inside a handshake.

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    net::{SocketAddr, TcpStream},
    os::fd::IntoRawFd as _,
    ptr,
    sync::mpsc::{Sender, channel},
};

use nix::{
    libc,
    sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
};

pub(crate) struct Victim {
    handle: libc::pthread_t,
    /// Its thread id.
    pub(crate) id: u32,
}

struct Errand {
    stream: TcpStream,
    started: Sender<u32>,
}

impl Victim {
    /// Starts a thread that begins a handshake with OpenSSL, which nobody answers.
    pub(crate) fn thread(address: SocketAddr) -> Self {
        let action = SigAction::new(SigHandler::Handler(die), SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler makes one system call.
        unsafe { sigaction(Signal::SIGUSR2, &action) }.unwrap();
        let (started, id) = channel();
        let argument = Box::new(Errand { stream: TcpStream::connect(address).unwrap(), started });
        let mut handle = 0;
        // SAFETY: `connect` takes ownership of the argument passed here.
        let error = unsafe {
            libc::pthread_create(&raw mut handle, ptr::null(), connect, Box::into_raw(argument).cast())
        };
        assert_eq!(error, 0);
        Self { handle, id: id.recv().unwrap() }
    }

    /// Ends it where it is. Returns when it has been joined.
    pub(crate) fn ends(self) {
        // SAFETY: the thread handle is valid until it is joined.
        unsafe {
            assert_eq!(libc::pthread_kill(self.handle, libc::SIGUSR2), 0);
            assert_eq!(libc::pthread_join(self.handle, ptr::null_mut()), 0);
        }
    }
}

/// Ends this thread without unwinding: none of its active functions return.
extern "C" fn die(_: c_int) {
    // SAFETY: the system call ends the thread; the stack stays until it is joined.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
}

/// An object of libssl: a method, a context or a session.
type Object = *mut c_void;

extern "C" fn connect(argument: *mut c_void) -> *mut c_void {
    // SAFETY: it was allocated for this thread.
    let Errand { stream, started } = *unsafe { Box::from_raw(argument.cast::<Errand>()) };
    let fd = stream.into_raw_fd();
    // SAFETY: the functions of libssl have these signatures (openssl/ssl.h).
    unsafe {
        let library = libc::dlopen(c"libssl.so.3".as_ptr(), libc::RTLD_NOW);
        assert!(!library.is_null(), "libssl.so.3, which this test needs");
        let find = |name: &CStr| libc::dlsym(library, name.as_ptr().cast::<c_char>());
        let method: extern "C" fn() -> Object = std::mem::transmute(find(c"TLS_client_method"));
        let settings: extern "C" fn(Object) -> Object = std::mem::transmute(find(c"SSL_CTX_new"));
        let session: extern "C" fn(Object) -> Object = std::mem::transmute(find(c"SSL_new"));
        let set_fd: extern "C" fn(Object, c_int) -> c_int = std::mem::transmute(find(c"SSL_set_fd"));
        let connect: extern "C" fn(Object) -> c_int = std::mem::transmute(find(c"SSL_connect"));
        let session = session(settings(method()));
        assert_eq!(set_fd(session, fd), 1);
        started.send(libc::gettid().cast_unsigned()).unwrap();
        drop(started);
        connect(session);
    }
    ptr::null_mut()
}
