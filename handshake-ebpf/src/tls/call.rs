//! A call of a library's handshake function: what all libraries have in common.

use core::mem::MaybeUninit;

use aya_ebpf::{
    EbpfContext,
    bindings::BPF_ANY,
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{bpf_get_attach_cookie, bpf_ktime_get_ns, bpf_map_update_elem},
    },
};
use handshake_common::{
    Connection, Library, Role, TlsOutcome,
    tls::{
        session::{Session, TlsFacts, key},
        target::{COOKIE_CLIENT, COOKIE_SERVER, Target},
    },
};

use super::{
    fd,
    maps::{BUCKETS, CALLS, CALLS_UNDER_WAY, Call, SESSIONS, TARGETS},
};
use crate::{
    emit,
    kernel::{Access as _, Typed, tgid},
    maps, words,
};

/// What a probe was hit with.
pub struct Hit {
    /// The session object.
    pub object: u64,
    /// What calls it: a thread, or a goroutine.
    pub caller: u64,
    pub cookie: u64,
    pub now: u64,
}

impl Hit {
    /// A hit of a probe by a thread.
    #[inline(always)]
    pub fn new(ctx: &impl EbpfContext, object: u64) -> Self {
        Self::by(ctx, object, bpf_get_current_pid_tgid())
    }

    /// A hit of a probe by this caller.
    #[inline(always)]
    pub fn by(ctx: &impl EbpfContext, object: u64, caller: u64) -> Self {
        // SAFETY: the probe's own context; the clock has no arguments.
        let (cookie, now) = unsafe { (bpf_get_attach_cookie(ctx.as_ptr()), bpf_ktime_get_ns()) };
        Self { object, caller, cookie, now }
    }

    /// The library file that was hit.
    #[inline(always)]
    pub fn target(&self) -> Option<&'static Target> {
        target(self.cookie)
    }

    /// The key of the object's session.
    #[inline(always)]
    pub fn key(&self) -> u64 {
        key(self.object, tgid())
    }
}

#[inline(always)]
fn target(cookie: u64) -> Option<&'static Target> {
    // The index is the lower half.
    TARGETS.get((cookie & u64::from(u32::MAX)).try_into().ok()?)
}

/// The session of this key, as long as its handshake is known.
#[inline(always)]
pub fn session<'a>(key: u64) -> Option<&'a mut Session> {
    // SAFETY: the map's own value, which the kernel keeps while the program runs; a session object is used by one
    // thread at a time.
    SESSIONS.get_ptr_mut(key).map(|session| unsafe { &mut *session })
}

/// A call begins. `role` is what the object says of itself, where the function does not decide it.
#[inline(always)]
pub fn enter(hit: &Hit, target: &Target, begins: bool, role: u8) {
    let key = hit.key();
    let known = match session(key) {
        Some(known) if begins => {
            // The object is used for another handshake, and the one before was never seen to end.
            if !known.is_over() {
                end(key, known, TlsOutcome::Abandoned, hit.now);
            }
            None
        }
        Some(known) if known.is_over() => return,
        Some(known) => Some(known),
        // Under way since before the program, or over: nothing that could be timed.
        None if !begins => return,
        None => None,
    };
    let sleeps = Typed::sleeps();
    if let Some(session) = known {
        session.enter(hit.now, sleeps);
    } else {
        let role = if hit.cookie & COOKIE_SERVER != 0 {
            Role::Server.code()
        } else if hit.cookie & COOKIE_CLIENT != 0 {
            Role::Client.code()
        } else {
            role
        };
        begin(key, hit, target, role, sleeps);
    }
    let call = Call { session: key, cookie: hit.cookie };
    if let Some(old) = CALLS.get_ptr_mut(hit.caller) {
        // SAFETY: the map's own value; only this caller uses it.
        let before = unsafe { core::mem::replace(&mut *old, call) };
        if before.session == 0 {
            count_calls(hit.caller, 1);
        }
    } else if CALLS.insert(hit.caller, call, u64::from(BPF_ANY)).is_ok() {
        count_calls(hit.caller, 1);
    }
}

