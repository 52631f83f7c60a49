//! TLS handshakes: from the libraries that make them, from their packets, and where the libraries are mapped.

mod discover;
pub mod library;
pub mod wire;
