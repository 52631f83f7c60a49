//! `sock:inet_sock_set_state`: the backbone. Runs about six times in the life of a connection.

use core::{ffi::c_void, hint::black_box, mem::MaybeUninit};

use aya_ebpf::{
    btf_maps::ProgramArray,
    helpers::generated::bpf_ktime_get_ns,
    macros::{btf_map, btf_tracepoint, tracepoint},
    programs::{BtfTracePointContext, TracePointContext},
};
use aya_log_ebpf::debug;
use handshake_common::{
    Connection, ConnectionFlags, Phase, Role, WirePhase,
    tcp::{state, states},
    totals::{self, DropReason},
};

use super::{
    adopt::{adopt, fresh, newly_followed},
    listener,
    owner::{note_closer, note_connector},
    perf_field,
};
use crate::{
    emit,
    kernel::{Access, KernelSock, Typed, Untyped},
    maps::{self, Endpoints, HANDLED, SYNACKS},
    stack,
    tls::{library::call, wire},
    word_copy,
};

/// Holds [`inet_sock_set_state`], which user space puts there.
#[btf_map]
static SET_STATE: ProgramArray<1> = ProgramArray::new();

// void inet_sock_set_state(const struct sock *sk, const int oldstate, const int newstate)
#[btf_tracepoint(function = "inet_sock_set_state")]
pub(crate) fn inet_sock_set_state(ctx: BtfTracePointContext) -> i32 {
    stack::of_the_task_with(&ctx, &SET_STATE);
    let is_shown = set_state::<Typed>(ctx.arg(0), ctx.arg(1), ctx.arg(2));
    let change = change(&ctx);
    if !is_shown {
        maps::note_unshown(change);
    }
    // Last: what interrupts until here leaves its own.
    if let Some(handled) = HANDLED.get_ptr_mut(0) {
        // SAFETY: the map's own value of this CPU. Volatile: it is for the reentrant program.
        unsafe { handled.write_volatile(change) };
    }
    0
}

/// A change of state: the socket, and from which state to which.
#[inline(always)]
fn change(ctx: &BtfTracePointContext) -> [u64; 2] {
    let (sk, old, new): (u64, u32, u32) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    [sk, u64::from(old) << 8 | u64::from(new)]
}

/// The reentrant program. The kernel skips a program that already runs on this CPU: when a soft interrupt
/// arrives while a `connect()` or `close()` is being handled, the state changes of all its packets would be
/// lost. This program runs after the first one, and when that has not handled the change, it enters its code;
/// it has none of its own, because the verifier would check that once more. When an interrupt comes between
/// the two programs, a change is handled twice, under the same lock of the socket: the entry of its
/// connection shows that it was. Where none does, it is noted.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub(crate) fn inet_sock_set_state_nested(ctx: BtfTracePointContext) -> i32 {
    let Some(handled) = HANDLED.get_ptr_mut(0) else { return 0 };
    let change = change(&ctx);
    if (maps::has_been_full() || !Typed::has_cookies()) && maps::is_noted(change) {
        return 0;
    }
    // SAFETY: the map's own value of this CPU. Volatile: it is the first program that writes it.
    let ([sk, states], [now_sk, now_states]) = (unsafe { handled.read_volatile() }, change);
    // One after the other: the verifier refuses the arithmetic with pointers that would compare them at once.
    if black_box(sk != now_sk) || states != now_states {
        emit::count(totals::NESTED);
        // SAFETY: both programs get the same context, and nothing here waits to be dropped.
        unsafe { SET_STATE.tail_call(&ctx, 0) };
    }
    0
}

#[tracepoint(category = "sock", name = "inet_sock_set_state")]
pub(crate) fn inet_sock_set_state_perf(ctx: TracePointContext) -> u32 {
    // SAFETY: user space takes the offsets from the tracepoint's own format.
    unsafe {
        let (Ok(sk), Ok(old), Ok(new)) = (
            ctx.read_at::<usize>(perf_field!(SET_STATE_SKADDR)),
            ctx.read_at::<u32>(perf_field!(SET_STATE_OLDSTATE)),
            ctx.read_at::<u32>(perf_field!(SET_STATE_NEWSTATE)),
        ) else {
            return 0;
        };
        set_state::<Untyped>(sk as *const c_void, old, new);
    }
    0
}

