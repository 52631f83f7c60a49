//! The process that owns a connection.

use core::hint::black_box;

use handshake_common::{Connection, ConnectionFlags};

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
    // Without a branch, which the verifier would follow.
    let difference = black_box((listens[0] ^ closes[0]) | (listens[1] ^ closes[1]));
    let is_other = (difference | difference.wrapping_neg()) >> 63;
    let bit = ConnectionFlags::OTHER_PROGRAM.bits() * is_other as u32;
    connection.flags.insert(ConnectionFlags::from_bits_retain(bit));
}
