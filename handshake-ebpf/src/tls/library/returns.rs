//! Libraries whose handshake function shows its progress by its result: BoringSSL, NSS, wolfSSL, mbedTLS,
//! s2n.

use aya_ebpf::{macros::uprobe, programs::ProbeContext};
use handshake_common::{
    Library, Role, TlsOutcome,
    integer::low_16,
    tls::library::{
        session::{Session, SessionFlags},
        target::Target,
    },
};

use super::{
    call::{self, Hit, is},
    object::{self, UNKNOWN},
};
use crate::stack;

/// `MBEDTLS_ERR_SSL_WANT_READ`, `…_WANT_WRITE`, `…_ASYNC_IN_PROGRESS`, `…_CRYPTO_IN_PROGRESS`: mbedtls/ssl.h.
const MBEDTLS_AGAIN: [i32; 4] = [-0x6900, -0x6880, -0x6500, -0x7000];

// BoringSSL SSL_do_handshake(SSL *), NSS SSL_ForceHandshake(PRFileDesc *),
// wolfSSL_connect/accept/negotiate(WOLFSSL *), mbedtls_ssl_handshake(mbedtls_ssl_context *),
// s2n_negotiate(struct s2n_connection *, s2n_blocked_status *)
#[uprobe]
pub(crate) fn tls_enter(ctx: ProbeContext) -> u32 {
    stack::of_the_task(&ctx);
    let Some(object) = ctx.arg::<u64>(0) else { return 0 };
    let hit = Hit::new(&ctx, object);
    let Some(target) = hit.target() else { return 0 };
    // Once complete, further calls return immediately: the entry stays until the object is freed.
    let complete = object::number(object, &target.complete);
    let begins = call::session(&hit.key()).is_none() && (complete == 0 || complete == UNKNOWN);
    let role = match object::number(object, &target.server) {
        UNKNOWN => 0,
        0 => Role::Client.code(),
        _ => Role::Server.code(),
    };
    call::enter(&hit, target, begins, role);
    0
}

#[uprobe]
pub(crate) fn tls_leave(ctx: ProbeContext) -> u32 {
    stack::of_the_task(&ctx);
    let hit = Hit::leaving(&ctx);
    let Some((key, session, target)) = call::leave(&hit) else { return 0 };
    if session.is_over() {
        return 0;
    }
    let result = hit.result(&ctx);
    let outcome = if is(target, Library::BoringSsl) || is(target, Library::WolfSsl) {
        // 1 is done; less may be a failure or "again", which only another call would show.
        if result == 1 { TlsOutcome::Completed } else { return 0 }
    } else if is(target, Library::MbedTls) {
        if result == 0 {
            TlsOutcome::Completed
        } else if MBEDTLS_AGAIN.contains(&result) {
            return 0;
        } else {
            session.error = result;
            TlsOutcome::Failed
        }
    } else if result == 0 {
        TlsOutcome::Completed
    } else {
        return 0;
    };
    read(session, target);
    call::end(&key, session, outcome, hit.now);
    0
}

#[inline(always)]
fn read(session: &mut Session, target: &Target) {
    let object = session.object;
    let version = object::number(object, &target.version);
    if version != UNKNOWN {
        session.version = low_16(version);
        session.flags.insert(SessionFlags::VERSION_READ);
    }
    let resumed = object::number(object, &target.resumed);
    if resumed != UNKNOWN {
        session.flags.insert(SessionFlags::STATE_READ);
        session.flags.set(SessionFlags::RESUMED, resumed & 1 != 0);
    }
    session.flags.insert(SessionFlags::EARLY_UNKNOWN);
    let cipher = object::number(object, &target.cipher);
    if cipher != UNKNOWN {
        session.cipher = low_16(cipher);
    }
    object::bytes(object, &target.random, &mut session.random);
}

// SSL_free, PR_Close, wolfSSL_free, mbedtls_ssl_free, gnutls_deinit, s2n_connection_free: the object comes
// first
#[uprobe]
pub(crate) fn tls_free(ctx: ProbeContext) -> u32 {
    stack::of_the_task(&ctx);
    if let Some(object) = ctx.arg::<u64>(0) {
        call::free(&Hit::new(&ctx, object));
    }
    0
}
