//! What identifies something of a process.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Something of one process that has an address (a session object, a goroutine, a place on a stack) or a
/// thread id. Addresses repeat from process to process, process and thread ids from time to time, and after
/// an `exec` there are others under all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Key {
    /// The address, or the thread id.
    pub address: u64,
    /// When its process (for a thread id: that thread) began: `task_struct.start_time`.
    pub born_ns: u64,
    /// Process id (tgid) in the initial pid namespace; 0 only in [`Key::NONE`] and
    /// [`Key::ENDED`].
    pub tgid: u32,
    /// The lower half of `task_struct.self_exec_id`.
    pub execs: u32,
}

impl Key {
    /// Nothing.
    pub const NONE: Self = Self { address: 0, born_ns: 0, tgid: 0, execs: 0 };
    /// Nothing any more.
    pub const ENDED: Self = Self { address: 1, ..Self::NONE };

    /// Whether it stands for nothing.
    #[must_use]
    #[inline(always)]
    pub const fn is_none(&self) -> bool {
        self.tgid == 0
    }

    /// Whether it has never stood for anything.
    #[must_use]
    #[inline(always)]
    pub const fn is_unused(&self) -> bool {
        self.tgid == 0 && self.address == 0
    }
}
