//! From facts about the kernel to running programs: [`hook`] lists where programs are attached, [`plan`] what
//! of it this kernel offers, [`attach`] loads and attaches.

mod attach;
mod error;
pub mod function;
mod histograms;
pub mod hook;
mod kernel;
mod load;
pub mod plan;
mod program;
mod uprobe_multi;
mod wire;

pub use attach::{Attached, Attachment, LoadedPrograms, Probes, RunTime, attach};
pub use error::{HookError, LoadError};
pub(crate) use error::{chain, is_permission_denied, shorten};
pub use histograms::Histograms;
pub use kernel::Kernel;
pub(crate) use load::load;
pub(crate) use uprobe_multi::Place;
pub use uprobe_multi::UprobeLinks;
pub use wire::WireCoverage;
