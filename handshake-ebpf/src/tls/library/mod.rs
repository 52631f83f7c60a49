//! TLS handshakes from the libraries that make them: one file a library, and the call that they have in
//! common.
//!
//! A library's file says when a call begins a handshake and what the object tells at its end; [`call`] keeps
//! the session in between, and [`socket`] sees which socket the call speaks through.

pub(crate) mod call;
mod fd;
mod gnutls;
mod go;
mod join;
mod maps;
mod object;
mod openssl;
mod returns;
mod socket;
mod stack;
