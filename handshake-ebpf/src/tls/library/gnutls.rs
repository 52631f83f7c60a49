//! GnuTLS: `gnutls_handshake`, whose first success is the handshake; on a TLS 1.3 client a later call is a
//! key update.

use aya_ebpf::{macros::uprobe, programs::ProbeContext};
use handshake_common::{
    Role, TlsOutcome,
    integer::low_16,
    tls::library::{
        session::{DTLS1_2, Session, SessionFlags},
        target::Target,
    },
};

use super::{
    call::{self, Hit},
    object::{self, UNKNOWN},
};
use crate::stack;

/// `GNUTLS_E_AGAIN`, `…_INTERRUPTED`, `…_WARNING_ALERT_RECEIVED`, `…_GOT_APPLICATION_DATA`: gnutls/gnutls.h;
/// the caller continues after them.
const GOES_ON: [i32; 4] = [-28, -52, -16, -38];
/// `GNUTLS_SERVER` of `gnutls_init`'s flags, and of the session's `entity`.
const SERVER: u64 = 1;

// int gnutls_handshake(gnutls_session_t session)
#[uprobe]
pub(crate) fn gnutls_enter(ctx: ProbeContext) -> u32 {
    stack::of_the_task(&ctx);
    let Some(object) = ctx.arg::<u64>(0) else { return 0 };
    let hit = Hit::new(&ctx, object);
    let Some(target) = hit.target() else { return 0 };
    let complete = object::number(object, &target.complete);
    let begins = call::session(&hit.key()).is_none() && (complete == 0 || complete == UNKNOWN);
    let role = match object::number(object, &target.server) {
        UNKNOWN => 0,
        entity if entity & SERVER != 0 => Role::Server.code(),
        _ => Role::Client.code(),
    };
    call::enter(&hit, target, begins, role);
    0
}

#[uprobe]
pub(crate) fn gnutls_leave(ctx: ProbeContext) -> u32 {
    stack::of_the_task(&ctx);
    let hit = Hit::leaving(&ctx);
    let Some((key, session, target)) = call::leave(&hit) else { return 0 };
    if session.is_over() {
        return 0;
    }
    let result = hit.result(&ctx);
    if GOES_ON.contains(&result) {
        return 0;
    }
    read(session, target);
    let outcome = if result < 0 {
        session.error = result;
        TlsOutcome::Failed
    } else {
        TlsOutcome::Completed
    };
    call::end(&key, session, outcome, hit.now);
    0
}

#[inline(always)]
fn read(session: &mut Session, target: &Target) {
    let object = session.object;
    // gnutls_protocol_t: GNUTLS_TLS1_0 is 2, …, GNUTLS_TLS1_3 is 5; GNUTLS_DTLS0_9 is 200, …, GNUTLS_DTLS1_2
    // is 202.
    let version = object::number(object, &target.version);
    if matches!(version, 2..=5) {
        session.version = 0x0301 + low_16(version) - 2;
        session.flags.insert(SessionFlags::VERSION_READ);
    } else if matches!(version, 200..=202) {
        session.version = DTLS1_2;
        session.flags.insert(SessionFlags::VERSION_READ);
    }
    let resumed = object::number(object, &target.resumed);
    if resumed != UNKNOWN {
        session.flags.insert(SessionFlags::STATE_READ);
        session.flags.set(SessionFlags::RESUMED, resumed != 0);
    }
    session.flags.insert(SessionFlags::EARLY_UNKNOWN);
    object::bytes(object, &target.random, &mut session.random);
    object::alpn(session, target);
}
