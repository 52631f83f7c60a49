//! A call of a library's handshake function: what all libraries have in common.

use core::{ffi::c_void, hint::black_box, mem::MaybeUninit};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_ANY, pt_regs},
    helpers::generated::{bpf_get_attach_cookie, bpf_ktime_get_ns, bpf_map_update_elem},
    programs::ProbeContext,
};
use handshake_common::{
    Connection, Library, Role, TlsOutcome,
    tls::library::{
        key::Key,
        session::{Activity, Session, SessionFlags},
        target::{Base, COOKIE_CLIENT, COOKIE_SERVER, Target},
    },
};

use super::{
    fd,
    maps::{CALLS, Call, SEATED, SEATS, SESSIONS, SUSPENDED, TARGETS},
};
use crate::{
    emit,
    kernel::{Access, Typed, thread},
    maps,
    process::Task,
    word_copy,
};

/// One hit of a probe.
pub(crate) struct Hit {
    /// The session object.
    pub(crate) object: u64,
    /// The caller: a thread or a goroutine.
    caller: Key,
    /// The thread; 0 for a goroutine, which changes threads.
    thread: u32,
    task: Task,
    /// The stack pointer at the entry of the function; 0 for Go.
    pub(crate) sp: u64,
    pub(crate) cookie: u64,
    pub(crate) now: u64,
}

impl Hit {
    /// A hit at a function's entry.
    #[inline(always)]
    pub(crate) fn new(ctx: &ProbeContext, object: u64) -> Self {
        // SAFETY: the probe's own context.
        let (sp, _) = pointers(unsafe { &*ctx.regs });
        let task = Typed::task();
        Self { sp, ..Self::by(ctx, object, task, task.key(), task.thread) }
    }

    /// A hit at an exit of a function.
    #[inline(always)]
    pub(crate) fn leaving(ctx: &ProbeContext) -> Self {
        let hit = Self::new(ctx, 0);
        let (base, _) = Base::of_cookie(hit.cookie);
        // SAFETY: the probe's own context.
        let (stack, frame) = pointers(unsafe { &*ctx.regs });
        let from = if base.is_frame_pointer { frame } else { stack };
        Self { sp: from.wrapping_add(u64::from(base.depth)), ..hit }
    }

    /// A hit of a probe by this goroutine.
    #[inline(always)]
    pub(crate) fn of_goroutine(ctx: &ProbeContext, object: u64, goroutine: u64) -> Self {
        let task = Typed::task();
        Self::by(ctx, object, task, task.key_of(goroutine), 0)
    }

    #[inline(always)]
    fn by(ctx: &ProbeContext, object: u64, task: Task, caller: Key, thread: u32) -> Self {
        // SAFETY: the probe's own context; the clock has no arguments.
        let (cookie, now) = unsafe { (bpf_get_attach_cookie(ctx.as_ptr()), bpf_ktime_get_ns()) };
        Self { object, caller, thread, task, sp: 0, cookie, now }
    }

    /// The function's result, at one of its exits.
    #[expect(clippy::cast_possible_truncation, reason = "an int")]
    #[inline(always)]
    pub(crate) fn result(&self, ctx: &ProbeContext) -> i32 {
        let (_, register) = Base::of_cookie(self.cookie);
        // SAFETY: the probe's own context.
        result(unsafe { &*ctx.regs }, register) as i32
    }

    /// The library file that was hit.
    #[inline(always)]
    pub(crate) fn target(&self) -> Option<&'static Target> {
        target(self.cookie)
    }

    /// The key of the object's session.
    #[inline(always)]
    pub(crate) fn key(&self) -> Key {
        self.task.key_of(self.object)
    }

    /// Whether the caller is in a call of that session.
    #[inline(always)]
    pub(crate) fn is_in(&self, key: &Key) -> bool {
        // SAFETY: the map's own value; only this caller uses it.
        CALLS.get_ptr_mut(self.caller).is_some_and(|call| unsafe { (*call).session } == *key)
    }
}

