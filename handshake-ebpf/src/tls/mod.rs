//! TLS handshakes: from the libraries that make them, from their packets, and where the libraries are mapped.

mod discover;
pub(crate) mod library;
pub(crate) mod wire;
