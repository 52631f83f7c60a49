//! TLS handshakes as their library's calls show them.

pub mod key;
pub mod session;
pub mod target;
