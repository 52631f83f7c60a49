//! TLS handshakes, from two sources: the libraries that perform them ([`library`], found by [`discover`]),
//! and the bytes on the wire ([`wire`]). Both count round trips by [`handshake_path`]; [`reader`] keeps files
//! that never answer from blocking.

pub mod discover;
pub mod handshake_path;
pub mod library;
pub mod reader;
pub mod wire;