/// Returns false if no entry shows that this change was handled: the table has no room for the connection, or
/// the entry cannot tell it from another connection of this socket.
#[inline(always)]
fn set_state<A: Access>(sk: *const c_void, old: u32, new: u32) -> bool {
    // With old == new nothing happened. SYN_SENT → SYN_RECV: both ends dial.
    if old == new || (new == states::SYN_RECV && old != states::LISTEN) {
        return true;
    }
    // A server's socket is read when it is ESTABLISHED: at SYN_RECV not even its addresses are set.
    if old == states::LISTEN || new == states::LISTEN {
        listener::changed::<A>(sk, old, new);
        return true;
    }
    let Some(sock) = KernelSock::<A>::new(sk) else { return true };
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    if old == states::CLOSE {
        return new != states::SYN_SENT || (connecting(&sock, now) && A::has_cookies());
    }
    let connection = match maps::find(sk) {
        // A new socket at the address of one whose end was missed: a connection that leaves SYN_RECV is only
        // being established.
        Some(found)
            if old == states::SYN_RECV
                && !found.is(Phase::Opening)
                && found.id != A::cookie(sock.pointer()) =>
        {
            renew(found, &sock);
            state::adopt(found, old);
            found
        }
        Some(found) => found,
        None if old == states::SYN_RECV && new == states::ESTABLISHED => {
            return accepted(&sock, now) && A::has_cookies();
        }
        None => {
            let Some(adopted) = adopt(&sock, old) else {
                pass(&sock, old, new, now);
                return false;
            };
            adopted
        }
    };
    if !connection.tls_session.is_none() && matches!(new, states::FIN_WAIT1 | states::LAST_ACK) {
        // The program gives up on a handshake in progress.
        call::socket_closed(connection, sk, now);
    }
    if new == states::CLOSE && connection.wire_is_unsettled() {
        wire::socket_closed(connection, &sock);
    }
    // A server's; asked in this way, the verifier does not follow two kinds of transitions from here on.
    if connection.is(Phase::Opening) && connection.pid == 0 && connection.role == Role::Server.code() {
        listener::name(connection, &sock);
    }
    let due = state::transition(connection, &sock, old, new, now);
    match new {
        states::FIN_WAIT1 | states::LAST_ACK
            if !connection.flags.contains(ConnectionFlags::OWNER_CONNECTS) =>
        {
            note_closer::<A>(connection);
        }
        states::ESTABLISHED if connection.role == Role::Server.code() => find_synack(connection, &sock),
        _ => {}
    }
    emit::publish(connection, &sock, due);
    if new == states::ESTABLISHED {
        find_wire(connection);
    }
    true
}

/// `connect()`: the only place where a client's process is certain from the start. Returns false if the table
/// has no room.
#[inline(always)]
fn connecting<A: Access>(sock: &KernelSock<A>, now: u64) -> bool {
    if let Some(found) = maps::find(sock.pointer()) {
        // On a preemptible kernel the reentrant program may see a step that the first one has already
        // handled: this socket is still in the same state.
        if found.is(Phase::Opening) && found.id == A::cookie(sock.pointer()) {
            return true;
        }
        renew(found, sock);
        state::begin_client(found, now);
        note_connector::<A>(found);
        emit::count(totals::begun(Some(Role::Client)));
        return true;
    }
    let mut space = MaybeUninit::uninit();
    let connection = fresh(&mut space, sock);
    state::begin_client(connection, now);
    note_connector::<A>(connection);
    emit::count(totals::begun(Some(Role::Client)));
    let is_kept = keep(sock, connection);
    if !is_kept {
        emit::count(totals::UNKEPT);
    }
    is_kept
}

