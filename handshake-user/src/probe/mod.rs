//! From the kernel's facts to running programs: [`plan`] says what to attach, [`attach`] does it.

mod attach;
pub mod plan;
pub mod wire;

pub use attach::{Attached, BTF_PATH, Kernel, LoadError, Probes, Settings};
pub(crate) use attach::{chain, shorten};
pub use wire::TlsWire;
