//! The process that owns a connection.

use handshake_common::{Connection, ConnectionFlags, Role};

use crate::kernel::Access;

/// `connect()`: records the current process. A kernel thread may connect on its own.
#[inline(always)]
pub(super) fn note_connector<A: Access>(connection: &mut Connection) {
    A::process().name(&mut connection.pid, &mut connection.comm, &mut connection.cgroup);
    connection.flags.insert(ConnectionFlags::OWNER_CONNECTS);
}

/// `close()` or `shutdown()`: records the current process, in place of the one that listens. A kernel thread
/// may close a socket that a process has left behind.
#[inline(always)]
pub(super) fn note_closer<A: Access>(connection: &mut Connection) {
    let process = A::process();
    if process.is_kernel_thread() {
        return;
    }
    let listens: [u64; 2] = zerocopy::transmute!(connection.comm);
    process.name(&mut connection.pid, &mut connection.comm, &mut connection.cgroup);
    connection.flags.remove(ConnectionFlags::OWNER_LISTENS);
    let closes: [u64; 2] = zerocopy::transmute!(connection.comm);
    let is_other = (listens[0] ^ closes[0]) | (listens[1] ^ closes[1]) != 0;
    if is_other && connection.role == Role::Server.code() {
        connection.flags.insert(ConnectionFlags::OTHER_PROGRAM);
    }
}
