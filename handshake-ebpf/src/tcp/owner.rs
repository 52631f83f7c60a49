//! The process that owns a connection.

use handshake_common::Connection;

use crate::kernel::Access;

/// Records the current process as the owner. Call only where a task acts on its own socket: `connect()`,
/// `close()`, `shutdown()`. A kernel thread is taken only `with_kernel`: it may connect on its own, but it
/// may also close a socket that a process has left behind.
#[inline(always)]
pub(super) fn note_owner<A: Access>(connection: &mut Connection, with_kernel: bool) {
    let process = A::process();
    if process.is_kernel_thread() && !with_kernel {
        return;
    }
    process.name(&mut connection.pid, &mut connection.comm, &mut connection.cgroup);
}
