//! Connections that are followed from midway: most existed before the program started.

use core::mem::MaybeUninit;

use handshake_common::{Connection, ConnectionFlags, connection, tcp::state};

use crate::{
    kernel::{Access, KernelSock},
    maps::{self, FULL},
    word_copy,
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

/// The same for a program without enough stack for a connection.
#[inline(always)]
pub(crate) fn adopt_in_place<'a, A: Access>(sock: &KernelSock<A>, id: u64) -> Option<&'a mut Connection> {
    static NEW: Connection = zerocopy::transmute!([0_u8; connection::SIZE]);
    let old = sock.state();
    if !state::is_followed(old) {
        return None;
    }
    maps::keep_new(sock.pointer(), &NEW);
    let connection = maps::find(sock.pointer())?;
    // Packets are filtered without the socket's lock: another CPU may have started to follow this connection
    // in the meantime, and knows more about it.
    if connection.id != 0 {
        return Some(connection);
    }
    connection.id = id;
    state::adopt(connection, old);
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
    if connection.flags.contains(ConnectionFlags::PREEXISTING) && FULL.get(0).is_some_and(|&full| full != 0) {
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
