//! Connections that are followed from midway: most existed before the program started.

use core::mem::MaybeUninit;

use handshake_common::{
    Connection, ConnectionFlags, connection,
    tcp::{state, states},
};

use crate::{
    kernel::{Access, KernelSock},
    maps, word_copy,
};

/// Adopts an unknown socket: most existed before the program started, or the table was full when they were
/// created. Their establishment, and their close, were counted then. Returns `None` if the table is full or
/// there is no connection.
#[inline(always)]
pub(crate) fn adopt<'a, A: Access>(sock: &KernelSock<A>, old: u32) -> Option<&'a mut Connection> {
    if !state::is_followed(old) {
        return None;
    }
    // The cookie also identifies a later minisocket, but only if it was requested before.
    let mut space = MaybeUninit::uninit();
    let connection = newly_followed(&mut space, sock, old);
    maps::keep_new(sock.pointer(), connection);
    maps::find(sock.pointer())
}

/// Adopts a socket that has an event and is not followed yet.
#[inline(always)]
pub(crate) fn adopt_now<'a, A: Access>(sock: &KernelSock<A>) -> Option<&'a mut Connection> {
    let connection = adopt(sock, sock.state())?;
    sock.identify(connection);
    Some(connection)
}

/// A connection of which only its state is known, by that state: for [`adopt_unlocked`].
static BY_STATE: [Connection; states::CLOSING as usize + 1] = {
    let mut by_state = [zerocopy::transmute!([0_u8; connection::SIZE]); _];
    let mut old = 0;
    while old <= states::CLOSING {
        if state::is_followed(old) {
            state::adopt(&mut by_state[old as usize], old);
        }
        old += 1;
    }
    by_state
};

/// The same for a packet, which is filtered without the socket's lock, by a program without enough stack for
/// a connection. Another CPU may change the socket's state at any moment: the entry says from its first
/// moment what is known.
#[inline(always)]
pub(crate) fn adopt_unlocked<'a, A: Access>(sock: &KernelSock<A>, id: u64) -> Option<&'a mut Connection> {
    let old = sock.state();
    if !state::is_followed(old) {
        return None;
    }
    maps::keep_new(sock.pointer(), BY_STATE.get(old as usize)?);
    let connection = maps::find(sock.pointer())?;
    // Another CPU has started to follow this connection in the meantime, and knows more about it.
    if connection.id != 0 {
        return Some(connection);
    }
    connection.id = id;
    mark_maybe_unfollowed(connection);
    sock.identify(connection);
    Some(connection)
}

/// A connection that was not followed before and is about to leave `old`.
#[inline(always)]
pub(super) fn newly_followed<'a, A: Access>(
    space: &'a mut MaybeUninit<Connection>,
    sock: &KernelSock<A>,
    old: u32,
) -> &'a mut Connection {
    let connection = fresh(space, sock);
    state::adopt(connection, old);
    mark_maybe_unfollowed(connection);
    connection
}

/// Once the table has been full, a connection that is not followed may be newer than the program.
#[inline(always)]
fn mark_maybe_unfollowed(connection: &mut Connection) {
    if connection.flags.contains(ConnectionFlags::PREEXISTING) && maps::has_been_full() {
        connection.flags.insert(ConnectionFlags::MAYBE_UNFOLLOWED);
    }
}

/// A connection about which only its id is known.
#[inline(always)]
pub(super) fn fresh<'a, A: Access>(
    space: &'a mut MaybeUninit<Connection>,
    sock: &KernelSock<A>,
) -> &'a mut Connection {
    // SAFETY: a connection is plain integers, for which zeros are valid.
    let connection = unsafe { word_copy::zeroed(space) };
    connection.id = A::cookie(sock.pointer());
    connection
}
