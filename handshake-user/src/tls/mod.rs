//! TLS libraries: [`discover`] finds their files, [`inspect`] says what to probe in them, [`attach`] does it, and
//! [`libraries`] keeps account.

pub mod attach;
pub mod budget;
pub mod discover;
pub mod handle;
pub mod inspect;
pub mod libraries;
pub mod queue;
pub mod reader;
pub mod skipped;
pub mod worker;