/// One register. Volatile, and read whether it is needed or not: the verifier requires each load to have a
/// constant offset.
macro_rules! register {
    ($regs:ident.$($name:tt)+) => {
        // SAFETY: a reference is valid to read.
        unsafe { (&raw const $regs.$($name)+).read_volatile() }
    };
}

/// The stack pointer and the frame pointer.
#[inline(always)]
fn pointers(regs: &pt_regs) -> (u64, u64) {
    #[cfg(bpf_target_arch = "x86_64")]
    return (register!(regs.rsp), register!(regs.rbp));
    #[cfg(bpf_target_arch = "aarch64")]
    return (register!(regs.sp), register!(regs.regs[29]));
}

/// The register of this number. Only registers that can hold the result at an exit are known: the return
/// register and the callee-saved ones.
#[inline(always)]
fn result(regs: &pt_regs, register: u8) -> u64 {
    #[cfg(bpf_target_arch = "x86_64")]
    {
        let (rax, rbx, rbp) = (register!(regs.rax), register!(regs.rbx), register!(regs.rbp));
        let (r12, r13) = (register!(regs.r12), register!(regs.r13));
        let (r14, r15) = (register!(regs.r14), register!(regs.r15));
        match register {
            3 => rbx,
            5 => rbp,
            12 => r12,
            13 => r13,
            14 => r14,
            15 => r15,
            _ => rax,
        }
    }
    #[cfg(bpf_target_arch = "aarch64")]
    {
        let _ = register;
        register!(regs.regs[0])
    }
}

#[inline(always)]
fn target(cookie: u64) -> Option<&'static Target> {
    // The index is the lower half.
    TARGETS.get((cookie & u64::from(u32::MAX)).try_into().ok()?)
}

/// Returns the session of this key, or `None` if no handshake of it is followed.
#[inline(always)]
pub(crate) fn session<'a>(key: &Key) -> Option<&'a mut Session> {
    // SAFETY: the map's own value, whose memory the kernel keeps while the program runs. Libraries want a
    // session object to be used by one thread at a time; a program that does not keep to it gets a record
    // with mixed values, nothing worse: all fields are integers for which any value is valid, and none is an
    // address or index that the verifier has to trust.
    SESSIONS.get_ptr_mut(*key).map(|session| unsafe { &mut *session })
}

/// A call begins. `role` comes from the object if the function does not determine it.
#[inline(always)]
pub(crate) fn enter(hit: &Hit, target: &Target, begins: bool, role: u8) {
    let key = hit.key();
    let known = match session(&key) {
        Some(known) if begins => {
            // The object starts another handshake; the end of the previous one was missed.
            if !known.is_over() {
                end(&key, known, TlsOutcome::Abandoned, hit.now);
            }
            None
        }
        Some(known) if known.is_over() => return,
        Some(known) => Some(known),
        // Started before the program, or already over: it cannot be timed.
        None if !begins => return,
        // Libraries are probed before TCP is: which connection this is would be a guess.
        None if !maps::everything_is_attached() => return,
        None => None,
    };
    let activity = Typed::activity();
    if let Some(session) = known {
        session.enter(hit.now, activity);
        session.thread = hit.thread;
    } else {
        let role = if hit.cookie & COOKIE_SERVER != 0 {
            Role::Server.code()
        } else if hit.cookie & COOKIE_CLIENT != 0 {
            Role::Client.code()
        } else {
            role
        };
        begin(&key, hit, target, role, activity);
    }
    let call = Call { session: key, cookie: hit.cookie, sp: hit.sp };
    if let Some(old) = CALLS.get_ptr_mut(hit.caller) {
        // SAFETY: the map's own value; only this caller uses it.
        let before = unsafe { core::mem::replace(&mut *old, call) };
        if !before.session.is_none() {
            suspend(&before, hit);
        }
    } else {
        // An LRU map evicts.
        let _ = CALLS.insert(hit.caller, call, u64::from(BPF_ANY));
    }
    take_seat(hit.thread);
}

