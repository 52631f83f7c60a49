//! From the kernel's facts to running programs: [`plan`] says what to attach, [`attach`] does it.

mod attach;
mod hook;
mod load;
pub mod plan;
pub mod wire;

pub use attach::{Attached, BTF_PATH, Kernel, LoadError, Probes, Settings};
pub(crate) use attach::{chain, shorten};
pub(crate) use load::load;
pub use wire::TlsWire;
