//! TLS: what both sides know of libraries, sessions and the bytes on the wire.

pub mod mapping;
pub mod session;
pub mod target;
pub mod wire;
