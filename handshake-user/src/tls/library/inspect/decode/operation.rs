//! Instructions of both architectures, reduced to what matters here.

/// A general-purpose register, by its number in the instruction encoding.
pub(crate) type Register = u8;
/// Enough for both architectures.
pub(super) const REGISTERS: usize = 32;

/// One instruction, reduced to its effect on values derived from a function's first argument.
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
    /// `to = base + index * scale + by`
    Index {
        to: Register,
        base: Register,
        index: Register,
        scale: u8,
        by: i64,
    },
    /// `to = value`
    Constant {
        to: Register,
        value: u64,
    },
    /// `to = *(base + by)`, or a read without a destination, as in a comparison.
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
    /// Registers take unknown values: one bit each.
    Forget {
        registers: u32,
    },
    /// To an address in the instruction itself, or to one that is not known.
    Call {
        target: Option<u64>,
    },
    Jump {
        target: u64,
    },
    /// Continues after the instruction or at the target.
    Branch {
        target: u64,
    },
    /// Continues at an address from a register or from memory; `in_table`: certainly one of the function's
    /// own labels.
    Leap {
        in_table: bool,
    },
    Return,
    /// Nothing is known about what follows.
    Stop,
}

impl Operation {
    /// The registers that it changes, one bit each.
    pub(crate) const fn written(self) -> u32 {
        match self {
            Self::Add { to, .. }
            | Self::Index { to, .. }
            | Self::Constant { to, .. }
            | Self::Load { to: Some(to), .. }
            | Self::Narrow { to, .. } => 1 << to,
            Self::Forget { registers } => registers,
            Self::Call { .. } => u32::MAX,
            _ => 0,
        }
    }
}
