//! Why the kernel's type information is of no use.

use thiserror::Error;

/// Why a member cannot be found.
#[derive(Debug, Error)]
pub enum BtfError {
    /// The kernel has no such member.
    #[error("the kernel's BTF has no {structure}.{path}")]
    Missing {
        /// Structure of the kernel.
        structure: &'static str,
        /// Dotted path within it.
        path: &'static str,
    },
    /// The data is damaged, or of a newer format than this program knows.
    #[error("cannot read the kernel's BTF: {0}")]
    Malformed(String),
}
