//! What small functions do, read from their instructions: where an accessor finds what it returns, which addresses it
//! forms, what it hands on. Every path through the function is followed, up to a bound; what is not understood makes a
//! value unknown, never wrong.

mod aarch64;
mod walk;
mod x86;

pub use self::{
    walk::{Trace, only, tails, trace},
    x86::{behind_landing_pad, written},
};

/// A general register by its number in the machine's encoding.
pub type Register = u8;
/// Enough for both machines.
pub const REGISTERS: usize = 32;

/// One instruction, as far as the values matter that are derived from a function's first argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
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
    Return,
    /// Nothing is known of what follows.
    Stop,
}
