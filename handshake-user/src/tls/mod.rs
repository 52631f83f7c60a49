//! TLS: the libraries of this host.

pub mod discover;
