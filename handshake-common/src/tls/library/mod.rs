//! TLS handshakes as their library's calls show them.

pub mod session;
pub mod target;
