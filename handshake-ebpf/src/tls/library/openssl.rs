//! OpenSSL: the two functions of its state machine, which run exactly while a handshake (or a post-handshake
//! message) is in progress, whether the program asked for it or it happens inside a read or a write.

use aya_ebpf::{macros::uprobe, programs::ProbeContext};
use handshake_common::{
    Role, TlsOutcome,
    integer::low_16,
    tls::library::{
        session::{Session, SessionFlags},
        target::Target,
    },
};

use super::{
    call::{self, Hit},
    object::{self, States, UNKNOWN},
};
use crate::{kernel::Typed, stack};

/// `TLS_ST_BEFORE`, `TLS_ST_OK`: openssl/ssl.h.
const BEFORE: u32 = 0;
const OK: u32 = 1;
/// `MSG_FLOW_UNINITED`, `MSG_FLOW_ERROR`: ssl/statem/statem.h.
const UNINITED: u32 = 0;
const ERROR: u32 = 1;
/// `SSL_EARLY_DATA_NOT_SENT`, `SSL_EARLY_DATA_ACCEPTED`: openssl/ssl.h.
const NOT_SENT: u64 = 0;
const ACCEPTED: u64 = 2;
/// `ERR_LIB_SSL`: openssl/err.h.
const LIB_SSL: i32 = 20;

// int ossl_statem_connect(SSL *s), int ossl_statem_accept(SSL *s); where they cannot be found,
// SSL_do_handshake(SSL *s)
#[uprobe]
pub(crate) fn openssl_enter(ctx: ProbeContext) -> u32 {
    stack::of_the_task(&ctx);
    let Some(ssl) = ctx.arg::<u64>(0) else { return 0 };
    let hit = Hit::new(&ctx, ssl);
    let Some(target) = hit.target() else { return 0 };
    let states = object::states(ssl, &target.statem);
    let begins = if states.known {
        // SSL_in_before(): anything later is in another state.
        states.hand_state == BEFORE && states.flow_state == UNINITED
    } else {
        // The file does not say where the state is: the first call with this object.
        call::session(&hit.key()).is_none()
    };
    // Needed only at the beginning.
    let role = match begins.then(|| object::number(ssl, &target.server)) {
        None | Some(UNKNOWN) => 0,
        Some(0) => Role::Client.code(),
        Some(_) => Role::Server.code(),
    };
    call::enter(&hit, target, begins, role);
    0
}

#[uprobe]
pub(crate) fn openssl_leave(ctx: ProbeContext) -> u32 {
    stack::of_the_task(&ctx);
    let hit = Hit::leaving(&ctx);
    let Some((key, session, target)) = call::leave(&hit) else { return 0 };
    if session.is_over() {
        return 0;
    }
    let ssl = session.object;
    let states = object::states(ssl, &target.statem);
    let result = hit.result(&ctx);
    // With early data a call succeeds before the handshake is complete: only the state shows when it is.
    let outcome = if is_complete(&states) || (!states.known && result == 1) {
        TlsOutcome::Completed
    } else if states.known && states.flow_state == ERROR {
        TlsOutcome::Failed
    } else {
        return 0;
    };
    read(session, target);
    call::end(&key, session, outcome, hit.now);
    // Later handshakes of this object are recognised by its state.
    if states.known {
        call::forget(&key);
    }
    0
}

#[inline(always)]
const fn is_complete(states: &States) -> bool {
    states.known && states.hand_state == OK && states.in_init == 0
}

/// Reads the object's own state.
#[inline(always)]
fn read(session: &mut Session, target: &Target) {
    let ssl = session.object;
    let flags = &mut session.flags;
    let version = object::number(ssl, &target.version);
    if version != UNKNOWN {
        session.version = low_16(version);
        flags.insert(SessionFlags::VERSION_READ);
    }
    let resumed = object::number(ssl, &target.resumed);
    if resumed != UNKNOWN {
        flags.insert(SessionFlags::STATE_READ);
        flags.set(SessionFlags::RESUMED, resumed & 1 != 0);
    }
    match object::number(ssl, &target.early_data) {
        UNKNOWN => flags.insert(SessionFlags::EARLY_UNKNOWN),
        early => {
            flags.set(SessionFlags::EARLY_OFFERED, early != NOT_SENT);
            flags.set(SessionFlags::EARLY_ACCEPTED, early == ACCEPTED);
        }
    }
    let cipher = object::number(ssl, &target.cipher);
    if cipher != UNKNOWN {
        session.cipher = low_16(cipher);
    }
    object::bytes(ssl, &target.random, &mut session.random);
    object::alpn(session, target);
}

// void SSL_free(SSL *ssl)
#[uprobe]
pub(crate) fn openssl_free(ctx: ProbeContext) -> u32 {
    stack::of_the_task(&ctx);
    let Some(ssl) = ctx.arg::<u64>(0) else { return 0 };
    let hit = Hit::new(&ctx, ssl);
    let key = hit.key();
    let (Some(session), Some(target)) = (call::session(&key), hit.target()) else { return 0 };
    if !session.is_over() {
        // Without a socket, the wire's view can only be found by the random.
        read(session, target);
        if is_complete(&object::states(ssl, &target.statem)) {
            // A program that frees it inside the callback for the end does so before the call returns.
            // Otherwise the return was missed, as when a coroutine continued on another thread.
            let ended = if hit.is_in(&key) { hit.now } else { 0 };
            call::end(&key, session, TlsOutcome::Completed, ended);
        }
    }
    call::freed(&key, session, hit.now);
    0
}

// void ERR_vset_error(int lib, int reason, const char *fmt, va_list args): OpenSSL 3
#[uprobe]
pub(crate) fn openssl_error(ctx: ProbeContext) -> u32 {
    stack::of_the_task(&ctx);
    if let (Some(library), Some(reason)) = (ctx.arg::<i32>(0), ctx.arg::<i32>(1)) {
        failed(library, reason);
    }
    0
}

// void ERR_put_error(int lib, int func, int reason, const char *file, int line): OpenSSL 1.1.1
#[uprobe]
pub(crate) fn openssl_put_error(ctx: ProbeContext) -> u32 {
    stack::of_the_task(&ctx);
    if let (Some(library), Some(reason)) = (ctx.arg::<i32>(0), ctx.arg::<i32>(2)) {
        failed(library, reason);
    }
    0
}

/// The first error of the TLS code is the cause of later ones; errors of other parts count only if there is
/// none.
#[inline(always)]
fn failed(library: i32, reason: i32) {
    if !call::may_be_in_one() {
        return;
    }
    let Some((_, session)) = call::current::<Typed>() else { return };
    if library == LIB_SSL && !session.flags.contains(SessionFlags::REASON) {
        session.error = reason;
        session.flags.insert(SessionFlags::REASON);
    }
}