/// A server's new connection. The entry is written once, after its record was sent: cheaper than updating in
/// place. Returns false if the table has no room.
#[inline(always)]
fn accepted<A: Access>(sock: &KernelSock<A>, now: u64) -> bool {
    let mut space = MaybeUninit::uninit();
    let connection = fresh(&mut space, sock);
    state::adopt(connection, states::SYN_RECV);
    listener::name(connection, sock);
    state::transition(connection, sock, states::SYN_RECV, states::ESTABLISHED, now);
    find_synack(connection, sock);
    emit::publish_opening(connection, sock);
    find_wire(connection);
    let is_kept = keep(sock, connection);
    if !is_kept {
        emit::count(totals::unfollowed(Some(Role::Server)));
    }
    is_kept
}

/// One step of a connection that does not fit in the table: whatever the step alone shows is counted and
/// reported.
#[inline(always)]
fn pass<A: Access>(sock: &KernelSock<A>, old: u32, new: u32, now: u64) {
    if !state::is_followed(old) {
        return;
    }
    maps::mark_full();
    if state::skips_established(old, new) {
        emit::count(totals::opens(Some(Role::Server), None, None));
        emit::count(totals::unfollowed(None));
        emit::count(totals::closing(None));
        no_room(sock);
        return;
    }
    let mut space = MaybeUninit::uninit();
    let connection = newly_followed(&mut space, sock, old);
    let due = state::passing(connection, sock, old, new, now);
    emit::publish_unkept(connection, sock, due);
    if new == states::ESTABLISHED {
        emit::count(totals::unfollowed(connection.role()));
    }
}

/// Data that arrived before a server's socket existed may have been a ClientHello.
#[inline(always)]
fn find_wire(connection: &mut Connection) {
    let early = connection.flags.contains(ConnectionFlags::FINAL_ACK_DATA)
        || connection.flags.contains(ConnectionFlags::SYN_DATA_ACKED);
    if early && connection.role == Role::Server.code() && connection.wire_is(WirePhase::Idle) {
        wire::established(connection);
    }
}

/// Stores the state of a new connection; if the table is full, counts that and returns false.
#[inline(always)]
fn keep<A: Access>(sock: &KernelSock<A>, connection: &Connection) -> bool {
    let kept = maps::keep(sock.pointer(), connection);
    if !kept {
        no_room(sock);
    }
    kept
}

/// The table is full for a new connection.
#[inline(always)]
fn no_room<A: Access>(sock: &KernelSock<A>) {
    emit::count(totals::lost(DropReason::StateFull));
    maps::mark_full();
    debug!((), "no room for connection {:x}", A::cookie(sock.pointer()));
}

/// The entry's connection is over: `connect(AF_UNSPEC)` reset its socket, or the end of its socket was missed
/// and another socket has its address. Its outstanding records are due now.
#[inline(always)]
fn renew<A: Access>(connection: &mut Connection, sock: &KernelSock<A>) {
    let due = state::destroyed(connection);
    emit::publish(connection, sock, due);
    let id = A::cookie(sock.pointer());
    if connection.id != id {
        debug!((), "the end of connection {:x} was missed", connection.id);
        // SAFETY: a connection is plain integers, for which zeros are valid.
        unsafe { word_copy::zero(connection) };
        connection.id = id;
    }
}

/// If the SYN-ACK of a server's connection was retransmitted, looks up when the first one left.
#[inline(always)]
fn find_synack<A: Access>(connection: &mut Connection, sock: &KernelSock<A>) {
    if connection.syn_retransmits == 0 || connection.syn_ns != 0 {
        return;
    }
    let mut ends = Endpoints::default();
    sock.endpoints(&mut ends);
    // SAFETY: the value is copied at once; a concurrent eviction could only make it another connection's
    // time.
    connection.syn_ns = unsafe { SYNACKS.get(ends) }.copied().unwrap_or(0);
}
