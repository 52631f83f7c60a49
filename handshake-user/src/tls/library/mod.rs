//! TLS handshakes from the libraries that make them: one worker ([`worker`]) reads what is in a file ([`inspect`]),
//! attaches the probes ([`attach`]), and keeps account ([`libraries`]).

pub mod attach;
pub mod budget;
pub mod handle;
pub mod inspect;
pub mod libraries;
pub mod queue;
pub mod skipped;
pub mod worker;
