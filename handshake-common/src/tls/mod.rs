//! TLS: what both sides agree on, by view. `library`: a handshake by its library's calls; `wire`: by its
//! bytes; `discover`: where libraries are mapped.

pub mod discover;
pub mod library;
pub mod wire;