#[inline(always)]
fn begin(key: &Key, hit: &Hit, target: &Target, role: u8, activity: Activity) {
    let mut fresh = MaybeUninit::<Session>::uninit();
    // SAFETY: a session is plain integers, for which zeros are valid.
    let session = unsafe { word_copy::zeroed(&mut fresh) };
    (session.object, session.library, session.role) = (hit.object, target.library, role);
    Typed::process().name(&mut session.pid, &mut session.comm, &mut session.cgroup);
    session.enter(hit.now, activity);
    session.thread = hit.thread;
    // An LRU map evicts. SAFETY: key and value have the sizes of the map's definition; the plain helper
    // spares a copy on the stack.
    unsafe {
        bpf_map_update_elem(
            (&raw const SESSIONS).cast_mut().cast(),
            core::ptr::from_ref(key).cast_mut().cast(),
            core::ptr::from_mut(session).cast(),
            u64::from(BPF_ANY),
        );
    }
}

/// The caller enters another call before this one has returned.
#[inline(always)]
fn suspend(call: &Call, hit: &Hit) {
    // A call with the same stack pointer was left by a long jump.
    if call.sp != hit.sp {
        // An LRU map evicts.
        let _ = SUSPENDED.insert(hit.task.key_of(call.sp), call, u64::from(BPF_ANY));
    }
    mark_uncertain(&call.session);
}

/// Some of what a call sends and receives was missed.
#[inline(always)]
fn mark_uncertain(key: &Key) {
    if let Some(session) = session(key) {
        session.mark_uncertain();
    }
}

/// A call returns. Returns its session, or `None` if the beginning of the call was not seen.
#[inline(always)]
pub(crate) fn leave<'a>(hit: &Hit) -> Option<(Key, &'a mut Session, &'static Target)> {
    let (Call { session: key, cookie, .. }, was_seen) = taken(hit)?;
    let (session, target) = (session(&key)?, target(cookie)?);
    if !was_seen {
        session.mark_uncertain();
    }
    session.leave(hit.now, Typed::activity());
    fd::find(&key, session, target);
    Some((key, session, target))
}

/// Returns the call that ends here, and whether its thread kept its slot to the end. The thread may have
/// another call in progress, and the call may have begun on another thread.
#[inline(always)]
fn taken(hit: &Hit) -> Option<(Call, bool)> {
    let current = CALLS.get_ptr_mut(hit.caller);
    if let Some(current) = current {
        // SAFETY: the map's own value; only this caller uses it.
        let call = unsafe { *current };
        if !call.session.is_none() && call.sp == hit.sp {
            // SAFETY: as above.
            unsafe { (*current).session = Key::NONE };
            return Some((call, leave_seat(hit.thread)));
        }
    }
    let at = hit.task.key_of(hit.sp);
    // SAFETY: the map's own value, copied at once.
    let call = unsafe { SUSPENDED.get(at).copied() }?;
    // It may have been evicted.
    let _ = SUSPENDED.remove(at);
    if let Some(current) = current {
        // SAFETY: as above.
        mark_uncertain(unsafe { &(*current).session });
    }
    Some((call, false))
}

/// The session object is freed.
#[inline(always)]
pub(crate) fn free(hit: &Hit) {
    let key = hit.key();
    if let Some(session) = session(&key) {
        freed(&key, session, hit.now);
    }
}

/// The object of this session is freed.
#[inline(always)]
pub(crate) fn freed(key: &Key, session: &mut Session, now: u64) {
    if !session.is_over() {
        end(key, session, TlsOutcome::Abandoned, now);
    }
    forget(key);
}

/// The object is not needed any more.
#[inline(always)]
pub(crate) fn forget(key: &Key) {
    // It may have been evicted.
    let _ = SESSIONS.remove(*key);
}

/// The handshake is over: publishes its record.
#[inline(always)]
pub(crate) fn end(key: &Key, session: &mut Session, outcome: TlsOutcome, now: u64) {
    doubt_if_unseen(session);
    session.end(outcome, now);
    let connection = if session.sk == 0 { None } else { maps::find(session.sk as *const _) };
    match connection {
        Some(connection) if connection.tls_session == *key => {
            connection.tls_session = Key::ENDED;
            emit::handshake(session, Some(connection));
        }
        // The socket is gone, and its address may have been reused.
        _ => emit::handshake(session, None),
    }
}

