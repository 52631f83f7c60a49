//! Go's crypto/tls: `(*Conn).handshakeContext`, which runs at every read and write and returns immediately
//! when the handshake is complete. A goroutine may enter it on one thread and leave it on another, so calls
//! are identified by goroutine.

use aya_ebpf::{macros::uprobe, programs::ProbeContext};
use handshake_common::{
    Role, TlsOutcome,
    integer::low_16,
    tls::library::{
        session::{Session, SessionFlags},
        target::{COOKIE_SERVER, Path, Target},
    },
};

use super::{
    call::{self, Hit},
    object::{self, UNKNOWN},
};
use crate::stack;

/// The second argument: Go's register ABI passes the address of a slice there.
#[inline(always)]
fn second_argument(ctx: &ProbeContext) -> u64 {
    // SAFETY: the context is the probe's own.
    let regs = unsafe { &*ctx.regs };
    #[cfg(bpf_target_arch = "x86_64")]
    return regs.rbx;
    #[cfg(bpf_target_arch = "aarch64")]
    return regs.regs[1];
}

/// The receiver, which Go's register ABI passes first, and the goroutine.
#[inline(always)]
fn registers(ctx: &ProbeContext) -> (u64, u64) {
    // SAFETY: the context is the probe's own.
    let regs = unsafe { &*ctx.regs };
    #[cfg(bpf_target_arch = "x86_64")]
    return (regs.rax, regs.r14);
    #[cfg(bpf_target_arch = "aarch64")]
    return (regs.regs[0], regs.regs[28]);
}

// func (c *Conn) handshakeContext(ctx context.Context) (ret error)
#[uprobe]
pub(crate) fn go_enter(ctx: ProbeContext) -> u32 {
    stack::of_the_task(&ctx);
    let (conn, goroutine) = registers(&ctx);
    let hit = Hit::of_goroutine(&ctx, conn, goroutine);
    let Some(target) = hit.target() else { return 0 };
    // Without this field every read would be taken for a handshake.
    if object::number(conn, &target.complete) != 0 {
        return 0;
    }
    let begins = call::session(&hit.key()).is_none();
    let role = match object::number(conn, &target.server) {
        UNKNOWN => 0,
        0 => Role::Server.code(),
        _ => Role::Client.code(),
    };
    call::enter(&hit, target, begins, role);
    0
}

#[uprobe]
pub(crate) fn go_leave(ctx: ProbeContext) -> u32 {
    stack::of_the_task(&ctx);
    let (error, goroutine) = registers(&ctx);
    let hit = Hit::of_goroutine(&ctx, 0, goroutine);
    let Some((key, session, target)) = call::leave(&hit) else { return 0 };
    if session.is_over() {
        return 0;
    }
    // `error` is an interface: its first word is nil when there is none.
    let outcome = if error == 0 { TlsOutcome::Completed } else { TlsOutcome::Failed };
    read(session, target);
    // The calls of other goroutines slept on other threads.
    session.flags.insert(SessionFlags::COMPUTE_UNKNOWN);
    call::end(&key, session, outcome, hit.now);
    // Later calls find the handshake complete, or repeat the error.
    if outcome == TlsOutcome::Completed {
        call::forget(&key);
    }
    0
}

/// Where the random is in the message that a server reads: behind its type, its length and the version.
const RECEIVED: Path = Path::direct(6, 32);

// func (m *clientHelloMsg) marshal() ([]byte, error)
// func (m *clientHelloMsg) unmarshal(data []byte) bool
#[uprobe]
pub(crate) fn go_hello(ctx: ProbeContext) -> u32 {
    stack::of_the_task(&ctx);
    let (message, goroutine) = registers(&ctx);
    let hit = Hit::of_goroutine(&ctx, 0, goroutine);
    let Some((session, target)) = call::of_caller(&hit) else { return 0 };
    // With Encrypted Client Hello a second one is made, which nobody sees. After a HelloRetryRequest it is
    // the same.
    if session.random != [0; 32] {
        return 0;
    }
    if hit.cookie & COOKIE_SERVER != 0 {
        object::bytes(second_argument(&ctx), &RECEIVED, &mut session.random);
    } else {
        object::bytes(message, &target.random, &mut session.random);
    }
    0
}

#[inline(always)]
fn read(session: &mut Session, target: &Target) {
    let conn = session.object;
    let flags = &mut session.flags;
    let version = object::number(conn, &target.version);
    if version != UNKNOWN {
        session.version = low_16(version);
        flags.insert(SessionFlags::VERSION_READ);
    }
    let resumed = object::number(conn, &target.resumed);
    if resumed != UNKNOWN {
        flags.insert(SessionFlags::STATE_READ);
        flags.set(SessionFlags::RESUMED, resumed != 0);
    }
    let retry = object::number(conn, &target.hello_retry);
    if retry != UNKNOWN {
        flags.set(SessionFlags::HELLO_RETRY, retry != 0);
        flags.set(SessionFlags::NO_HELLO_RETRY, retry == 0);
    }
    let cipher = object::number(conn, &target.cipher);
    if cipher != UNKNOWN {
        session.cipher = low_16(cipher);
    }
    object::alpn(session, target);
}
