//! Instructions of either machine, reduced to what matters here.

/// A general register by its number in the machine's encoding.
pub(crate) type Register = u8;
/// Enough for both machines.
pub(super) const REGISTERS: usize = 32;

/// One instruction, as far as the values matter that are derived from a function's first argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Nothing that matters here.
    Nothing,
    /// `to = from + by`
    Add {
        to: Register,
        from: Register,
        by: i64,
    },
    /// `to = value`
    Constant {
        to: Register,
        value: u64,
    },
    /// `to = *(base + by)`, or only looked at, as in a comparison.
    Load {
        to: Option<Register>,
        base: Register,
        by: i64,
        width: u8,
    },
    /// `to` = the lower `width` bytes of `from`
    Narrow {
        to: Register,
        from: Register,
        width: u8,
    },
    /// Registers become something else: a bit each.
    Forget {
        registers: u32,
    },
    Call,
    Jump {
        target: u64,
    },
    /// Goes on behind the instruction or at the target.
    Branch {
        target: u64,
    },
    /// Goes on at an address from a register or from memory; `in_table`: of one of the function's own labels,
    /// for certain.
    Leap {
        in_table: bool,
    },
    Return,
    /// Nothing is known of what follows.
    Stop,
}