#[inline(always)]
fn begin(key: u64, hit: &Hit, target: &Target, role: u8, sleeps: u64) {
    let mut fresh = MaybeUninit::<Session>::uninit();
    // SAFETY: a session is plain integers, for which zeros are valid.
    let session = unsafe { words::zeroed(&mut fresh) };
    (session.object, session.library, session.role) = (hit.object, target.library, role);
    Typed::process().name(&mut session.pid, &mut session.comm, &mut session.cgroup);
    session.enter(hit.now, sleeps);
    // An LRU table makes room.
    // SAFETY: key and value have the sizes of the map's definition; the plain helper spares a copy on the stack.
    unsafe {
        bpf_map_update_elem(
            (&raw const SESSIONS).cast_mut().cast(),
            (&raw const key).cast_mut().cast(),
            core::ptr::from_mut(session).cast(),
            u64::from(BPF_ANY),
        );
    }
}

/// A call returns: its session, to see how far that is. `None` for what was not seen from its beginning.
#[inline(always)]
pub fn leave<'a>(hit: &Hit) -> Option<(u64, &'a mut Session, &'static Target)> {
    let call = CALLS.get_ptr_mut(hit.caller)?;
    // SAFETY: the map's own value; only this caller uses it.
    let (key, cookie) = unsafe { (core::mem::replace(&mut (*call).session, 0), (*call).cookie) };
    if key == 0 {
        return None;
    }
    count_calls(hit.caller, u64::MAX);
    let (session, target) = (session(key)?, target(cookie)?);
    session.leave(hit.now, Typed::sleeps());
    fd::find(key, session, target);
    Some((key, session, target))
}

/// The session object is freed.
#[inline(always)]
pub fn free(hit: &Hit) {
    let key = hit.key();
    if let Some(session) = session(key) {
        freed(key, session, hit.now);
    }
}

/// The object of this session is freed.
#[inline(always)]
pub fn freed(key: u64, session: &mut Session, now: u64) {
    if !session.is_over() {
        end(key, session, TlsOutcome::Abandoned, now);
    }
    forget(key);
}

/// The object needs to be known no more.
#[inline(always)]
pub fn forget(key: u64) {
    // It may have given way to others.
    let _ = SESSIONS.remove(key);
}

/// The handshake is over: its record goes out.
#[inline(always)]
pub fn end(key: u64, session: &mut Session, outcome: TlsOutcome, now: u64) {
    session.end(outcome, now);
    let connection = if session.sk == 0 { None } else { maps::find(session.sk as *const _) };
    match connection {
        Some(connection) if connection.tls_session == key => {
            connection.tls_session = 0;
            emit::handshake(session, Some(connection));
        }
        // The socket has gone, and its address may be another's by now.
        _ => emit::handshake(session, None),
    }
}

/// The socket of a handshake under way is closed by its program, or destroyed.
#[inline(always)]
pub fn socket_closed(connection: &mut Connection, now: u64) {
    let key = connection.tls_session;
    connection.tls_session = 0;
    let Some(session) = session(key) else { return };
    if session.is_over() {
        return;
    }
    session.facts.set_if(TlsFacts::SOCKET_CLOSED, true);
    session.end(TlsOutcome::Abandoned, now);
    emit::handshake(session, Some(connection));
}

/// The session of the call that this thread is in.
#[inline(always)]
pub fn current<'a>() -> Option<(u64, &'a mut Session)> {
    let call = CALLS.get_ptr_mut(bpf_get_current_pid_tgid())?;
    // SAFETY: the map's own value; only this thread uses it.
    let key = unsafe { (*call).session };
    if key == 0 { None } else { Some((key, session(key)?)) }
}

/// Whether this thread may be in a call.
#[inline(always)]
pub fn may_be_in_one() -> bool {
    let calls = CALLS_UNDER_WAY.get_ptr(bucket(bpf_get_current_pid_tgid()));
    // SAFETY: the map's own value. Volatile: others count meanwhile.
    calls.is_some_and(|calls| unsafe { calls.read_volatile() } != 0)
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half of a thread's is its own number")]
#[inline(always)]
const fn bucket(caller: u64) -> u32 {
    caller as u32 & (BUCKETS - 1)
}

#[inline(always)]
fn count_calls(caller: u64, change: u64) {
    if let Some(calls) = CALLS_UNDER_WAY.get_ptr_mut(bucket(caller)) {
        // SAFETY: the map's own value, counted by all CPUs.
        unsafe { emit::add(calls, change) };
    }
}

/// Whether the target is this library.
#[inline(always)]
pub fn is(target: &Target, library: Library) -> bool {
    target.library == library.code()
}