/// The socket of a handshake in progress is closed by its program, or destroyed.
#[inline(always)]
pub(crate) fn socket_closed(connection: &mut Connection, sk: *const c_void, now: u64) {
    let key = core::mem::replace(&mut connection.tls_session, Key::ENDED);
    let Some(session) = session(&key) else { return };
    // If this one was evicted, the object may be in another handshake by now.
    if session.is_over() || session.sk != sk as u64 {
        return;
    }
    doubt_if_unseen(session);
    session.flags.insert(SessionFlags::SOCKET_CLOSED);
    session.end(TlsOutcome::Abandoned, now);
    emit::handshake(session, Some(connection));
}

/// Returns the session of the call that the caller is in.
#[inline(always)]
pub(crate) fn of_caller<'a>(hit: &Hit) -> Option<(&'a mut Session, &'static Target)> {
    // SAFETY: the map's own value; only this caller uses it.
    let key = CALLS.get_ptr_mut(hit.caller).map(|call| unsafe { (*call).session })?;
    Some((session(&key)?, hit.target()?))
}

/// Returns the call that this thread is in, and its session.
#[inline(always)]
pub(crate) fn current<'a, A: Access>() -> Option<(&'static Call, &'a mut Session)> {
    let task = A::task();
    let Some(call) = CALLS.get_ptr_mut(task.key()) else {
        // The slot belongs to a thread of the same id that died inside a call, or predates an `exec`; or the
        // call was evicted.
        leave_seat(task.thread);
        return None;
    };
    // SAFETY: the map's own value, which the kernel keeps while the program runs; only this thread uses it.
    let call = unsafe { &*call };
    match session(&call.session) {
        Some(session) if !session.is_over() => Some((call, session)),
        // The handshake is over, or the call was left by a long jump.
        _ => {
            leave_seat(task.thread);
            None
        }
    }
}

/// Whether this thread may be in a call.
#[inline(always)]
pub(crate) fn may_be_in_one() -> bool {
    let thread = thread();
    // SAFETY: the map's own value. Volatile: others write to it.
    seat(thread).is_some_and(|seat| unsafe { seat.read_volatile() } == thread)
}

/// The slot of this thread in [`SEATED`].
#[inline(always)]
fn seat(thread: u32) -> Option<*mut u32> {
    let at = black_box(thread as usize) & (SEATS - 1);
    // SAFETY: inside the map's value.
    SEATED.get_ptr_mut(0).map(|seats| unsafe { seats.cast::<u32>().add(at) })
}

/// The thread enters a call. The previous owner of its slot may be dead.
#[inline(always)]
fn take_seat(thread: u32) {
    if thread != 0
        && let Some(seat) = seat(thread)
    {
        // SAFETY: the map's own value. Volatile: others read it.
        unsafe { seat.write_volatile(thread) };
    }
}

/// The thread leaves a call. Returns whether it still had its slot; otherwise something inside was missed.
#[inline(always)]
fn leave_seat(thread: u32) -> bool {
    if thread == 0 {
        return true;
    }
    let Some(seat) = seat(thread) else { return false };
    // SAFETY: the map's own value. Volatile: others write to it. A thread that does so in between loses its
    // slot, and notices.
    unsafe {
        let was_its_own = seat.read_volatile() == thread;
        if was_its_own {
            seat.write_volatile(0);
        }
        was_its_own
    }
}

/// A handshake ends inside a call whose thread has lost its slot.
#[inline(always)]
fn doubt_if_unseen(session: &mut Session) {
    let thread = session.thread;
    if session.mark_ns != 0
        && thread != 0
        // SAFETY: the map's own value. Volatile: others write to it.
        && seat(thread).is_none_or(|seat| unsafe { seat.read_volatile() } != thread)
    {
        session.mark_uncertain();
    }
}

/// Whether the target is this library.
#[inline(always)]
pub(crate) fn is(target: &Target, library: Library) -> bool {
    target.library == library.code()
}
