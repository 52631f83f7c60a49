//! The process that owns a connection.

use core::hint::black_box;

use handshake_common::{Accepted, Connection, ConnectionFlags};

use crate::{kernel::Access, process::Process};

/// `connect()`: records the current process. A kernel thread may connect on its own.
#[inline(always)]
pub(super) fn note_connector<A: Access>(connection: &mut Connection) {
    A::process().name(&mut connection.pid, &mut connection.comm, &mut connection.cgroup);
    connection.flags.insert(ConnectionFlags::OWNER_CONNECTS);
}

/// `accept()`: records the current process, in place of the one that listens.
#[inline(always)]
pub(crate) fn note_acceptor<A: Access>(connection: &mut Connection) {
    let is_other = replace(connection, &A::process());
    let bit = Accepted::OTHER_PROGRAM.bits() * is_other;
    connection.accepted.insert(Accepted::from_bits_retain(bit));
}

/// `close()` or `shutdown()`: records the current process, in place of the one that listens or another that
/// has accepted it. A kernel thread may close a socket that a process has left behind.
#[inline(always)]
pub(super) fn note_closer<A: Access>(connection: &mut Connection) {
    let process = A::process();
    if process.is_kernel_thread() {
        return;
    }
    let before = connection.pid;
    let is_other = replace(connection, &process);
    let accepted = connection.accepted.bits() & Accepted::BY_A_PROCESS.bits();
    let by_another = is_set((before ^ connection.pid).into()) | (accepted ^ Accepted::BY_A_PROCESS.bits());
    connection
        .flags
        .remove(ConnectionFlags::from_bits_retain(ConnectionFlags::OWNER_LISTENS.bits() * by_another));
    let bit = ConnectionFlags::OTHER_PROGRAM.bits() * is_other;
    connection.flags.insert(ConnectionFlags::from_bits_retain(bit));
}

/// Records the current process. Returns 1 if its program has another name than the one before, else 0.
#[inline(always)]
fn replace(connection: &mut Connection, process: &Process) -> u32 {
    let before: [u64; 2] = zerocopy::transmute!(connection.comm);
    process.name(&mut connection.pid, &mut connection.comm, &mut connection.cgroup);
    let now: [u64; 2] = zerocopy::transmute!(connection.comm);
    is_set((before[0] ^ now[0]) | (before[1] ^ now[1]))
}

/// 1 if any bit is set, without a branch, which the verifier would follow.
#[inline(always)]
fn is_set(bits: u64) -> u32 {
    let bits = black_box(bits);
    ((bits | bits.wrapping_neg()) >> 63) as u32
}
