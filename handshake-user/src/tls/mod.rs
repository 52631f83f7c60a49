//! TLS: the libraries that make handshakes in the programs of this host.

pub mod inspect;
