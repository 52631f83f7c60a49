//! Joins a session with the connection of its socket.

use handshake_common::tls::library::{key::Key, session::Session};

use crate::{
    kernel::{Access, KernelSock},
    maps,
    tcp::adopt::adopt_now,
};

/// The session uses this socket.
#[inline(always)]
pub(super) fn join<A: Access>(key: &Key, session: &mut Session, sock: &KernelSock<A>) {
    let connection = match maps::find(sock.pointer()) {
        Some(found) => found,
        None => match adopt_now(sock) {
            Some(adopted) => adopted,
            None => return,
        },
    };
    session.sk = sock.pointer() as u64;
    connection.tls_session = *key;
    if connection.pid == 0 {
        (connection.pid, connection.comm, connection.cgroup) = (session.pid, session.comm, session.cgroup);
    }
}
